"""Scores of captions against references, as COCO's evaluation gives them: by pycocoevalcap.

| metric | figures | needs |
|---|---|---|
| bleu | bleu_1 to bleu_4 (Papineni et al., 2002), of the corpus | |
| rouge_l | ROUGE-L (Lin, 2004) | |
| cider | CIDEr-D (Vedantam et al., 2015): clipped, with a length penalty, 0 to 10 | |
| meteor | METEOR 1.5 | Java |
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from mmfusion.errors import UserError

from . import java
from .tokenizers import Tokenizer, choose, tokenise

FEW = 1000
"""Under so many pictures CIDEr's document frequencies say little; for a single one it is 0."""
SEPARATOR = re.compile(r"\|{3,}")
COUNTS = 23
"""Numbers that METEOR counts of a caption."""

Texts = list[str]
Scored = dict[str, tuple[float, Sequence[float]]]
"""Of each figure: the value of all pictures together, and of each."""


class Scores(NamedTuple):
    """Of all pictures together, and of each."""

    figures: dict[str, dict[str, Any]]  # name -> value, n, tokenizer, and perhaps a warning
    per_picture: dict[str, list[float]]  # name -> a score for each picture, in their order
    left_out: dict[str, str]  # metric -> what is missing to measure it


def score(
    references: list[Texts],
    candidates: Texts,
    metrics: Sequence[str] | None = None,
    tokenizer: Tokenizer = "auto",
    names: Texts | None = None,
) -> Scores:
    """Score one candidate a picture against that picture's references.

    Args:
        candidates: they may be empty.
        metrics: some of `METRICS`; None takes all that can be measured here.
        tokenizer: see tokenizers.py; `spaces` if captions are tokenised already.
        names: of the pictures, for messages (default: their numbers).
    """
    if len(references) != len(candidates) or not candidates:
        raise UserError(
            f"{len(candidates)} captions for the references of {len(references)} pictures; "
            "scores need one caption a picture, and a picture at least"
        )
    names = names or [str(number) for number in range(len(candidates))]
    wanted = list(METRICS if metrics is None else metrics)
    if unknown := [metric for metric in wanted if metric not in METRICS]:
        raise UserError(f"metric {unknown[0]}: there are {', '.join(METRICS)}")
    scores = Scores({}, {}, lacking(wanted))
    if metrics is not None and scores.left_out:
        raise UserError(f"meteor {scores.left_out['meteor']}")
    chosen = choose(tokenizer)
    flat = tokenise([*candidates, *(text for texts in references for text in texts)], chosen)
    words, rest = flat[: len(candidates)], iter(flat[len(candidates) :])
    known = [[next(rest) for _ in texts] for texts in references]
    for name, texts in zip(names, known, strict=True):
        if not any(texts):
            raise UserError(f"picture {name}: no word in its references; leave the picture out")
    for metric in wanted:
        if metric not in scores.left_out:
            about: dict[str, Any] = {"n": len(words), "tokenizer": chosen}
            if warning := _warning(metric, len(words), chosen):
                about["warning"] = warning
            for name, (value, each) in METRICS[metric](known, words, names).items():
                scores.per_picture[name] = [float(one) for one in each]
                scores.figures[name] = {"value": float(value), **about}
    return scores


def lacking(metrics: Sequence[str]) -> dict[str, str]:
    """What is missing here to measure some of the metrics."""
    missing = java.lacking() if "meteor" in metrics else ""
    return {"meteor": f"needs {missing}"} if missing else {}


def _warning(metric: str, n: int, tokenizer: str) -> str:
    few = f"{n} pictures are few: compare with the same alone"
    if metric == "cider":
        few = f"CIDEr of {n} pictures: compare only with the same {n} pictures"
    plain = "published scores use the tokenizer ptb (Java): do not compare with them"
    return "; ".join([few] * (n < FEW) + [plain] * (tokenizer == "plain"))


def _python(references: list[Texts], candidates: Texts) -> tuple[dict, dict]:
    """The form in which pycocoevalcap's classes take captions."""
    return dict(enumerate(references)), {n: [text] for n, text in enumerate(candidates)}


def _bleu(references: list[Texts], candidates: Texts, names: Texts) -> Scored:
    total, each = Bleu(4).compute_score(*_python(references, candidates), verbose=0)
    return {f"bleu_{k + 1}": (total[k], each[k]) for k in range(4)}


def _rouge(references: list[Texts], candidates: Texts, names: Texts) -> Scored:
    _, each = Rouge().compute_score(*_python(references, candidates))
    # Its split gives an empty caption one empty word, which an empty reference would share.
    each = [one if text else 0.0 for one, text in zip(each, candidates, strict=True)]
    return {"rouge_l": (float(np.mean(each)), each)}


def _cider(references: list[Texts], candidates: Texts, names: Texts) -> Scored:
    return {"cider": Cider().compute_score(*_python(references, candidates))}


def _meteor(references: list[Texts], candidates: Texts, names: Texts) -> Scored:
    """Denkowski and Lavie, 2014, for English: each caption's counts, and then the scores of all."""
    folder = java.JARS / "meteor"
    command = ["-Xms1G", "-Xmx2G", "-XX:+UseSerialGC", "-jar", "meteor-1.5.jar", "-", "-"]
    command += ["-stdio", "-l", "en", "-norm"]
    lines = []
    for texts, candidate in zip(references, candidates, strict=True):
        parts = (SEPARATOR.sub(" ", text) for text in [*texts, candidate])
        lines.append(" ||| ".join(["SCORE", *parts]))
    pictures = [f"picture {name}" for name in names]
    counts = java.run("METEOR", command, lines, pictures, folder)
    for picture, answer in zip(pictures, counts, strict=False):
        if len(answer.split()) != COUNTS:
            raise UserError(f"METEOR cannot score {picture}: {answer[:200]}")
    told = " ||| ".join(["EVAL", *counts])
    try:
        *each, total = map(float, java.run("METEOR", command, [told], (), folder))
        if len(each) != len(names) or not np.isfinite([*each, total]).all():
            raise ValueError(f"{len(each)} for {len(names)} pictures, or one is not finite")
    except ValueError as error:
        raise UserError(f"METEOR answers what are no scores: {error}") from None
    return {"meteor": (total, each)}


METRICS: dict[str, Callable[[list[Texts], Texts, Texts], Scored]] = {
    "bleu": _bleu,
    "rouge_l": _rouge,
    "cider": _cider,
    "meteor": _meteor,
}
