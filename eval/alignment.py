"""How well pictures match their texts, by a CLIP model: CLIP score, RefCLIPScore and retrieval.

All of it are cosines c between a picture's embedding and a text's:

    clip_score = 100 mean c           CLIP-S = mean 2.5 max(0, c)      (Hessel et al. 2021)
    RefCLIP-S = mean harmonic mean of CLIP-S and max(0, the highest c of caption and a reference)

A cosine depends on the model as much as on the pictures: compare only figures of one model.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage
from tqdm import tqdm

from mmfusion.errors import UserError
from mmfusion.rng import generator

from .clip.model import Clip
from .features import Rows
from .image_sets import ImageSet

Figure = dict[str, Any]

PART = 1024  # rows in a file of a shared work folder
FEW = 1000  # samples under which a mean cosine is not to be compared

WEIGHT = 2.5  # Hessel et al. 2021, equation 1
PREFIX = "A photo depicts "
"""What the code of Hessel et al. puts before each caption and reference."""


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
    pictures: Sequence[PILImage.Image] | ImageSet,
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
        prefix: put before each text.
        work: a folder that processes share and that goes on where it was stopped; needs `digest`.
        digest: of the pictures' contents.

    Raises:
        UserError: their numbers differ, a text is empty, or a picture cannot be read.
    """
    _check(len(pictures), texts)
    if work is not None and not digest:
        raise ValueError("a work folder needs the pictures' digest")
    words = list(texts)
    key = [clip.identity, prefix, digest, words]
    folder = work and work / hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    distinct = list(dict.fromkeys(words))
    place = {text: number for number, text in enumerate(distinct)}
    said = [prefix + text for text in distinct]
    shown = _rows(
        folder, "pictures", len(words), lambda span: clip.embed_images(pictures[i] for i in span)
    )
    told = _rows(folder, "texts", len(said), lambda span: clip.embed_texts([said[i] for i in span]))
    about = {"model": clip.name, "model_sha256": clip.sha256, "prefix": prefix}
    return Pairs(
        shown, told[[place[text] for text in words]], words, about, clip.cut(said), clip.unsure
    )


def _check(count: int, texts: Sequence[str]) -> None:
    if count != len(texts):
        raise UserError(f"{count} pictures and {len(texts)} texts; each needs the other")
    if not count:
        raise UserError("no pictures to score")
    if empty := [number for number, text in enumerate(texts) if not text.strip()]:
        raise UserError(
            f"text {empty[0]} is empty ({len(empty)} of {count} are); "
            "give each picture a text, or leave the picture out"
        )


def _rows(
    folder: Path | None, what: str, n: int, make: Callable[[range], np.ndarray]
) -> np.ndarray:
    """Rows 0 to n, made in parts that are the same for any number of processes."""
    unit = what.rstrip("s")
    if folder is not None:
        kept = Rows(folder, f"{what}-", n, PART, lambda span: {"rows": make(span)}, what, unit)
        return np.concatenate(kept.read()["rows"])
    spans = [range(n)[a : a + PART] for a in range(0, n, PART)]
    with tqdm(spans, what, unit=f"{PART} {what}", delay=2, leave=False) as bar:
        return np.concatenate([make(span) for span in bar])


def clip_score(pairs: Pairs) -> dict[str, Figure]:
    """Mean cosine, 100 times it, and CLIP-S; `pairs.cosines` has each pair's."""
    cosines = pairs.cosines
    return {
        "cosine": pairs.figure(cosines.mean()),
        "clip_score": pairs.figure(100 * cosines.mean()),
        "clip_s": pairs.figure(_clip_s(cosines).mean()),
    }


def ref_clip_score(
    clip: Clip, pairs: Pairs, references: Sequence[Sequence[str]]
) -> dict[str, Figure]:
    """CLIP-S and RefCLIP-S of captions, with each picture's references.

    The published code puts `PREFIX` before captions and references alike: embed the pairs with
    `prefix=PREFIX` to compare with it. References get the pairs' prefix.

    Raises:
        UserError: a picture has no reference, or there are not as many as captions.
    """
    if len(references) != len(pairs.words):
        raise UserError(f"{len(pairs.words)} captions, references for {len(references)} pictures")
    for number, given in enumerate(references):
        if not given or not all(text.strip() for text in given):
            raise UserError(f"references of picture {number}: none, or an empty one")
    prefix = pairs.about["prefix"]
    distinct = list(dict.fromkeys(text for given in references for text in given))
    place = {text: number for number, text in enumerate(distinct)}
    embedded = clip.embed_texts([prefix + text for text in distinct]).astype(np.float64)
    nearest = np.array(
        [
            max(embedded[[place[t] for t in given]] @ text.astype(np.float64))
            for text, given in zip(pairs.texts, references, strict=True)
        ]
    ).clip(0)
    shown = _clip_s(pairs.cosines)
    both = shown + nearest
    harmonic = np.divide(2 * shown * nearest, both, out=np.zeros_like(both), where=both > 0)
    return {
        "clip_s": pairs.figure(shown.mean()),
        "ref_clip_s": pairs.figure(harmonic.mean()),
    }


def ranks(pairs: Pairs, seed: int = 0, others: int = 99) -> tuple[np.ndarray, int]:
    """Where each picture's own text stands among others: 1 is the best; ties share their mean.

    The others are drawn by (seed, number of the picture) alone among the distinct texts, so the
    own text is never among them; texts that differ in case or spaces alone are equal.

    Returns:
        (n,) ranks, and among how many texts.

    Raises:
        UserError: all texts are equal.
    """
    same = [" ".join(text.lower().split()) for text in pairs.words]
    first = {text: number for number, text in reversed(list(enumerate(same)))}
    distinct = list(dict.fromkeys(same))
    place = {text: number for number, text in enumerate(distinct)}
    rows = pairs.texts[[first[text] for text in distinct]].astype(np.float64)
    count = min(others, len(distinct) - 1)
    if count < 1:
        raise UserError("retrieval: all texts are equal; it needs two or more different ones")
    found = np.empty(len(same))
    for number, text in enumerate(same):
        drawn = generator("retrieval", seed, number).choice(len(distinct) - 1, count, replace=False)
        drawn = drawn + (drawn >= place[text])  # the own text is passed over
        texts = np.vstack([pairs.texts[number].astype(np.float64), rows[drawn]])
        # Not a product of matrices: it may round equal rows in different ways.
        own, *rest = np.sum(texts * pairs.pictures[number], axis=1)
        found[number] = 1 + np.sum(rest > own) + np.sum(rest == own) / 2
    return found, count + 1


def retrieval(pairs: Pairs, seed: int = 0, others: int = 99) -> dict[str, Figure]:
    """How often a picture's own text is the best of 100, or among the best 5; and its ranks."""
    found, among = ranks(pairs, seed, others)
    few = f"only {among} different texts to choose from" if among <= others else ""
    figure = functools.partial(pairs.figure, among=among, seed=seed, doubt=few)
    return {
        "recall_at_1": figure(np.mean(found <= 1)),
        "recall_at_5": figure(np.mean(found <= 5)),
        "mean_rank": figure(float(found.mean())),
        "median_rank": figure(np.median(found)),
    }


def _clip_s(cosines: np.ndarray) -> np.ndarray:
    return WEIGHT * cosines.clip(0)
