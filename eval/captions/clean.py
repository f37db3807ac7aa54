r"""Captions as one printable line each.

The tokenizers and scorers that run in Java read a caption a line. A caption with \r, \v, \f, \x85
or U+2028 in it would move all later captions to other pictures, without an error; a lone surrogate
has no UTF-8 at all.
"""

import unicodedata

UNSAFE = ("Cc", "Cs")
"""Unicode's categories of control characters and of lone surrogates."""


def clean(caption: str) -> str:
    """The caption in one line: white space of any kind and control characters become one space."""
    safe = (" " if unicodedata.category(c) in UNSAFE else c for c in caption)
    return " ".join("".join(safe).split())
