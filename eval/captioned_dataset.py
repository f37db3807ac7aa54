"""Captioned pictures as an evaluation asks for them: prompts, pictures and references by number."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image as PILImage
from tqdm import tqdm

from mmfusion.data_pipelines.samples import FACTS, PICTURES
from mmfusion.data_pipelines.shards import Shards
from mmfusion.errors import UserError
from mmfusion.rng import generator

from .image_sets import whole_shards


class CaptionedDataset:
    """Shards with captions. A damaged sample stops the evaluation.

    Attributes:
        captions: of each picture, all of them.
        usable: those of them that fit into a row of the model.
        too_long: how many do not.
    """

    def __init__(self, pattern: str, fits: Callable[[str], bool] = lambda text: True) -> None:
        """Open the shards and read their captions.

        Args:
            fits: whether the model's rows hold a picture and this caption.

        Raises:
            UserError: no shards, a sample without captions, or captions that are all too long.
        """
        self.pattern, self.shards = pattern, whole_shards(pattern)
        self.captions: list[list[str]] = []
        for number in tqdm(range(len(self.shards)), "reading captions", leave=False, delay=2):
            sample = self.shards.sample(number, FACTS)
            self.captions.append(sample.captions())
        self.usable = [[text for text in texts if fits(text)] for texts in self.captions]
        self.too_long = sum(map(len, self.captions)) - sum(map(len, self.usable))
        if not any(self.usable):
            raise UserError(f"{pattern}: no caption is short enough for the model's rows")

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def about(self) -> dict[str, str]:
        """What a figure says of the corpus."""
        return {"data": self.pattern, "data_sha256": self.shards.digest}

    def prompts(self, count: int, seed: int) -> list[str]:
        """Usable captions in random order, one a picture before any has its turn again.

        The first of more prompts are the same as fewer.
        """
        numbers = [number for number, texts in enumerate(self.usable) if texts]
        prompts: list[str] = []
        for turn in range(-(-count // len(numbers))):
            order = generator("prompts", seed, turn).permutation(len(numbers))
            prompts += [self._caption(numbers[place], turn) for place in order]
        return prompts[:count]

    def _caption(self, number: int, turn: int) -> str:
        texts = self.usable[number]
        return texts[(number + turn) % len(texts)]  # pictures differ in their wording

    def pictures(self, count: int | None = None) -> "StoredImages":
        """The first `count` pictures (default: all)."""
        return StoredImages(self.shards, range(min(count or len(self), len(self))))


class StoredImages(Sequence[PILImage.Image]):
    """Pictures of shards by number, in any order, read when they are asked for.

    Attributes:
        digest: SHA-256 of which pictures they are.
    """

    def __init__(self, shards: Shards, numbers: Sequence[int]) -> None:
        self._shards, self._numbers = shards, numbers
        self.digest = hashlib.sha256(f"{shards.digest} {list(numbers)}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        return self._shards.sample(self._numbers[number], PICTURES).picture()

    def chosen(self, numbers: Sequence[int]) -> "StoredImages":
        """Some of them, each as often as it is named."""
        return StoredImages(self._shards, [self._numbers[number] for number in numbers])
