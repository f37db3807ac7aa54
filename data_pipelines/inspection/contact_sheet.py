"""A contact sheet: samples as they are in the shards, to be looked at.

A sample with a picture of its own is a cell of the grid. The parts of an interleaved one are cells
side by side; what is learned of it has a coloured frame.
"""

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image as PILImage

from mmfusion.codecs.image import flat
from mmfusion.errors import CorruptSample, printable

from ..samples import Sample, moments_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 8
MOST_PARTS = 2 * COLUMNS - 1  # of an interleaved sample
LEARNED = "#d1495b"

Decode = Callable[[np.ndarray], PILImage.Image]


class Cell(NamedTuple):
    """A picture or a text, whether it is learned, and the lines below it."""

    what: PILImage.Image | str
    learned: bool = False
    below: Sequence[str] = ()


def show(sample: Sample, classes: list[str], decode: Decode | None = None) -> list[Cell]:
    """What is to be shown of a sample; what is damaged of it is said in words."""
    try:
        facts = sample.json()
        if "content" in facts:
            return _strip(sample, decode)
        below = [sample.key]
        if "label" in facts:
            label = sample.label()
            below += [f"{label}: {classes[label]}" if label < len(classes) else f"class {label}"]
        if "captions" in facts:
            first, *rest = sample.captions()
            below += [f"{first} (and {len(rest)} more)" if rest else first]
    except CorruptSample as error:
        below = [sample.key, _damaged(sample, error)]
    return [Cell(_pictured(sample, None, decode), False, below)]


def _strip(sample: Sample, decode: Decode | None) -> list[Cell]:
    """An interleaved sample, part by part, with the key below the first."""
    cells, content = [], sample.content()
    for part in content[:MOST_PARTS]:
        image = part.kind == "image"
        what = _pictured(sample, part.value, decode) if image else part.value
        cells.append(Cell(what, part.target or part.kind == "answer"))
    if len(content) > MOST_PARTS:
        cells.append(Cell(f"and {len(content) - MOST_PARTS} more"))
    return [cells[0]._replace(below=[sample.key]), *cells[1:]]


def _damaged(sample: Sample, error: CorruptSample) -> str:
    return f"damaged, {error.reason}: {str(error).removeprefix(sample.where)}"


def _pictured(sample: Sample, name: str | None, decode: Decode | None) -> PILImage.Image | str:
    try:
        if moments_name(name) not in sample:
            return flat(sample.picture(name))
        moments = sample.moments(moments_name(name))
    except CorruptSample as error:
        return _damaged(sample, error)
    mean = moments[0, 0].astype(np.float32)
    return decode(mean) if decode else false_colour(mean)


def false_colour(latents: np.ndarray) -> PILImage.Image:
    """The first three channels of latents (c, h, w) as red, green and blue, each stretched."""
    three = latents[[0, 1 % len(latents), 2 % len(latents)]]
    low, high = np.percentile(three, [1, 99], axis=(1, 2), keepdims=True)
    scaled = (three - low) / np.maximum(high - low, 1e-6)
    return PILImage.fromarray(np.rint(scaled.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))


def draw_sheet(sections: dict[str, list[Cell]]) -> "Figure":
    """All cells below their section's heading, `COLUMNS` of them in a line."""
    from matplotlib.figure import Figure

    lines = [-(-len(cells) // COLUMNS) for cells in sections.values()]
    heights = [2.3 * count + 0.4 for count in lines]
    figure = Figure((2 * COLUMNS, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(sections), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, count, (heading, cells) in zip(parts, lines, sections.items(), strict=True):
        part.suptitle(printable(heading), fontsize=11, parse_math=False)
        grid = list(part.subplots(count, COLUMNS, squeeze=False).flat)
        for axes, cell in zip(grid, cells, strict=False):
            _draw(axes, cell)
        for axes in grid[len(cells) :]:
            axes.axis("off")
    return figure


def _filled(text: str, width: int, lines: int) -> str:
    """Text as matplotlib can draw it: half of a surrogate pair, as in broken JSON, is none."""
    shown = printable(" ".join(text.split()))
    return textwrap.fill(shown, width, max_lines=lines, placeholder="…")


def _draw(axes: Any, cell: Cell) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(
            color=LEARNED if cell.learned else "#d6d9e0", linewidth=2 if cell.learned else 0.5
        )
    small = {"fontsize": 7, "parse_math": False}
    if isinstance(cell.what, str):
        text = _filled(cell.what, 24, 9)
        colour = LEARNED if cell.learned else "black"
        axes.text(0.5, 0.5, text, color=colour, ha="center", va="center", **small)
    else:
        smooth = "antialiased" if cell.what.width >= 100 else "nearest"
        axes.imshow(cell.what.convert("RGB"), interpolation=smooth)
    lines = [_filled(line, 34, 3) for line in cell.below]
    axes.set_xlabel("\n".join(lines), loc="left", **small)
