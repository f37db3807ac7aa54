"""What callers give, one or many, as lists; how what is made is shown to them on the way."""

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

from mmfusion.codecs.image import ImageCodec
from mmfusion.codecs.text import Tokenizer
from mmfusion.errors import UserError

OnImage = Callable[[int, float, PILImage.Image], None]
OnToken = Callable[[int, str], None]


MOST_SHOWN = 80  # characters of a value in a message


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


def check_common(
    batch_size: Any, progress: Any = False, on_picture: Any = None, on_token: Any = None
) -> None:
    """Refuse values of the options that every method takes."""
    if not whole(batch_size) or batch_size < 1:
        raise UserError(f"batch_size: {shown(batch_size)}; give a whole number of 1 or more")
    if not isinstance(progress, (bool, int)):
        raise UserError(f"progress: {shown(progress)}; give True or False")
    for name, callback in (("on_picture", on_picture), ("on_token", on_token)):
        if callback is not None and not callable(callback):
            raise UserError(f"{name}: {shown(callback)}; give a function")


def listed(items: Any, single: Any) -> tuple[list, bool]:
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


def seeds_of(seed: Any, count: int) -> list[int]:
    """The seed of each of `count` items: the given ones, or those that follow from one."""
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
    return seeds


class ImageCallback:
    """Latents as they stand, shown to the caller as pictures."""

    def __init__(self, codec: ImageCodec, batch: list[int], callback: OnImage) -> None:
        self.codec, self.batch, self.callback = codec, batch, callback

    def __call__(self, share: float, latents: torch.Tensor) -> None:
        for number, picture in zip(self.batch, self.codec.decode(latents.numpy()), strict=True):
            self.callback(number, share, picture)


class TokenCallback:
    """Token ids as they come, shown to the caller as the text so far."""

    def __init__(self, tokenizer: Tokenizer | None, batch: list[int], callback: OnToken) -> None:
        self.tokenizer, self.batch, self.callback = tokenizer, batch, callback
        self.ids: dict[int, list[int]] = {}

    def __call__(self, row: int, token: int) -> None:
        assert self.tokenizer is not None
        ids = self.ids.setdefault(row, [])
        ids.append(token)
        self.callback(self.batch[row], self.tokenizer.decode(ids).strip())
