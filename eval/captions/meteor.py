"""METEOR 1.5 (Denkowski and Lavie, 2014) for English, by pycocoevalcap's jar."""

import re

import numpy as np
from tqdm import tqdm

from mmfusion.errors import UserError

from . import java

Scored = tuple[float, list[float]]
SEPARATOR = re.compile(r"\|{3,}")
COUNTS = 23
"""Numbers with which it answers a caption."""


def lacking() -> str | None:
    """What is missing to run it; None when nothing is."""
    folder = java.package("meteor")
    return java.lacking(folder / "meteor-1.5.jar", folder / "data" / "paraphrase-en.gz")


def meteor(references: list[list[str]], candidates: list[str], names: list[str]) -> Scored:
    """METEOR of all pictures together, and of each.

    Raises:
        UserError: Java fails, or takes too long for a caption.
    """
    memory = ["-Xms1G", "-Xmx2G", "-XX:+UseSerialGC"]
    command = [*memory, "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    with java.conversation("METEOR", command, java.package("meteor")) as ask:
        counts = []
        pictures = zip(references, candidates, names, strict=True)
        for texts, candidate, name in tqdm(pictures, "METEOR", len(names), unit="caption"):
            line = " ||| ".join(["SCORE", *(SEPARATOR.sub(" ", t) for t in [*texts, candidate])])
            answer = ask(line, about=f", at picture {name}; leave METEOR out or the picture")[0]
            if len(answer.split()) != COUNTS:
                raise UserError(f"METEOR cannot score picture {name}: {answer[:200]}")
            counts.append(answer)
        *each, total = ask(" ||| ".join(["EVAL", *counts]), len(counts) + 1)
    try:
        values = [float(value) for value in [*each, total]]
    except ValueError as error:
        raise UserError(f"METEOR answers what is no score: {error}") from None
    if not np.isfinite(values).all():
        raise UserError("METEOR answers a score that is not finite")
    return values[-1], values[:-1]
