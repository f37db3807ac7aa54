"""SPICE (Anderson et al., 2016), by pycocoevalcap's jar and two of Stanford CoreNLP's.

The two are not part of pycocoevalcap, which would download them at the first use. Nothing is
downloaded here: without them SPICE is left out, and the note says how to get them.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from mmfusion.errors import UserError

from . import java
from .meteor import Scored

GET = (
    'python -c "from pycocoevalcap.spice.get_stanford_models import get_stanford_models as get; '
    'get()"'
)
A_PICTURE = 2.0
"""Seconds more for each picture."""


def lacking() -> str | None:
    """What is missing to run it; None when nothing is."""
    folder = java.package("spice")
    core = [folder / "lib" / f"stanford-corenlp-3.6.0{part}.jar" for part in ("", "-models")]
    missing = java.lacking(folder / "spice-1.0.jar", *core)
    return f"{missing} (to download it: {GET})" if missing and "corenlp" in missing else missing


def spice(references: list[list[str]], candidates: list[str], names: list[str]) -> Scored:
    """The mean of the pictures' F-scores, and each. One without any relation to score counts 0.

    Raises:
        UserError: Java fails, or takes too long.
    """
    asked = [
        {"image_id": number, "test": candidate, "refs": texts}
        for number, (texts, candidate) in enumerate(zip(references, candidates, strict=True))
    ]
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder, "captions.json"), Path(folder, "scores.json")
        given.write_text(json.dumps(asked), encoding="utf-8")
        command = ["-Xmx8G", "-jar", "spice-1.0.jar", str(given), "-out", str(answer)]
        # One call parses all captions: it may take as long as there are many of them.
        limit = java.LIMIT + A_PICTURE * len(names)
        java.run(
            "SPICE", [*command, "-subset", "-silent"], folder=java.package("spice"), limit=limit
        )
        try:
            found = json.loads(answer.read_text(encoding="utf-8"))
            scores = {item["image_id"]: float(item["scores"]["All"]["f"]) for item in found}
            each = [scores[number] for number in range(len(names))]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError("SPICE ended without a score for each picture") from None
    each = [0.0 if np.isnan(value) else value for value in each]
    return float(np.mean(each)), each
