"""The real digits that a model is measured against, as the digits pipeline wrote them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from mmfusion.codecs.image import flat
from mmfusion.data_pipelines.shards import Shards
from mmfusion.errors import UserError

SIDE = 8


@dataclass(frozen=True)
class Digits:
    """8-bit grey pictures (n, 8, 8) and their labels (n,)."""

    pictures: np.ndarray
    labels: np.ndarray

    @property
    def digest(self) -> str:
        """SHA-256 of both."""
        return hashlib.sha256(self.pictures.tobytes() + bytes(self.labels.tolist())).hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def drawn(self) -> list[PILImage.Image]:
        """The pictures as a pipeline takes them."""
        return [PILImage.fromarray(p) for p in self.pictures]

    def first(self, count: int | None) -> "Digits":
        """The first `count` (default: all), the classes taking turns."""
        turn = np.zeros(len(self), int)
        for digit in range(10):
            mine = self.labels == digit
            turn[mine] = np.arange(mine.sum())
        chosen = np.lexsort((self.labels, turn))[:count]
        return Digits(self.pictures[chosen], self.labels[chosen])


def read_digits(data: Path, name: str) -> Digits:
    """The shards `name`-*.tar of the folder `data`.

    Raises:
        UserError: no such shards, or a sample without a digit or with a picture of another size.
    """
    shards = Shards(str(data / f"{name}-*.tar"), "make them with `mmfusion data digits`")
    pictures, labels = [], []
    for number in range(len(shards)):
        sample = shards[number]
        pixels, label = np.asarray(flat(sample.picture()).convert("L")), sample.json().get("label")
        if pixels.shape != (SIDE, SIDE) or label not in range(10):
            raise UserError(f"{sample.where}: not a digit of 8x8 pixels with a label from 0 to 9")
        pictures.append(pixels)
        labels.append(label)
    return Digits(np.stack(pictures), np.array(labels))
