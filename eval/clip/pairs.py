"""Pictures and their texts, embedded by a CLIP model: in parts, by any number of processes."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Picture
from tqdm import tqdm

from mmfusion.errors import UserError

from ..features import Rows
from .model import Clip, Pictures

Figure = dict[str, Any]

PART = 1024  # rows in a file of a shared work folder
FEW = 1000  # samples under which a mean cosine is not to be compared


@dataclass(frozen=True)
class Pairs:
    """Pictures and their texts, embedded: row i of each belongs together.

    Attributes:
        pictures, texts: (n, d) float32, of length 1.
        words: the n texts, without the prefix.
        about: what every figure depends on.
        cut: how many of the texts the model's context cut off.
        unsure: why the embeddings may be wrong.
    """

    pictures: np.ndarray
    texts: np.ndarray
    words: list[str]
    about: Figure
    cut: int = 0
    unsure: str = ""

    @property
    def cosines(self) -> np.ndarray:
        """(n,) float64, one a pair."""
        return np.einsum("nd,nd->n", self.pictures.astype(np.float64), self.texts)

    def figure(self, value: float | np.floating, doubt: str = "", **more: Any) -> Figure:
        """A number with what it depends on, and why to be careful with it."""
        n, doubts = len(self.words), []
        if n < FEW:
            doubts.append(f"{n} pairs are few: compare means of {FEW:,} or more")
        if self.cut:
            doubts.append(f"{self.cut} texts are longer than the model's context and were cut")
        doubts += filter(None, [self.unsure, doubt])
        warning = {"warning": "; ".join(doubts)} if doubts else {}
        return {"value": float(value), "n": n, **self.about, **more, **warning}


def embed_pairs(
    clip: Clip,
    pictures: Pictures,
    texts: Sequence[str],
    prefix: str = "",
    work: Path | None = None,
    digest: str = "",
) -> Pairs:
    """Embed pictures and the text of each.

    Args:
        clip: the model.
        pictures: n of them; read one at a time.
        texts: n of them.
        prefix: put before each text; CLIP scores use none, CLIPScore's own code `PREFIX`.
        work: a folder that processes share and that goes on where it was stopped; needs `digest`.
        digest: of the pictures' contents.

    Raises:
        UserError: their numbers differ, a text is empty, or a picture cannot be read.
    """
    words = _checked(pictures, texts)
    if work is not None and not digest:
        raise ValueError("a work folder needs the pictures' digest")
    key = [clip.identity, prefix, digest, words]
    folder = work and work / hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    distinct = list(dict.fromkeys(words))
    place = {text: number for number, text in enumerate(distinct)}
    rows = functools.partial(_rows, folder)
    shown = rows("pictures", len(words), lambda a, b: clip.embed_pictures(_Slice(pictures, a, b)))
    told = rows(
        "texts", len(distinct), lambda a, b: clip.embed_texts([prefix + t for t in distinct[a:b]])
    )
    cut = clip.cut([prefix + text for text in distinct])
    about = {"model": clip.name, "model_sha256": clip.sha256, "prefix": prefix}
    return Pairs(shown, told[[place[text] for text in words]], words, about, cut, clip.unsure)


class _Slice:
    """Pictures a to b, read when they are asked for."""

    def __init__(self, pictures: Pictures, a: int, b: int) -> None:
        self._pictures, self._a, self._b = pictures, a, b

    def __len__(self) -> int:
        return self._b - self._a

    def __getitem__(self, number: int) -> Picture.Image | np.ndarray:
        return self._pictures[self._a + number]


def _checked(pictures: Pictures, texts: Sequence[str]) -> list[str]:
    if len(pictures) != len(texts):
        raise UserError(f"{len(pictures)} pictures and {len(texts)} texts; each needs the other")
    if not len(texts):
        raise UserError("no pictures to score")
    empty = [number for number, text in enumerate(texts) if not text.strip()]
    if empty:
        raise UserError(
            f"text {empty[0]} is empty ({len(empty)} of {len(texts)} are); "
            "give each picture a text, or leave the picture out"
        )
    return list(texts)


def _rows(
    folder: Path | None, what: str, n: int, make: Callable[[int, int], np.ndarray]
) -> np.ndarray:
    """Rows 0 to n, made in parts that are the same for any number of processes."""
    spans = [(a, min(a + PART, n)) for a in range(0, n, PART)]
    if folder is None:
        bar = tqdm(total=n, desc=what, unit=what.rstrip("s"), delay=2, leave=False)
        with bar:
            made = []
            for a, b in spans:
                made.append(make(a, b))
                bar.update(b - a)
        return np.concatenate(made)

    kept = Rows(
        folder, f"{what}-", n, PART, lambda span: {"rows": make(span.start, span.stop)}, what,
        what.rstrip("s"),
    )  # fmt: skip
    return np.concatenate(kept.read()["rows"])
