"""How well pictures match their texts, by a CLIP model: CLIP score, RefCLIPScore and retrieval.

All of it are cosines c between a picture's embedding and a text's:

    clip_score = 100 mean c           CLIP-S = mean 2.5 max(0, c)      (Hessel et al. 2021)
    RefCLIP-S = mean harmonic mean of CLIP-S and max(0, the highest c of caption and a reference)

A cosine depends on the model as much as on the pictures: compare only figures of one model.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from mmfusion.errors import UserError
from mmfusion.rng import generator

from .clip.model import Clip
from .clip.pairs import Figure, Pairs

WEIGHT = 2.5  # Hessel et al. 2021, equation 1
PREFIX = "A photo depicts "
"""What the code of Hessel et al. puts before each caption and reference."""


def named(pairs: Pairs, source: str, digest: str, texts: str) -> Pairs:
    """The same pairs, whose figures say of which pictures and texts they are.

    Args:
        source: where the pictures are from.
        digest: of the pictures' contents.
        texts: where the texts are from; their digest is of the texts themselves, in order.
    """
    words = hashlib.sha256(json.dumps(pairs.words).encode()).hexdigest()
    about = {"source": source, "source_sha256": digest, "texts": texts, "texts_sha256": words}
    return dataclasses.replace(pairs, about={**pairs.about, **about})


def clip_score(pairs: Pairs) -> dict[str, Figure]:
    """Mean cosine, 100 times it, and CLIP-S; `pairs.cosines` has each pair's."""
    cosines = pairs.cosines
    return {
        "cosine": pairs.figure(cosines.mean()),
        "clip_score": pairs.figure(100 * cosines.mean()),
        "clip_s": pairs.figure(_clip_s(cosines).mean()),
    }


def ref_clip_score(
    clip: Clip,
    pairs: Pairs,
    references: Sequence[Sequence[str]],
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
