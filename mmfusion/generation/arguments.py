"""What callers give: items, one or many, as lists; the options that every method takes, checked."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

from mmfusion.errors import UserError
from mmfusion.rng import generator

OnImage = Callable[[int, float, PILImage.Image], None]
OnToken = Callable[[int, str], None]

MOST_SHOWN = 80  # characters of a value in a message
ITEM = (int, str, np.integer, PILImage.Image)
MOST_CANDIDATES = 10_000  # of an item: all of them are in memory


def shown(value: Any) -> str:
    """A value for one line of a message, whatever it is."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # whole numbers of more than 4,300 digits, and others' classes
        return f"a {type(value).__name__}"
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."


def whole(value: Any) -> bool:
    """Whether a value is a whole number; True and False are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_names(given: Iterable[Any], known: Sequence[str], what: str) -> None:
    """Refuse an option that does not exist; the message has the nearest one, and all of them."""
    for name in given:
        if name not in known:
            near = get_close_matches(str(name), known, 1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(f"{what} {name}: no such option{meant}; choose from {', '.join(known)}")


@dataclass(frozen=True)
class Common:
    """The options of every method beside those of `Sampling`, and the candidates of each item."""

    seed: Any = 0
    batch_size: int = 128
    on_picture: OnImage | None = None
    on_token: OnToken | None = None
    progress: bool = False
    best_of: int = 1

    def __post_init__(self) -> None:
        if not whole(self.batch_size) or self.batch_size < 1:
            raise UserError(
                f"batch_size: {shown(self.batch_size)}; give a whole number of 1 or more"
            )
        if not isinstance(self.progress, (bool, int)):
            raise UserError(f"progress: {shown(self.progress)}; give True or False")
        if not whole(self.best_of) or not 1 <= self.best_of <= MOST_CANDIDATES:
            raise UserError(
                f"best_of: {shown(self.best_of)}; give a whole number of 1 to {MOST_CANDIDATES:,}"
            )
        for name in ("on_picture", "on_token"):
            callback = getattr(self, name)
            if callback is not None and not callable(callback):
                raise UserError(f"{name}: {shown(callback)}; give a function")
            if callback and self.best_of > 1:
                raise UserError(
                    f"best_of: which of {self.best_of} candidates is kept is known when all are "
                    f"there; leave {name} out"
                )

    def seeds(self, count: int) -> list[int]:
        """The seed of each candidate of `count` items, item by item; the first is the item's own.

        The items' own are the given ones, or those that follow from one.
        """
        seed = self.seed
        if whole(seed):
            seed = range(int(seed), int(seed) + count)
        if isinstance(seed, np.ndarray):
            seed = seed.tolist()
        seeds = list(seed) if isinstance(seed, Sequence) else [seed]
        if not all(map(whole, seeds)):
            raise UserError(f"seed: {shown(seed)}; give a whole number, or one for each item")
        if not all(-(2**63) <= each < 2**63 for each in seeds):
            raise UserError("seed: a seed is a whole number of at most 63 bits")
        if len(seeds) != count:
            raise UserError(f"seed: {len(seeds)} seeds for {count} items")
        return [
            int(generator(each, "candidate", k).integers(2**63)) if k else each
            for each in map(int, seeds)
            for k in range(self.best_of)
        ]


COMMON = tuple(field.name for field in fields(Common) if field.name != "best_of")


def split_options(options: dict[str, Any], best_of: int = 1) -> tuple[Common, dict[str, Any]]:
    """The options that every method takes, and a task's own."""
    common = {name: value for name, value in options.items() if name in COMMON}
    own = {name: value for name, value in options.items() if name not in COMMON}
    return Common(**common, best_of=best_of), own


def listed(items: Any, single: Any = ITEM) -> tuple[list, bool]:
    """Items as a list, and whether there was one alone, of the type or types `single`."""
    if isinstance(items, single):
        return [items], True
    if isinstance(items, (np.ndarray, torch.Tensor)) and items.ndim:
        items = list(items)
    if isinstance(items, (list, tuple, range)):
        return [_plain(item) for item in items], False
    raise UserError(f"expected one item or a list of them, got {type(items).__name__}")


def _plain(item: Any) -> Any:
    return item.item() if isinstance(item, torch.Tensor) and item.numel() == 1 else item


def each(value: Any, count: int, what: str) -> list[Any]:
    """One value for all, or one each."""
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise UserError(f"edit: {len(value)} of {what} for {count} pictures")
    return list(value)
