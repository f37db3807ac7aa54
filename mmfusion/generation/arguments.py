"""What callers give: items, one or many, as lists; the options that every method takes, checked."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from PIL import Image as PILImage
from pydantic import Field, model_validator

from mmfusion.config.section import Section, build
from mmfusion.errors import UserError, shown, user_error
from mmfusion.rng import generator

OnImage = Callable[[int, float, PILImage.Image], None]
OnToken = Callable[[int, str], None]

ITEM = (int, str, np.integer, PILImage.Image)


SAME = {"guidance_scale": "guidance", "num_beams": "beams"}
"""What diffusers or transformers call an option that means the same."""
MEANT = {**SAME, "steps": "num_inference_steps"}
"""Which option a name is for, where the nearest by its letters is another."""
INSTEAD = {
    "generator": "give seed=5 (item i uses seed + i), or a list of one seed an item; a generator's "
    "state would make a picture depend on those before it",
    "num_images_per_prompt": "give the prompt so many times, as [prompt] * 4",
    "num_return_sequences": "give the picture so many times, as [picture] * 4",
    "negative_prompt": "guidance is against the prompt left out; there is nothing to put there",
    "callback_on_step_end": "give on_picture, called with (item, share done, picture)",
    "callback": "give on_picture, called with (item, share done, picture)",
    "strength": "edit draws the masked part anew in full; make the mask smaller",
    "height": "pictures have the model's size, pipeline.config.image.size",
    "width": "pictures have the model's size, pipeline.config.image.size",
    "output_type": "answers are PIL pictures; numpy.asarray(picture) makes an array",
    "return_dict": "answers are PIL pictures and str, in no other object",
    "do_sample": "give temperature; 0 takes the likeliest token, 1 draws",
}
"""What they have and we have not, with what is done instead."""


def ours(options: dict[str, Any]) -> dict[str, Any]:
    """Options under our names; those of diffusers and transformers are known, or told apart."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name in INSTEAD and value is not None:
            raise UserError(f"{name}: there is no such option here; {INSTEAD[name]}")
        own = SAME.get(name, name)
        if own != name and own in options:
            raise UserError(f"{own} and {name} are the same; give one of them")
        if name not in INSTEAD:
            found[own] = value
    return found


def whole(value: Any) -> bool:
    """Whether a value is a whole number; True and False are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_names(given: Iterable[Any], known: Sequence[str], what: str) -> None:
    """Refuse an option that does not exist; the message has the nearest one, and all of them."""
    for name in given:
        if name not in known:
            near = [MEANT[name]] if name in MEANT else get_close_matches(str(name), known, 1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(f"{what} {name}: no such option{meant}; choose from {', '.join(known)}")


P = ParamSpec("P")
R = TypeVar("R")


def told_apart(method: Callable[P, R]) -> Callable[P, R]:
    """A method to which an option that it does not have is a user's mistake, not a TypeError."""
    known = [name for name in signature(method).parameters if name not in ("self", "cls")]

    @wraps(method)
    def checked(*given: P.args, **options: P.kwargs) -> R:
        check_names(options, known, f"option of {method.__name__}")
        return method(*given, **options)

    return checked


class Common(Section):
    """The options of every method beside those of `Sampling`, and the candidates of each item."""

    seed: Any = 0
    batch_size: int = Field(128, gt=0)
    on_picture: OnImage | None = None
    on_token: OnToken | None = None
    progress: bool = False
    best_of: int = Field(1, gt=0, le=10_000)
    """All of an item's candidates are in memory."""

    @model_validator(mode="after")
    def _check(self) -> "Common":
        for name in ("on_picture", "on_token"):
            if self.best_of > 1 and getattr(self, name):
                raise ValueError(f"best_of: the best is known when all are there; leave {name} out")
        return self

    def seeds(self, count: int) -> list[int]:
        """The seed of each candidate of `count` items, item by item; the first is the item's own.

        The items' own are the given ones, or those that follow from one.
        """
        seed = self.seed
        if whole(seed) and -(2**63) <= seed < 2**63:
            seed = range(int(seed), int(seed) + count)
        if isinstance(seed, np.ndarray):
            seed = seed.tolist()
        seeds = list(seed) if isinstance(seed, Sequence) else [seed]
        if not all(whole(each) and -(2**63) <= each < 2**63 for each in seeds):
            raise UserError(
                f"seed: {shown(seed)}; give a whole number of at most 63 bits, or one for each item"
            )
        if len(seeds) != count:
            raise UserError(f"seed: {len(seeds)} seeds for {count} items")
        return [
            int(generator(each, "candidate", k).integers(2**63)) if k else each
            for each in map(int, seeds)
            for k in range(self.best_of)
        ]


COMMON = tuple(name for name in Common.model_fields if name != "best_of")


def split_options(options: dict[str, Any], best_of: int = 1) -> tuple[Common, dict[str, Any]]:
    """The options that every method takes, and a task's own."""
    options = ours(options)
    common = {name: value for name, value in options.items() if name in COMMON}
    own = {name: value for name, value in options.items() if name not in COMMON}
    return build(Common, {**common, "best_of": best_of}, "options"), own


def readable(what: str) -> AbstractContextManager[None]:
    """While a tensor is read: it may be sparse or nested, or hold no numbers at all (meta)."""
    return user_error(f"{what}: the tensor cannot be read; give an array of numbers", RuntimeError)


def listed(items: Any, single: Any = ITEM) -> tuple[list, bool]:
    """Items as a list, and whether there was one alone, of the type or types `single`."""
    if isinstance(items, single):
        return [items], True
    with readable("items"):
        if isinstance(items, (np.ndarray, torch.Tensor)) and items.ndim:
            items = list(items)
        if isinstance(items, (list, tuple, range)):
            alone = [isinstance(item, torch.Tensor) and item.numel() == 1 for item in items]
            return [i.item() if one else i for i, one in zip(items, alone, strict=True)], False
    raise UserError(f"expected one item or a list of them, got {type(items).__name__}")


def each(value: Any, count: int, what: str) -> list[Any]:
    """One value for all, or one each."""
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise UserError(f"edit: {len(value)} of {what} for {count} pictures")
    return list(value)
