"""Real grey pictures with classes and captions: Fashion-MNIST from its IDX files, and digits.

A caption says what a picture shows and how bright that is ("a dark ankle boot"), so that it can be
right or wrong in two ways, and both can be seen in the picture.
"""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmfusion.data_pipelines.converters.digits import NAMES, load_digits, split_digits

CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat",
           "sandal", "shirt", "sneaker", "bag", "ankle boot")  # fmt: skip
TONES = ("dark", "grey", "bright")
WORDINGS = ("a {tone} {name}", "{name}, {tone}", "a picture of a {tone} {name}",
            "this {name} is {tone}")  # fmt: skip
Part = tuple[np.ndarray, np.ndarray]
"""Pictures and classes."""


@dataclass(frozen=True)
class LabelledImages:
    """Grey pictures (n, H, H) of 8 bits, their classes (n,) and tones (n,)."""

    pixels: np.ndarray
    labels: np.ndarray
    tones: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class Data:
    """A training part, a part that no model sees, and the names of the classes."""

    train: LabelledImages
    test: LabelledImages
    names: tuple[str, ...]

    def captions(self, label: int, tone: int) -> list[str]:
        """All wordings of a class and a tone."""
        return [w.format(name=self.names[label], tone=TONES[tone]) for w in WORDINGS]


def corpus(data: Data) -> list[str]:
    """Every caption there is."""
    labels, tones = range(len(data.names)), range(len(TONES))
    return [caption for label in labels for tone in tones for caption in data.captions(label, tone)]


def read_data(name: str, size: int, folder: Path) -> Data:
    """A data set at pictures of `size` pixels; `folder` is Fashion-MNIST's."""
    return fashion(folder, size) if name == "fashion" else digits()


def fashion(folder: Path, size: int) -> Data:
    """Fashion-MNIST at 28 pixels, or at 14 by averaging squares of four.

    Raises:
        SystemExit: the four IDX files are not in `folder`.
    """
    parts = []
    for part in ("train", "t10k"):
        arrays = []
        for kind, skip in (("images-idx3", 16), ("labels-idx1", 8)):
            path = folder / f"{part}-{kind}-ubyte.gz"
            if not path.is_file():
                raise SystemExit(
                    f"{path}: no such file; --fashion names the folder of Fashion-MNIST's four "
                    "files (github.com/zalandoresearch/fashion-mnist, data/fashion)"
                )
            arrays.append(np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=skip))
        pixels = arrays[0].reshape(-1, size, 28 // size, size, 28 // size).mean((2, 4))
        parts.append((np.rint(pixels).astype(np.uint8), arrays[1].astype(int)))
    return _data(parts[0], parts[1], CLOTHES)


def digits() -> Data:
    """scikit-learn's 1,797 real digits of 8 pixels; 297 of them are held out."""
    pixels, labels = load_digits()
    train, test = ((pixels[part], labels[part]) for part in split_digits(labels))
    return _data(train, test, tuple(NAMES))


def _data(train: Part, test: Part, names: tuple[str, ...]) -> Data:
    # Thirds of the training pictures by the mean of what is not background.
    edges = np.quantile(_brightness(train[0]), (1 / 3, 2 / 3))
    first, second = (
        LabelledImages(pixels, labels, np.digitize(_brightness(pixels), edges))
        for pixels, labels in (train, test)
    )
    return Data(first, second, names)


def _brightness(pixels: np.ndarray) -> np.ndarray:
    shown = pixels > 16
    return (pixels * shown).sum((1, 2)) / np.maximum(shown.sum((1, 2)), 1)
