"""A contact sheet: samples as they are in the shards, to be looked at.

A sample with a picture of its own is a cell of the grid. An interleaved one is a strip; what is
learned of it has a coloured border.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw

from mmfusion.codecs.image import flat
from mmfusion.errors import Damage

from ..samples import Sample, moments_name
from .canvas import INK, LINE, PANEL, PAPER, SOFT, Box, fitted, lines_height, wrap, write

COLUMNS, SIDE, GAP = 6, 240, 20
WIDTH = COLUMNS * (SIDE + GAP) + GAP
TITLE, TEXT, SMALL = 17, 14, 12
STRIP_COLUMNS = 8
STRIP_SIDE = (WIDTH - GAP) // STRIP_COLUMNS - GAP
MOST_PARTS = 2 * STRIP_COLUMNS - 1  # of an interleaved sample
LEARNED = "#d1495b"

Decode = Callable[[np.ndarray], Picture.Image]
Part = tuple[Picture.Image | str, bool]


@dataclass
class Shown:
    """What the sheet shows of one sample.

    Attributes:
        key: where it is.
        title: its class.
        parts: pictures and texts in their order, and whether each is learned.
        caption: the first of its captions, and how many more there are.
        strip: whether it is interleaved.
    """

    key: str
    title: str = ""
    parts: list[Part] = field(default_factory=list)
    caption: str = ""
    strip: bool = False


def show(sample: Sample, classes: list[str], decode: Decode | None = None) -> Shown:
    """What is to be shown of a sample; what is damaged of it is said in words."""
    shown = Shown(sample.where.rpartition(":")[2])
    try:
        facts = sample.json()
        if "content" in facts:
            shown.strip = True
            content = sample.content(facts)
            for part in content[:MOST_PARTS]:
                image = part.kind == "image"
                what = _pictured(sample, part.value, decode) if image else part.value
                shown.parts.append((what, part.target or part.kind == "answer"))
            if len(content) > MOST_PARTS:
                shown.parts.append((f"and {len(content) - MOST_PARTS} more", False))
            return shown
        shown.parts.append((_pictured(sample, None, decode), False))
        if "label" in facts:
            label = sample.label(facts)
            shown.title = f"{label}: {classes[label]}" if label < len(classes) else f"class {label}"
        if "captions" in facts:
            first, *rest = sample.captions(facts)
            shown.caption = f"{first} (and {len(rest)} more)" if rest else first
    except Damage as error:
        shown.title = f"damaged, {error.reason}"
        shown.caption = str(error).removeprefix(sample.where)
    return shown


def _pictured(sample: Sample, name: str | None, decode: Decode | None) -> Picture.Image | str:
    try:
        if moments_name(name) not in sample:
            return flat(sample.picture(name))
        moments = sample.moments(moments_name(name))
    except Damage as error:
        return f"damaged, {error.reason}: {str(error).removeprefix(sample.where)}"
    mean = moments[0, 0].astype(np.float32)
    return decode(mean) if decode else false_colour(mean)


def false_colour(latents: np.ndarray) -> Picture.Image:
    """The first three channels of latents (c, h, w) as red, green and blue, each stretched."""
    three = latents[[0, 1 % len(latents), 2 % len(latents)]]
    low, high = np.percentile(three, [1, 99], axis=(1, 2), keepdims=True)
    scaled = (three - low) / np.maximum(high - low, 1e-6)
    return Picture.fromarray(np.rint(scaled.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))


def draw_sheet(sections: list[tuple[str, list[Shown]]]) -> tuple[Picture.Image, list[list[Box]]]:
    """All samples below their section's heading, and where the pictures of each sample are."""
    rows: list[tuple[Picture.Image, list[list[Box]]]] = []
    for heading, samples in sections:
        rows.append((_heading(heading), []))
        strips = [shown for shown in samples if shown.strip]
        cells = [shown for shown in samples if not shown.strip]
        rows += [_strips(together) for together in _side_by_side(strips)]
        rows += [_line(cells[at : at + COLUMNS]) for at in range(0, len(cells), COLUMNS)]
    sheet = Picture.new("RGB", (WIDTH, GAP + sum(row.height + GAP for row, _ in rows)), PAPER)
    top, boxes = GAP, []
    for row, found in rows:
        sheet.paste(row, (0, top))
        boxes += [[_moved(box, 0, top) for box in sample] for sample in found]
        top += row.height + GAP
    return sheet, boxes


def _moved(box: Box, x: int, y: int) -> Box:
    return Box(box.left + x, box.top + y, box.right + x, box.bottom + y)


def _heading(text: str) -> Picture.Image:
    lines = wrap(text, TITLE, WIDTH - 2 * GAP, 2)
    image = Picture.new("RGB", (WIDTH, lines_height(len(lines), TITLE) + 8), PAPER)
    bottom = write(ImageDraw.Draw(image), (GAP, 0), lines, TITLE)
    ImageDraw.Draw(image).line([(GAP, bottom + 4), (WIDTH - GAP, bottom + 4)], LINE, 2)
    return image


