"""Which name and which style a picture shows, by a network that is not ours.

The name is right if, of 100 real pictures in the requested style, the one of the requested name is
nearest in the network's pooled features (by angle). The style is told by a linear classifier on the
network's "style": it has seen real pictures through the model's codec, of names outside the test.
Nothing of the network is used in a codec or in training.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image as PILImage
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmfusion.codecs.image import ImageCodec
from mmfusion.data_pipelines.converters.emoji import Cell
from mmfusion.device import one_thread
from mmfusion.rng import generator

from ..extractors import Arrays, Extractor
from ..features import extract
from ..image_sets import Pictures
from ..tasks import Places
from .cells import Test

CHOICES = 100
"""Names among which the right one is to be nearest."""
CODED = 256  # pictures that go through the codec at a time


class Verdict(NamedTuple):
    """About each picture (n,): whether name and style are the requested ones."""

    name: np.ndarray
    style: np.ndarray

    @property
    def both(self) -> np.ndarray:
        """Of the same picture."""
        return self.name & self.style


class Judge:
    """Says of pictures whether they are the cells that were asked for.

    Attributes:
        decoded: the real pictures through the codec, by cell.
    """

    def __init__(self, extractor: Extractor, test: Test, codec: ImageCodec, places: Places) -> None:
        """Look at all real pictures, as they are and through the codec."""
        self.extractor, self.places, self.seed = extractor, places, test.seed
        real = test.real.pictures
        self.decoded = dict(zip(real, _decoded(codec, [*real.values()]), strict=True))
        self._place = {cell: number for number, cell in enumerate(real)}
        self._real = self.see("real emoji", [*real.values()], shared=True)
        self._coded = self.see("emoji, decoded", [*self.decoded.values()], shared=True)
        outside = [cell for cell in real if cell[0] not in test.names]
        classifier = LogisticRegression(C=0.1, max_iter=1000)
        self._style = make_pipeline(StandardScaler(), classifier)
        with one_thread():
            self._style.fit(self.of(outside)["style"], [style for _, style in outside])

    def see(self, what: str, pictures: Sequence[PILImage.Image], shared: bool = False) -> Arrays:
        """What the network gives of pictures."""
        place = self.places.shared if shared else self.places.own
        return extract(Pictures(what, pictures), self.extractor, place)

    def of(self, cells: Sequence[Cell], decoded: bool = True) -> Arrays:
        """What it gives of real pictures, through the codec unless told otherwise."""
        at = [self._place[cell] for cell in cells]
        arrays = self._coded if decoded else self._real
        return {name: array[at] for name, array in arrays.items()}

    def __call__(self, seen: Arrays, wanted: Sequence[Cell]) -> Verdict:
        """Judge pictures by their arrays, each against the cell that was wanted."""
        style = self._style.predict(seen["style"]) == [cell[1] for cell in wanted]
        pairs = zip(directions(seen["features"]), wanted, strict=True)
        return Verdict(np.array([self._is(of, cell) for of, cell in pairs], bool), style)

    def _is(self, direction: np.ndarray, wanted: Cell) -> bool:
        others = sorted(c for c in self._place if c[1] == wanted[1] and c != wanted)
        order = generator("emoji", "judge", self.seed, *wanted).permutation(len(others))
        choices = [wanted, *(others[number] for number in order[: CHOICES - 1])]
        real = directions(self.of(choices, decoded=False)["features"])
        return bool((real @ direction).argmax() == 0)


def _decoded(codec: ImageCodec, pictures: list[PILImage.Image]) -> Iterator[PILImage.Image]:
    for at in range(0, len(pictures), CODED):
        yield from codec.decode(codec.encode(pictures[at : at + CODED]))


def directions(features: np.ndarray) -> np.ndarray:
    """Features (n, d) of length 1, in float64."""
    found = features.astype(np.float64)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def nearest(features: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of some known features (n,), and 1 - cosine to it (n,)."""
    cosines = directions(features) @ directions(known).T
    return cosines.argmax(1), 1 - cosines.max(1)
