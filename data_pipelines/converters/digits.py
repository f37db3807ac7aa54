"""scikit-learn's 1,797 real handwritten digits (8x8) as shards for all four tasks.

The split is fixed: 1,500 for training and 297 held out, stratified, seed 0; it is written to
`split.json`. The pictures are 8-bit grey: value v of 0..16 becomes round(v * 255 / 16).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from mmfusion import files
from mmfusion.codecs.image import encoded
from mmfusion.errors import UserError
from mmfusion.rng import generator

from ..shards import write_shards
from ..tokenizer import train_tokenizer

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CAPTIONS = [
    "a handwritten {name}",
    "the digit {number}",
    "the number {name}",
    "a picture of a {name}",
    "somebody wrote the digit {name}",
    "{name}, drawn by hand",
    "this is the numeral {number}",
    "a small grey image of the number {number}",
    "handwriting that shows a {name}",
    "the figure {number} in pen",
]
CONTINUATION = "then comes"
TRAIN, HELD_OUT = 1500, 297
SPLIT = "split.json"
WRITTEN = (
    SPLIT, "train-00000.tar", "held_out-00000.tar", "interleaved-00000.tar", "tokenizer.model",
)  # fmt: skip
PAIRS = 4  # interleaved samples that begin with each training picture


def captions(label: int) -> list[str]:
    """The differently worded captions of a digit."""
    return [caption.format(name=NAMES[label], number=label) for caption in CAPTIONS]


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pictures (1797, 8, 8) of 8-bit grey, and labels (1797,)."""
    from sklearn.datasets import load_digits as load

    values, labels = load(return_X_y=True)
    grey = np.rint(values * (255 / 16)).astype(np.uint8)
    return grey.reshape(-1, 8, 8), labels.astype(int)


def split_digits(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and the held-out samples."""
    from sklearn.model_selection import train_test_split

    train, held_out = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=0
    )
    return np.sort(train), np.sort(held_out)


def png(pixels: np.ndarray) -> bytes:
    """An 8-bit array as a PNG file."""
    return encoded(PILImage.fromarray(pixels))


def write_digits(folder: Path) -> bool:
    """Write `train`, `held_out` and `interleaved` shards, the tokenizer and the split.

    Whether there was anything to write. A folder with something else is refused.
    """
    there = [name for name in WRITTEN if (folder / name).is_file()]
    ours = _is_split(folder / SPLIT)
    if ours and len(there) == len(WRITTEN):
        return False
    if there and not ours:
        raise UserError(f"{folder / there[0]}: is there and not of these data; give another folder")
    pictures, labels = load_digits()
    parts = dict(zip(("train", "held_out"), split_digits(labels), strict=True))
    split = {name: part.tolist() for name, part in parts.items()}
    files.write(folder / SPLIT, json.dumps(split).encode())
    for name, part in parts.items():
        facts = {i: {"label": int(labels[i]), "captions": captions(labels[i])} for i in part}
        samples = ((f"digit{i:04d}", {"json": facts[i], "png": png(pictures[i])}) for i in part)
        write_shards(folder, name, samples)
    interleaved = _interleaved(pictures, labels, parts["train"])
    write_shards(folder, "interleaved", interleaved, per_shard=10_000)
    corpus = [caption for label in range(10) for caption in captions(label)]
    train_tokenizer([*corpus, CONTINUATION, *NAMES], folder / "tokenizer.model", 512)
    return True


def _is_split(path: Path) -> bool:
    """Whether a file is the split that `write_digits` writes first."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    if not isinstance(found, dict):
        return False
    sizes = {name: len(part) for name, part in found.items() if isinstance(part, list)}
    return sizes == {"train": TRAIN, "held_out": HELD_OUT}


def _interleaved(
    pictures: np.ndarray, labels: np.ndarray, part: np.ndarray
) -> Iterator[tuple[str, dict[str, Any]]]:
    """A digit, "then comes", the next digit's name and a picture of it (after nine comes zero)."""
    for i in part:
        following = (labels[i] + 1) % 10
        rng = generator("digits", "interleaved", int(i))
        for pair, j in enumerate(rng.choice(part[labels[part] == following], PAIRS, False)):
            content = [
                {"image": "0.png"},
                {"text": CONTINUATION},
                {"answer": NAMES[following]},
                {"image": "1.png", "target": True},
            ]
            members = {"0.png": png(pictures[i]), "1.png": png(pictures[j])}
            yield f"pair{i:04d}_{pair}", {"json": {"content": content}, **members}