def _line(samples: list[Shown]) -> tuple[Picture.Image, list[list[Box]]]:
    """Samples side by side: the picture, and under it class, caption and key."""
    texts = [
        [
            (wrap(shown.title, TEXT + 1, SIDE, 1), TEXT + 1, INK),
            (wrap(shown.caption, TEXT, SIDE, 5), TEXT, INK),
            (wrap(shown.key, SMALL, SIDE, 1), SMALL, SOFT),
        ]
        for shown in samples
    ]
    below = [sum(lines_height(len(lines), size) for lines, size, _ in text) for text in texts]
    high = max((p.height for s in samples for p in _fitted(s.parts, SIDE)), default=SIDE // 2)
    image = Picture.new("RGB", (WIDTH, high + 10 + max(below)), PAPER)
    draw, boxes = ImageDraw.Draw(image), []
    for column, (shown, text) in enumerate(zip(samples, texts, strict=True)):
        left = GAP + column * (SIDE + GAP)
        boxes.append(_picture(image, shown.parts, (left, 0), SIDE, high))
        top = high + 8
        for lines, size, colour in text:
            top = write(draw, (left, top), lines, size, colour)
    return image, boxes


def _fitted(parts: list[Part], side: int) -> list[Picture.Image]:
    return [fitted(part, side) for part, _ in parts if isinstance(part, Picture.Image)]


def _picture(
    image: Picture.Image, parts: list[Part], at: tuple[int, int], side: int, high: int
) -> list[Box]:
    """The first picture on a panel, in its middle; without one, what there is to say."""
    left, top = at
    draw = ImageDraw.Draw(image)
    draw.rectangle([left, top, left + side - 1, top + high - 1], PANEL)
    for picture in _fitted(parts, side):
        place = left + (side - picture.width) // 2, top + (high - picture.height) // 2
        image.paste(picture, place)
        return [Box(*place, place[0] + picture.width, place[1] + picture.height)]
    told = next((part for part, _ in parts if isinstance(part, str)), "no picture")
    write(draw, (left + 10, top + 10), wrap(told, SMALL, side - 20, 6), SMALL, LEARNED)
    return []


def _side_by_side(strips: list[Shown]) -> list[list[Shown]]:
    """Interleaved samples of few parts share a line, as many as have room in it."""
    lines: list[list[Shown]] = []
    for shown in strips:
        room = STRIP_COLUMNS - sum(max(1, len(s.parts)) for s in lines[-1]) if lines else 0
        if max(1, len(shown.parts)) <= room:
            lines[-1].append(shown)
        else:
            lines.append([shown])
    return lines


def _strips(samples: list[Shown]) -> tuple[Picture.Image, list[list[Box]]]:
    """Interleaved samples, their parts from left to right, on as many lines as they need."""
    step, head = STRIP_SIDE + GAP, lines_height(1, SMALL) + 6
    lines = max(-(-len(shown.parts) // STRIP_COLUMNS) for shown in samples) or 1
    heights = [picture.height for s in samples for picture in _fitted(s.parts, STRIP_SIDE)]
    high = max(STRIP_SIDE // 2, *heights, 0)
    image = Picture.new("RGB", (WIDTH, head + lines * (high + GAP) - GAP + 4), PAPER)
    draw, boxes, begin = ImageDraw.Draw(image), [], 0
    for shown in samples:
        room = max(1, min(len(shown.parts), STRIP_COLUMNS)) * step - GAP
        told = wrap(f"{shown.key} {shown.title} {shown.caption}", SMALL, room, 1)
        write(draw, (GAP + begin * step, 0), told, SMALL, SOFT)
        found: list[Box] = []
        for number, (part, learned) in enumerate(shown.parts):
            row, column = divmod(begin + number, STRIP_COLUMNS)
            left, top = GAP + column * step, head + row * (high + GAP)
            if isinstance(part, str):
                _words(draw, part, (left, top), high, LEARNED if learned else INK)
            else:
                found += _picture(image, [(part, learned)], (left, top), STRIP_SIDE, high)
            if learned:
                frame = [left - 4, top - 4, left + STRIP_SIDE + 3, top + high + 3]
                draw.rectangle(frame, outline=LEARNED, width=3)
            if number and column:
                x, y = left - 14, top + high // 2
                draw.polygon([(x, y - 5), (x, y + 5), (x + 8, y)], SOFT)
        boxes.append(found)
        begin += max(1, len(shown.parts))
    return image, boxes


def _words(
    draw: ImageDraw.ImageDraw, text: str, at: tuple[int, int], high: int, colour: str
) -> None:
    """A text on a panel, half way down."""
    left, top = at
    draw.rectangle([left, top, left + STRIP_SIDE - 1, top + high - 1], PANEL)
    broken = wrap(text, TEXT, STRIP_SIDE - 24, max(1, (high - 16) // lines_height(1, TEXT)))
    middle = top + (high - lines_height(len(broken), TEXT)) // 2
    write(draw, (left + 12, middle), broken, TEXT, colour)
