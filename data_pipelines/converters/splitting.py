"""Long documents as several shorter ones: nothing is lost or doubled, no picture is cut.

Documents are split between parts. A text that is too long by itself is cut first: after a sentence
where one ends early enough, else after a word, else anywhere. The chunks keep all spaces. Of all
ways to split, the one is taken that leaves out least, then the one with the fewest pieces.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from mmfusion.codecs.text import Tokenizer

from .interleaved_formats import ImageItem, Item, TextItem

BYTES = 3  # a token, where there is no tokenizer: English has about 4, Chinese 3 a character
ENDS = 2  # tokens that an answer has besides its text: its control token and its end
NEARBY = 8  # characters a token, among which the end of a chunk is looked for; English has 4 to 5
SENTENCE = re.compile(r"[.!?…][\"')\]»”’]*\s+|[。！？]\s*|(?<=\S)\s*\n\s*")
WORD = re.compile(r"(?<=\S)\s+")  # not where a text begins with spaces: they would be a chunk


@dataclass(frozen=True)
class Limits:
    """What one sample may hold."""

    pictures: int = 8
    tokens: int = 1024  # of all its texts, with the control tokens that training adds
    tokenizer: Path | None = None  # counts them; without it three bytes of UTF-8 are a token

    def counter(self) -> Callable[[str], int]:
        """What counts the tokens of a text."""
        if self.tokenizer is None:
            return lambda text: -(-len(text.encode("utf-8", "replace")) // BYTES) + ENDS
        tokenizer = Tokenizer(self.tokenizer)
        return lambda text: len(tokenizer.encode(text)) + ENDS


def split(
    parts: Sequence[Item], limits: Limits, count: Callable[[str], int], web: bool = False
) -> tuple[list[list[Item]], list[list[Item]]]:
    """A document as pieces within the limits, and those of which nothing can be learned.

    A stretch that teaches nothing goes with a neighbour where both fit the limits. Of a `web`
    document a picture that opens a piece is given.
    """
    atoms = [atom for part in parts for atom in _cut(part, limits.tokens, count)]
    tokens = [count(a.text) if isinstance(a, TextItem) else 0 for a in atoms]
    pictures = list(accumulate((isinstance(a, ImageItem) for a in atoms), initial=0))
    learned = list(accumulate((a.learned for a in atoms), initial=0))
    given = [web and isinstance(a, ImageItem) and a.learned for a in atoms]
    text = list(accumulate(tokens, initial=0))

    def teaches(start: int, end: int) -> bool:
        return learned[end] - learned[start] > given[start]

    def poorly_opened(start: int) -> bool:
        """A target with nothing before it, and no answer after it that it is read for."""
        first, after = atoms[start], atoms[start + 1] if start + 1 < len(atoms) else None
        read = isinstance(after, TextItem) and after.learned
        return isinstance(first, ImageItem) and first.learned and not read

    # best[n]: of the first n atoms, what splitting them costs at least (left out, pieces, poorly
    # opened ones), and where the last piece starts.
    best: list[tuple[tuple[int, int, int], int]] = [((0, 0, 0), 0)]
    best += [((len(atoms) + text[-1] + 1, 0, 0), 0)] * len(atoms)
    for start in range(len(atoms)):
        (lost, before, poor), _ = best[start]
        poor += poorly_opened(start)
        for end in range(start + 1, len(atoms) + 1):
            shown, said = pictures[end] - pictures[start], text[end] - text[start]
            if end > start + 1 and (shown > limits.pictures or said > limits.tokens):
                break
            dropped = 0 if teaches(start, end) else shown + said
            best[end] = min(best[end], ((lost + dropped, before + 1, poor), start))
    pieces: list[list[Item]] = []
    dropped_pieces: list[list[Item]] = []
    end = len(atoms)
    while end:
        start = best[end][1]
        first = replace(atoms[start], learned=atoms[start].learned and not given[start])
        taught = pieces if teaches(start, end) else dropped_pieces
        taught.append([first, *atoms[start + 1 : end]])
        end = start
    return pieces[::-1], dropped_pieces[::-1]


def _cut(part: Item, most: int, count: Callable[[str], int]) -> Iterator[Item]:
    if not isinstance(part, TextItem) or count(part.text) <= most:
        yield part
        return
    rest = part.text
    while rest:
        end = _end(rest, most, count)
        yield replace(part, text=rest[:end])
        rest = rest[end:]


def _end(text: str, most: int, count: Callable[[str], int]) -> int:
    """Where the longest beginning of at most `most` tokens ends, at the best border there is."""
    near = text[: most * NEARBY]
    ends: Sequence[int]
    for ends in (
        [found.end() for found in SENTENCE.finditer(near)],
        [found.end() for found in WORD.finditer(near)],
        range(1, len(near) + 1),
    ):
        if near == text:
            ends = [*ends, len(text)]
        # The one before was counted, and was short enough.
        place = bisect_right(ends, most, key=lambda end: count(text[:end]))
        if place:
            return ends[place - 1]
    return 1
