r"""Scores of captions by pycocoevalcap.

CIDEr depends on the tokenizer, so its choice is explicit and goes with the number:

- `plain` (the default): lower-cased runs of letters and digits. It needs nothing but Python, so a
  report is the same on every machine; a score that silently changed where Java is missing would
  not compare. On the digits' captions it gives the very tokens of `ptb`.
- `ptb`: the Stanford PTB tokenizer, which published scores use. It needs Java.
- `spaces`: for captions that are tokenised already.

White space is collapsed first: the PTB tokenizer reads one caption a line, and a caption with \r,
\v, \f or U+2028 in it would move all later captions to wrong pictures, without an error.
"""

import re
import shutil
from typing import Any, Literal

from mmfusion.errors import UserError

Tokenizer = Literal["plain", "ptb", "spaces"]
FEW = 1000
"""Under so many pictures CIDEr's document frequencies say little; for a single one it is 0."""


def collapse(caption: str) -> str:
    """The caption with every run of Unicode white space (line ends too) as one space."""
    return " ".join(caption.split())


def cider(
    references: list[list[str]], candidates: list[str], tokenizer: Tokenizer = "plain"
) -> dict[str, Any]:
    """CIDEr of one candidate a picture against that picture's references, over n pictures.

    This is pycocoevalcap's variant: with clipping and length penalty, from 0 to 10.

    Returns:
        {"value", "n", "tokenizer"}, and "warning" with fewer than 1,000 pictures.

    Raises:
        UserError: lists of different lengths, a picture without references, or no Java for `ptb`.
    """
    if len(references) != len(candidates) or not candidates:
        raise UserError(
            f"CIDEr: {len(candidates)} captions for the references of {len(references)} pictures; "
            "it needs one caption a picture, and a picture at least"
        )
    for number, texts in enumerate(references):
        if not any(collapse(text) for text in texts):
            raise UserError(f"CIDEr: picture {number} has no reference caption; leave it out")
    from pycocoevalcap.cider.cider import Cider

    per_picture = [*references, *([text] for text in candidates)]
    tokens = _tokenise([[collapse(text) for text in texts] for texts in per_picture], tokenizer)
    n = len(candidates)
    value, _ = Cider().compute_score(dict(enumerate(tokens[:n])), dict(enumerate(tokens[n:])))
    score: dict[str, Any] = {"value": float(value), "n": n, "tokenizer": tokenizer}
    if n < FEW:
        score["warning"] = f"CIDEr of {n} pictures: compare only with the same {n} pictures"
    return score


def _tokenise(texts: list[list[str]], tokenizer: Tokenizer) -> list[list[str]]:
    if tokenizer == "spaces":
        return texts
    if tokenizer == "plain":
        return [[" ".join(re.findall(r"\w+", t.lower())) for t in group] for group in texts]
    if shutil.which("java") is None:
        raise UserError("CIDEr: the tokenizer ptb needs Java; install it or take `plain`")
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # It pairs lines with captions by zip: the ends are checked so that no shift stays unseen.
    ends = [[{"caption": "first"}], [{"caption": "last"}]]
    groups = [ends[0], *([{"caption": _writable(t)} for t in group] for group in texts), ends[1]]
    try:
        tokens = PTBTokenizer().tokenize(dict(enumerate(groups)))
    except OSError as error:  # it writes a temporary file into its own package
        raise UserError(f"CIDEr: the PTB tokenizer cannot run ({error}); take `plain`") from None
    if tokens.get(0) != ["first"] or tokens.get(len(groups) - 1) != ["last"]:
        raise UserError("CIDEr: the PTB tokenizer lost or split a caption; take `plain`")
    return [tokens[number] for number in range(1, len(groups) - 1)]


def _writable(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot hold, as question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
