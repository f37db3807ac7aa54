"""The one digit that a caption names."""

import re

from mmfusion.data_pipelines.converters.digits import NAMES

# A number such as 1.5 or 1,000 and a compound such as twenty-one are one word each.
_WORD = re.compile(r"\d+(?:[.,]\d+)+|\w+(?:[-'’]\w+)*")
_DIGITS = {word: digit for digit in range(10) for word in (NAMES[digit], str(digit))}


def named_digit(caption: str) -> int | None:
    """The one digit that a caption names, by word or numeral; None if it names none or several.

    Only whole words count, in any case: "77", "10" and "seventh" name no digit.
    """
    named = {_DIGITS[word] for word in _WORD.findall(caption.lower()) if word in _DIGITS}
    return named.pop() if len(named) == 1 else None
