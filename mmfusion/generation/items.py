"""What callers give, one or many, as lists; how what is made is shown to them on the way."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image as Picture

from mmfusion.codecs.image import ImageCodec
from mmfusion.codecs.text import Tokenizer
from mmfusion.errors import UserError

OnPicture = Callable[[int, float, Picture.Image], None]
OnToken = Callable[[int, str], None]


def listed(items: Any, single: Any) -> tuple[list, bool]:
    """Items as a list, and whether there was one alone, of the type or types `single`."""
    if isinstance(items, single):
        return [items], True
    if isinstance(items, (list, tuple, np.ndarray, range, torch.Tensor)):
        return [i.item() if isinstance(i, torch.Tensor) else i for i in items], False
    raise UserError(f"expected one item or a list of them, got {type(items).__name__}")


def each(value: Any, count: int, what: str) -> list[Any]:
    """One value for all, or one each."""
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise UserError(f"edit: {len(value)} of {what} for {count} pictures")
    return list(value)


def seeds_of(seed: Any, count: int) -> list[int]:
    """The seed of each of `count` items: the given ones, or those that follow from one."""
    if isinstance(seed, (int, np.integer)):
        seed = range(int(seed), int(seed) + count)
    seeds = list(seed) if isinstance(seed, (Sequence, np.ndarray)) else [seed]
    if not all(isinstance(each, (int, np.integer)) for each in seeds):
        raise UserError(f"seed {seed!r}: give a whole number, or one for each item")
    if not all(-(2**63) <= each < 2**63 for each in seeds):
        raise UserError("seed: a seed is a whole number of at most 63 bits")
    if len(seeds) != count:
        raise UserError(f"seed: {len(seeds)} seeds for {count} items")
    return seeds


class PictureReport:
    """Latents as they stand, shown to the caller as pictures."""

    def __init__(self, codec: ImageCodec, batch: list[int], tell: OnPicture) -> None:
        self.codec, self.batch, self.tell = codec, batch, tell

    def __call__(self, share: float, latents: torch.Tensor) -> None:
        for number, picture in zip(self.batch, self.codec.decode(latents.numpy()), strict=True):
            self.tell(number, share, picture)


class TokenReport:
    """Token ids as they come, shown to the caller as the text so far."""

    def __init__(self, tokenizer: Tokenizer | None, batch: list[int], tell: OnToken) -> None:
        self.tokenizer, self.batch, self.tell = tokenizer, batch, tell
        self.ids: dict[int, list[int]] = {}

    def __call__(self, row: int, token: int) -> None:
        assert self.tokenizer is not None
        ids = self.ids.setdefault(row, [])
        ids.append(token)
        self.tell(self.batch[row], self.tokenizer.decode(ids).strip())
