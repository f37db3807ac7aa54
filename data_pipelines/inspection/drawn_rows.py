"""Packed rows as pictures: what the decoder is given, and what each token may see.

Above, four bands over the tokens of a row: kind, document, order and stream. Below, on the same
axis, the visibility mask that follows from them (mmfusion/mask.py).
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image as Picture
from PIL import ImageColor, ImageDraw

from mmfusion.codecs.text import Tokenizer
from mmfusion.mask import dense_mask
from mmfusion.sequence import IMAGE, LABEL, TEXT, Document, Image, Label, Row, Text, count

from .canvas import INK, LINE, PAPER, SOFT, Box, font, lines_height, width, wrap, write

PLOT, LEFT, GAP = 840, 96, 24
WIDTH = LEFT + PLOT + GAP
BAND, STRIP, MOST_SCALE = 34, 14, 24
TITLE, TEXT_SIZE, SMALL = 18, 14, 12

KINDS = {
    "padding": "#e3e5ea",
    "text, given": "#5b8def",
    "text, learned": "#1d3f8f",
    "label": "#f0a32f",
    "image, clean": "#3fa66b",
    "image, noisy": "#d1495b",
}
DOCUMENTS = ("#4c78a8", "#f2a65a", "#72b7b2", "#b279a2", "#9d755d", "#8cb369")
ORDERS = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
STREAMS = ("#cfd8e6", "#d1495b", "#8e5bb5", "#3d7ea6", "#b0832a")
HIDDEN = "#ffffff"


@dataclass
class Drawn:
    """A picture of a row.

    Attributes:
        picture: the whole.
        boxes: where `kind`, `doc`, `order`, `stream` and `mask` are.
        length: tokens that are drawn, over the width of each of them.
    """

    picture: Picture.Image
    boxes: dict[str, Box]
    length: int


def rgb(colours: "tuple[str, ...] | list[str]") -> np.ndarray:
    """Colours (n, 3) by name."""
    return np.array([ImageColor.getrgb(colour) for colour in colours], np.uint8)


def kind_colours(row: Row) -> np.ndarray:
    """(L, 3): what each token is."""
    answer = row.predict >= 0
    answer[1:] |= answer[:-1].copy()
    noisy = row.stream > 0
    number = np.select(
        [(row.kind == TEXT) & answer, row.kind == TEXT, row.kind == LABEL,
         (row.kind == IMAGE) & noisy, row.kind == IMAGE],
        [2, 1, 3, 5, 4],
    )  # fmt: skip
    return rgb(list(KINDS.values()))[number]


def doc_colours(row: Row) -> np.ndarray:
    """(L, 3): which document each token belongs to."""
    return _padded(row, rgb(DOCUMENTS)[row.doc % len(DOCUMENTS)])


def order_colours(row: Row) -> np.ndarray:
    """(L, 3): place in causal time, from dark to light."""
    last = max(1, int(row.order[row.doc >= 0].max(initial=1)))
    return _padded(row, _gradient(row.order / last))


def _gradient(shares: np.ndarray) -> np.ndarray:
    """Colours (n, 3) of places between the first and the last."""
    anchors, at = rgb(ORDERS).astype(float), np.clip(shares, 0, 1) * (len(ORDERS) - 1)
    mixed = [np.interp(at, np.arange(len(ORDERS)), anchors[:, c]) for c in range(3)]
    return np.rint(np.stack(mixed, 1)).astype(np.uint8)


def stream_colours(row: Row) -> np.ndarray:
    """(L, 3): clean, or which noisy copy."""
    copy = np.where(row.stream > 0, (row.stream - 1) % (len(STREAMS) - 1) + 1, 0)
    return _padded(row, rgb(STREAMS)[copy])


def _padded(row: Row, colours: np.ndarray) -> np.ndarray:
    return np.where(row.doc[:, None] < 0, rgb([KINDS["padding"]]), colours)


def packed(documents: list[Document], row: Row, most: int) -> tuple[Row, list[Document]]:
    """The documents that the row takes, one after another as in training, at most so many."""
    taken: list[Document] = []
    for document in documents:
        if len(taken) == most or row.used + count(document, row.label_tokens).tokens > row.length:
            break
        row.document(document)
        taken.append(document)
    return row, taken


def told(document: Document, tokenizer: Tokenizer | None) -> str:
    """A document in words."""
    parts = []
    for segment in document:
        match segment:
            case Text(ids, loss):
                text = tokenizer.decode(ids) if tokenizer else f"{len(ids)} tokens"
                quoted = f'"{text}"' if text else "nothing"
                parts.append(f"{'says' if loss else 'reads'} {quoted}")
            case Label(label):
                parts.append("no class" if label is None else f"class {label}")
            case Image(latents, _, split, noise):
                n = len(latents)
                steps = f" in {len(split)} AR steps" if split else ""
                parts.append(f"draws {n} tokens{steps}" if noise else f"sees {n} tokens")
    return ", ".join(parts)


def draw_row(row: Row, heading: str, lines: list[str]) -> Drawn:
    """A row's bands and mask, below a heading and a line for each document."""
    length = min(row.length, row.used + max(2, row.used // 16))  # not all of the padding
    side = length * min(MOST_SCALE, PLOT // length) if length <= PLOT else PLOT
    at = np.arange(side) * length // side  # the token of each pixel
    head = [wrap(line, TEXT_SIZE, WIDTH - 2 * GAP, 2) for line in lines]
    top = GAP + lines_height(1, TITLE) + sum(lines_height(len(h), TEXT_SIZE) for h in head) + 14
    mask_top = top + 4 * (BAND + 6) + 10
    image = Picture.new("RGB", (WIDTH, mask_top + side + GAP), PAPER)
    draw = ImageDraw.Draw(image)
    below = write(draw, (GAP, GAP - 8), wrap(heading, TITLE, WIDTH - 2 * GAP, 1), TITLE)
    for broken in head:
        below = write(draw, (GAP, below), broken, TEXT_SIZE, SOFT)
    boxes = {}
    kinds = kind_colours(row)
    bands = {
        "kind": (kinds, None), "doc": (doc_colours(row), row.doc),
        "order": (order_colours(row), row.order), "stream": (stream_colours(row), row.stream),
    }  # fmt: skip
    for number, (name, (colours, values)) in enumerate(bands.items()):
        box = boxes[name] = _box(LEFT, top + number * (BAND + 6), side, BAND)
        pixels = np.broadcast_to(colours[at], (BAND, side, 3))
        image.paste(Picture.fromarray(np.ascontiguousarray(pixels)), box[:2])
        draw.text((GAP, box.top + BAND // 2), name, INK, font(TEXT_SIZE), anchor="lm")
        if values is not None:
            _numbers(draw, box, np.where(row.doc < 0, -1, values)[:length], colours, side / length)
    visible = _mask(row, length)
    box = boxes["mask"] = _box(LEFT, mask_top, side, side)
    cells = np.where(visible[at][:, at, None], kinds[at][:, None], rgb([HIDDEN]))
    image.paste(Picture.fromarray(cells.astype(np.uint8)), box[:2])
    strip = np.broadcast_to(kinds[at][:, None], (side, STRIP, 3))
    image.paste(Picture.fromarray(np.ascontiguousarray(strip)), (LEFT - STRIP - 4, mask_top))
    draw.rectangle([box.left - 1, box.top - 1, box.right, box.bottom], outline=LINE)
    draw.text((GAP, box.top + 4), "mask", INK, font(TEXT_SIZE))
    return Drawn(image, boxes, length)


def _box(left: int, top: int, wide: int, high: int) -> Box:
    return Box(left, top, left + wide, top + high)


def _mask(row: Row, length: int) -> np.ndarray:
    doc, order, stream = (
        torch.from_numpy(getattr(row, name)[None, :length]) for name in ("doc", "order", "stream")
    )
    return dense_mask(doc, order, stream)[0].numpy()


def _numbers(
    draw: ImageDraw.ImageDraw, box: Box, values: np.ndarray, colours: np.ndarray, scale: float
) -> None:
    """A run's value in its middle, where it fits."""
    starts = np.flatnonzero(np.diff(values, prepend=values[0] - 1))
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        text = str(values[start])
        if values[start] < 0 or width(text, SMALL) + 2 > (end - start) * scale:
            continue
        dark = colours[start] @ np.array([0.3, 0.59, 0.11]) < 130
        middle = box.left + (start + end) / 2 * scale, (box.top + box.bottom) / 2
        draw.text(middle, text, "white" if dark else INK, font(SMALL), anchor="mm")


def legend() -> Picture.Image:
    """What the colours mean, and how the mask is read; as wide as two rows."""
    image = Picture.new("RGB", (2 * WIDTH, 210), PAPER)
    draw = ImageDraw.Draw(image)

    def words(at: tuple[int, int], text: str, colour: str = INK, room: int = 420) -> int:
        return write(draw, at, wrap(text, TEXT_SIZE, room, 8), TEXT_SIZE, colour) + 4

    def swatches(left: int, top: int, colours: dict[str, str]) -> None:
        for name, colour in colours.items():
            draw.rectangle([left, top + 1, left + 18, top + 15], colour)
            top = words((left + 28, top), name, SOFT)

    first, second, third, fourth = GAP, 270, 750, 1240
    swatches(first, words((first, GAP), "kind: what a token is"), KINDS)
    top = words((second, GAP), "doc: which document it belongs to")
    top = words((second, top), "A document sees itself alone.", SOFT)
    top = words((second, top + 16), "order: its place in causal time")
    ramp = np.tile(_gradient(np.linspace(0, 1, 200)), (14, 1, 1))
    image.paste(Picture.fromarray(ramp), (second, top + 1))
    top = words((second + 210, top), "first to last", SOFT)
    words(
        (second, top),
        "The tokens of a label, of a clean picture and of an AR step share one.",
        SOFT,
    )
    top = words((third, GAP), "stream: which copy of a picture it is")
    copies = {f"{n}, noisy: to be denoised": colour for n, colour in enumerate(STREAMS[1:3], 1)}
    swatches(third, top, {"0, clean": STREAMS[0], **copies, "and so on": STREAMS[3]})
    top = words((fourth, GAP), "mask: what a token may see", room=660)
    for line in (
        "A line is a token that looks, a column one that is looked at. Coloured is what it sees: "
        "what is clean and earlier in order, and what shares its order and its stream.",
        "Text is causal: a triangle. A label, a clean picture or an AR step sees all of itself: "
        "a square. A noisy step sees itself, and of its picture the clean steps before it.",
    ):
        top = words((fourth, top), line, SOFT, 660)
    return image


def page(rows: list[Drawn]) -> Picture.Image:
    """The legend, and below it the rows, two side by side."""
    pairs = [rows[at : at + 2] for at in range(0, len(rows), 2)]
    head = legend()
    high = head.height + sum(max(d.picture.height for d in pair) for pair in pairs)
    image = Picture.new("RGB", (2 * WIDTH, high), PAPER)
    image.paste(head, (0, 0))
    top = head.height
    for pair in pairs:
        for side, drawn in enumerate(pair):
            image.paste(drawn.picture, (side * WIDTH, top))
        top += max(drawn.picture.height for drawn in pair)
    return image
