"""Scores of captions against references, as COCO's evaluation gives them: by pycocoevalcap.

| metric | figures | needs |
|---|---|---|
| bleu | bleu_1 to bleu_4 (Papineni et al., 2002), of the corpus | |
| rouge_l | ROUGE-L (Lin, 2004) | |
| cider | CIDEr-D (Vedantam et al., 2015): clipped, with a length penalty, 0 to 10 | |
| meteor | METEOR 1.5 | Java |
| spice | SPICE | Java, Stanford CoreNLP |
"""

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmfusion.errors import UserError

from . import java
from .tokenizers import Tokenizer, choose, tokenise

FEW = 1000
"""Under so many pictures CIDEr's document frequencies say little; for a single one it is 0."""
JARS = {
    "meteor": ("meteor-1.5.jar", "data/paraphrase-en.gz"),
    "spice": (
        "spice-1.0.jar",
        "lib/stanford-corenlp-3.6.0.jar",
        "lib/stanford-corenlp-3.6.0-models.jar",
    ),
}
"""Of pycocoevalcap's parts; Stanford's two are not in it, and nothing is downloaded here."""
GET = (
    'python -c "from pycocoevalcap.spice.get_stanford_models import get_stanford_models as get; '
    'get()"'
)
SEPARATOR = re.compile(r"\|{3,}")
COUNTS = 23
"""Numbers that METEOR counts of a caption."""

Scored = tuple[float, list[float]]


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
    wanted = list(METRICS if metrics is None else metrics)
    unknown = [metric for metric in wanted if metric not in METRICS]
    if unknown or not wanted:
        raise UserError(f"metric {', '.join(unknown) or '(none)'}: there are {', '.join(METRICS)}")
    scores = Scores()
    for metric in wanted:
        if metric in LACKING and (missing := LACKING[metric]()):
            if metrics is not None:
                raise UserError(f"{metric} needs {missing}")
            scores.left_out[metric] = f"needs {missing}"
    chosen = choose(tokenizer)
    flat = tokenise([*candidates, *(text for texts in references for text in texts)], chosen)
    words, rest = flat[: len(candidates)], iter(flat[len(candidates) :])
    known = [[next(rest) for _ in texts] for texts in references]
    for name, texts in zip(names, known, strict=True):
        if not any(texts):
            raise UserError(f"picture {name}: no word in its references; leave the picture out")
    for metric in wanted:
        if metric in scores.left_out:
            continue
        about = {"n": len(words), "tokenizer": chosen, **_warning(metric, len(words), chosen)}
        for name, (value, each) in METRICS[metric](known, words, names).items():
            scores.per_picture[name] = [float(one) for one in each]
            scores.figures[name] = {"value": float(value), **about}
    return scores


def _warning(metric: str, n: int, tokenizer: str) -> dict[str, str]:
    found = []
    if metric == "cider" and n < FEW:
        found.append(f"CIDEr of {n} pictures: compare only with the same {n} pictures")
    elif n < FEW:
        found.append(f"{n} pictures are few: compare with the same alone")
    if tokenizer == "plain":
        found.append("published scores use the tokenizer ptb (Java): do not compare with them")
    return {"warning": "; ".join(found)} if found else {}


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


def _meteor(
    references: list[list[str]], candidates: list[str], names: list[str]
) -> dict[str, Scored]:
    """Denkowski and Lavie, 2014, for English: each caption's counts, and then the scores of all."""
    memory = ["-Xms1G", "-Xmx2G", "-XX:+UseSerialGC"]
    command = [*memory, "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]

    def ask(lines: list[list[str]], names: Sequence[str] = ()) -> list[str]:
        given = "".join(" ||| ".join(line) + "\n" for line in lines).encode()
        answer = java.run("METEOR", command, given, java.package("meteor"), names)
        return answer.decode("utf-8", "replace").splitlines()

    texts = zip(references, candidates, strict=True)
    counts = ask(
        [["SCORE", *(SEPARATOR.sub(" ", text) for text in [*some, one])] for some, one in texts],
        names,
    )
    for name, answer in zip(names, counts, strict=False):
        if len(answer.split()) != COUNTS:
            raise UserError(f"METEOR cannot score picture {name}: {answer[:200]}")
    try:
        *each, total = map(float, ask([["EVAL", *counts]]))
        if len(each) != len(names) or not np.isfinite([*each, total]).all():
            raise ValueError(f"{len(each)} for {len(names)} pictures, or one is not finite")
    except ValueError as error:
        raise UserError(f"METEOR answers what are no scores: {error}") from None
    return {"meteor": (total, each)}


def _spice(
    references: list[list[str]], candidates: list[str], names: list[str]
) -> dict[str, Scored]:
    """Anderson et al., 2016. A picture without any relation to score counts 0."""
    asked = [
        {"image_id": number, "test": candidate, "refs": texts}
        for number, (texts, candidate) in enumerate(zip(references, candidates, strict=True))
    ]
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder, "captions.json"), Path(folder, "scores.json")
        given.write_text(json.dumps(asked), encoding="utf-8")
        command = ["-Xmx8G", "-jar", "spice-1.0.jar", str(given), "-out", str(answer)]
        command += ["-subset", "-silent"]
        java.run("SPICE", command, folder=java.package("spice"), names=names)
        try:
            found = json.loads(answer.read_text(encoding="utf-8"))
            scores = {item["image_id"]: float(item["scores"]["All"]["f"]) for item in found}
            each = [0.0 if np.isnan(scores[i]) else scores[i] for i in range(len(names))]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError("SPICE ended without a score for each picture") from None
    return {"spice": (float(np.mean(each)), each)}


METRICS: dict[str, Metric] = {
    "bleu": _bleu,
    "rouge_l": _rouge,
    "cider": _cider,
    "meteor": _meteor,
    "spice": _spice,
}


def _lacking(metric: str) -> str | None:
    """What is missing to run the metric; None when nothing is."""
    missing = java.lacking(*(java.package(metric) / file for file in JARS[metric]))
    return f"{missing} (to download it: {GET})" if missing and "corenlp" in missing else missing


LACKING = {metric: partial(_lacking, metric) for metric in JARS}
