r"""Captions as words. Every score depends on it, so the tokenizer goes with the number.

- `ptb`: the Stanford PTB tokenizer, lower case, without punctuation, which published scores use.
  It needs Java.
- `plain`: lower-cased runs of letters and digits. It needs nothing but Python, so it gives the same
  on every machine; its scores do not compare with published ones.
- `spaces`: for captions that are tokenised already.
- `auto`: `ptb` where Java is, else `plain`.

Before that each becomes one printable line. What runs in Java reads a caption a line: one with \r,
\v, \f, \x85 or U+2028 in it would move all later ones to other pictures, without an error, and a
lone surrogate has no UTF-8 at all.
"""

import re
import unicodedata
from typing import Literal, get_args

from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

from mmfusion.errors import UserError, printable

from . import java

Tokenizer = Literal["auto", "ptb", "plain", "spaces"]
UNSAFE = ("Cc", "Cs")
"""Unicode's categories of control characters and of lone surrogates."""
FENCE = "x"
"""A line between two captions. The PTB tokenizer looks past the end of a line ("No." keeps its dot
if the next line begins with a number), so without it the words of a caption depend on the next."""


def clean(caption: str) -> str:
    """The caption in one line: white space of any kind and control characters become one space."""
    safe = (" " if unicodedata.category(c) in UNSAFE else c for c in caption)
    return " ".join("".join(safe).split())


def choose(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer that `auto` means here."""
    if tokenizer not in get_args(Tokenizer):
        raise UserError(f"tokenizer {tokenizer}: there are {', '.join(get_args(Tokenizer))}")
    if tokenizer not in ("auto", "ptb"):
        return tokenizer
    missing = java.lacking()
    if missing and tokenizer == "ptb":
        raise UserError(f"the tokenizer ptb needs {missing}; install it or take `plain`")
    return "plain" if missing else "ptb"


def tokenise(captions: list[str], tokenizer: Tokenizer) -> list[str]:
    """The words of each caption with single spaces between them; cleaned, never mixed up."""
    lines = [clean(caption) for caption in captions]
    tokenizer = choose(tokenizer)
    if tokenizer == "ptb":
        return _ptb(lines)
    if tokenizer == "plain":
        return [" ".join(re.findall(r"\w+", line.lower())) for line in lines]
    return lines


def _ptb(lines: list[str]) -> list[str]:
    jar = java.JARS / "tokenizer" / STANFORD_CORENLP_3_4_1_JAR
    program = "edu.stanford.nlp.process.PTBTokenizer"
    command = ["-cp", str(jar), program, "-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    fenced = [each for line in lines for each in (line, FENCE)]
    found = java.run("the PTB tokenizer", command, fenced, [repr(line[:100]) for line in fenced])
    for line, after in zip(lines, found[1::2], strict=False):
        if after != FENCE:
            raise UserError(f"the PTB tokenizer splits the caption {printable(line)[:100]!r}")
    # Split at spaces alone, as published scores do: "1 1/2" is one word with a no-break space.
    words = [line.rstrip().split(" ") for line in found[: 2 * len(lines) : 2]]
    return [" ".join(word for word in line if word not in PUNCTUATIONS) for line in words]
