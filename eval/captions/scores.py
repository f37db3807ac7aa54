"""Scores of captions against references, as COCO's evaluation gives them: by pycocoevalcap.

| metric | figures | needs |
|---|---|---|
| bleu | bleu_1 to bleu_4 (Papineni et al., 2002), of the corpus | |
| rouge_l | ROUGE-L (Lin, 2004) | |
| cider | CIDEr-D (Vedantam et al., 2015): clipped, with a length penalty, 0 to 10 | |
| meteor | METEOR 1.5 | Java |
| spice | SPICE | Java, Stanford CoreNLP |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmfusion.errors import UserError

from .meteor import Scored, meteor
from .meteor import lacking as meteor_lacking
from .spice import lacking as spice_lacking
from .spice import spice
from .tokenizers import Tokenizer, choose, tokenise

FEW = 1000
"""Under so many pictures CIDEr's document frequencies say little; for a single one it is 0."""


@dataclass
class Scores:
    """Of all pictures together, and of each.

    Attributes:
        figures: name -> {"value", "n", "tokenizer"}, with a "warning" where there is one.
        per_picture: name -> a score for each picture, in their order.
        left_out: metric -> what is missing to measure it.
    """

    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    per_picture: dict[str, list[float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def score(
    references: list[list[str]],
    candidates: list[str],
    metrics: Sequence[str] | None = None,
    tokenizer: Tokenizer = "auto",
    names: list[str] | None = None,
) -> Scores:
    """Score one candidate a picture against that picture's references.

    Args:
        references: of each picture, one or more captions.
        candidates: of each picture, one caption; it may be empty.
        metrics: some of `METRICS`; None takes all that can be measured here, and says in
            `left_out` what the others need.
        tokenizer: see tokenizers.py; `spaces` if captions are tokenised already.
        names: of the pictures, for messages (default: their numbers).

    Raises:
        UserError: lists of different lengths, a picture whose references hold no word, a metric
            that is not known or, if asked for by name, cannot be measured here.
    """
    if len(references) != len(candidates) or not candidates:
        raise UserError(
            f"{len(candidates)} captions for the references of {len(references)} pictures; "
            "scores need one caption a picture, and a picture at least"
        )
    names = names or [str(number) for number in range(len(candidates))]
    scores = Scores()
    for metric in _known(metrics):
        missing = LACKING[metric]() if metric in LACKING else None
        if missing and metrics is not None:
            raise UserError(f"{metric} needs {missing}")
        if missing:
            scores.left_out[metric] = f"needs {missing}"
    chosen = choose(tokenizer)
    flat = tokenise([*candidates, *(text for texts in references for text in texts)], chosen)
    words, rest = flat[: len(candidates)], iter(flat[len(candidates) :])
    known = [[next(rest) for _ in texts] for texts in references]
    for name, texts in zip(names, known, strict=True):
        if not any(texts):
            raise UserError(f"picture {name}: no word in its references; leave the picture out")
    for metric in _known(metrics):
        if metric in scores.left_out:
            continue
        for name, (value, each) in METRICS[metric](known, words, names).items():
            scores.per_picture[name] = [float(one) for one in each]
            figure: dict[str, Any] = {"value": float(value), "n": len(words), "tokenizer": chosen}
            if warning := _warning(metric, len(words), chosen):
                figure["warning"] = warning
            scores.figures[name] = figure
    return scores


def _known(metrics: Sequence[str] | None) -> list[str]:
    wanted = list(METRICS) if metrics is None else list(metrics)
    unknown = [metric for metric in wanted if metric not in METRICS]
    if unknown or not wanted:
        raise UserError(f"metric {', '.join(unknown) or '(none)'}: there are {', '.join(METRICS)}")
    return wanted


def _warning(metric: str, n: int, tokenizer: str) -> str:
    found = []
    if metric == "cider" and n < FEW:
        found.append(f"CIDEr of {n} pictures: compare only with the same {n} pictures")
    elif n < FEW:
        found.append(f"{n} pictures are few: compare with the same alone")
    if tokenizer == "plain":
        found.append("published scores use the tokenizer ptb (Java): do not compare with them")
    return "; ".join(found)


Metric = Callable[[list[list[str]], list[str], list[str]], dict[str, Scored]]


def _python(references: list[list[str]], candidates: list[str]) -> tuple[dict, dict]:
    """The form in which pycocoevalcap's classes take captions."""
    return dict(enumerate(references)), {n: [text] for n, text in enumerate(candidates)}


def _bleu(references: list[list[str]], candidates: list[str], _: list[str]) -> dict[str, Scored]:
    from pycocoevalcap.bleu.bleu import Bleu

    total, each = Bleu(4).compute_score(*_python(references, candidates), verbose=0)
    return {f"bleu_{k + 1}": (total[k], each[k]) for k in range(4)}


def _rouge(references: list[list[str]], candidates: list[str], _: list[str]) -> dict[str, Scored]:
    from pycocoevalcap.rouge.rouge import Rouge

    _, each = Rouge().compute_score(*_python(references, candidates))
    # Its split gives an empty caption one empty word, which an empty reference would share.
    each = [one if text else 0.0 for one, text in zip(each, candidates, strict=True)]
    return {"rouge_l": (float(np.mean(each)), each)}


def _cider(references: list[list[str]], candidates: list[str], _: list[str]) -> dict[str, Scored]:
    from pycocoevalcap.cider.cider import Cider

    return {"cider": Cider().compute_score(*_python(references, candidates))}


METRICS: dict[str, Metric] = {
    "bleu": _bleu,
    "rouge_l": _rouge,
    "cider": _cider,
    "meteor": lambda *given: {"meteor": meteor(*given)},
    "spice": lambda *given: {"spice": spice(*given)},
}
LACKING = {"meteor": meteor_lacking, "spice": spice_lacking}
