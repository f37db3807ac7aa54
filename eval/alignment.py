"""How well pictures match their texts, by a CLIP model: CLIP score and RefCLIPScore.

All of it are cosines c between a picture's embedding and a text's:

    clip_score = 100 mean c           CLIP-S = mean 2.5 max(0, c)      (Hessel et al. 2021)
    RefCLIP-S = mean harmonic mean of CLIP-S and max(0, the highest c of caption and a reference)

A cosine depends on the model as much as on the pictures: compare only figures of one model.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmfusion.errors import UserError
from mmfusion.home import cache_folder

from .clip import Clip
from .features import parts_of, rows

Figure = dict[str, Any]

PART = 1024  # rows in a file of a shared work folder
FEW = 1000  # samples under which a mean cosine is not to be compared
WEIGHT = 2.5  # Hessel et al. 2021, equation 1
PREFIX = "A photo depicts "
"""What the code of Hessel et al. puts before each caption and reference."""


class Pairs(NamedTuple):
    """Pictures and their texts, embedded: row i of each belongs together."""

    pictures: np.ndarray  # (n, d) float32, of length 1
    texts: np.ndarray
    about: Figure  # what every figure depends on
    doubts: tuple[str, ...]  # why to be careful with them

    @property
    def cosines(self) -> np.ndarray:
        """(n,) float64, one a pair."""
        return np.einsum("nd,nd->n", self.pictures.astype(np.float64), self.texts)

    def figure(self, value: float | np.floating) -> Figure:
        """A number with what it depends on, and why to be careful with it."""
        figure = {"value": float(value), "n": len(self.texts), **self.about}
        warning = "; ".join(self.doubts)
        return {**figure, "warning": warning} if warning else figure


def embed_pairs(
    clip: Clip, pictures: Any, texts: Sequence[str], prefix: str = "", work: Path | None = None
) -> Pairs:
    """Embed pictures and the text of each, with all other ranks; what is kept is not made again.

    Args:
        pictures: a sequence that has a `digest` of its contents; read one at a time.
        prefix: put before each text.
        work: where embeddings are kept (default: the user's cache).
    """
    n = len(texts)
    if len(pictures) != n or not n:
        raise UserError(f"{len(pictures)} pictures and {n} texts; give each picture a text")
    if empty := [number for number, text in enumerate(texts) if not text.strip()]:
        raise UserError(
            f"text {empty[0]} is empty ({len(empty)} of {n} are); "
            "give each picture a text, or leave the picture out"
        )
    key = [clip.identity, prefix, pictures.digest, list(texts)]
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    place = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    said = [prefix + text for text in place]

    def kept(what: str, count: int, make: Callable[[range], np.ndarray]) -> np.ndarray:
        parts = parts_of((work or cache_folder() / "embeddings") / name, f"{what}-", count, PART)
        return rows(parts, lambda span: {"rows": make(span)}, what, what[:-1], True)["rows"]

    shown = kept("pictures", n, lambda span: clip.embed_images(pictures[i] for i in span))
    told = kept("texts", len(said), lambda span: clip.embed_texts([said[i] for i in span]))
    cut = clip.cut(said)
    doubts = (
        f"{n} pairs are few: compare means of {FEW:,} or more" if n < FEW else "",
        f"{cut} texts are longer than the model's context and were cut" if cut else "",
        clip.unsure,
    )
    about = {"model": clip.name, "model_sha256": clip.sha256, "prefix": prefix}
    own = told[[place[text] for text in texts]]
    return Pairs(shown, own, about, tuple(filter(None, doubts)))


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
    """
    place = {
        text: i for i, text in enumerate(dict.fromkeys(t for each in references for t in each))
    }
    embedded = clip.embed_texts([pairs.about["prefix"] + text for text in place])
    embedded = embedded.astype(np.float64)
    nearest = [
        max(0, *(embedded[[place[text] for text in given]] @ caption.astype(np.float64)))
        for caption, given in zip(pairs.texts, references, strict=True)
    ]
    shown = _clip_s(pairs.cosines)
    both = shown + nearest
    harmonic = np.divide(2 * shown * nearest, both, out=np.zeros_like(both), where=both > 0)
    return {"clip_s": pairs.figure(shown.mean()), "ref_clip_s": pairs.figure(harmonic.mean())}


def _clip_s(cosines: np.ndarray) -> np.ndarray:
    return WEIGHT * cosines.clip(0)
