"""Text and pictures on a sheet: fonts, line breaks, and pictures fitted into boxes."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

INK, SOFT, LINE, PAPER, PANEL = "#1f2430", "#6b7280", "#d6d9e0", "#ffffff", "#f4f5f8"
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Box(NamedTuple):
    """Pixels from (left, top) up to, and without, (right, bottom)."""

    left: int
    top: int
    right: int
    bottom: int


@lru_cache
def font(size: int) -> Font:
    """The font that comes with Pillow; it has Latin letters, others show as boxes."""
    return ImageFont.load_default(size)


def width(text: str, size: int) -> int:
    """Pixels that a line takes."""
    return int(np.ceil(font(size).getlength(text)))


def wrap(text: str, size: int, room: int, most: int) -> list[str]:
    """The text in at most so many lines of a width; what does not fit becomes "…"."""
    lines, line = [], ""
    words = text[: 40 * most * room // size].split()
    while words:
        word = words.pop(0)
        longer = f"{line} {word}".strip()
        if width(longer, size) <= room:
            line = longer
            continue
        if not line:  # one word that is wider than the line
            fits = next(
                n for n in range(len(word), 0, -1) if n == 1 or width(word[:n], size) <= room
            )
            line, rest = word[:fits], word[fits:]
            words[:0] = [rest] if rest else []
        else:
            words.insert(0, word)
        lines.append(line)
        line = ""
        if len(lines) == most:
            break
    if line:
        lines.append(line)
    if words:
        last = lines[-1]
        while last and width(f"{last}…", size) > room:
            last = last[:-1]
        lines[-1] = f"{last.rstrip()}…"
    return lines


def lines_height(count: int, size: int) -> int:
    """Pixels that so many lines take."""
    return round(count * size * 1.35)


def write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], lines: list[str], size: int, colour: str = INK
) -> int:
    """Write lines below each other; returns where the next one would begin."""
    left, top = at
    for number, line in enumerate(lines):
        draw.text((left, top + lines_height(number, size)), line, colour, font(size))
    return top + lines_height(len(lines), size)


def fitted(picture: Picture.Image, side: int) -> Picture.Image:
    """A picture in colour, its longer side at most `side`; small ones by a whole factor larger."""
    picture = picture.convert("RGB")
    longer = max(picture.size)
    if longer <= side:
        factor = side // longer
        size = picture.width * factor, picture.height * factor
        return picture.resize(size, Picture.Resampling.NEAREST)
    scaled = tuple(max(1, round(edge * side / longer)) for edge in picture.size)
    return picture.resize((scaled[0], scaled[1]), Picture.Resampling.LANCZOS)
