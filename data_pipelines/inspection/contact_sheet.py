"""A contact sheet: samples as they are in the shards, to be looked at.

A sample with a picture of its own is a cell of the grid. The parts of an interleaved one are cells
side by side; what is learned of it has a coloured frame.
"""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PILImage

from mmfusion.codecs.image import flat
from mmfusion.errors import CorruptSample

from ..samples import Sample, moments_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 8
MOST_PARTS = 2 * COLUMNS - 1  # of an interleaved sample
LEARNED = "#d1495b"

Decode = Callable[[np.ndarray], PILImage.Image]
Part = tuple[PILImage.Image | str, bool]


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
            content = sample.content()
            for part in content[:MOST_PARTS]:
                image = part.kind == "image"
                what = _pictured(sample, part.value, decode) if image else part.value
                shown.parts.append((what, part.target or part.kind == "answer"))
            if len(content) > MOST_PARTS:
                shown.parts.append((f"and {len(content) - MOST_PARTS} more", False))
            return shown
        shown.parts.append((_pictured(sample, None, decode), False))
        if "label" in facts:
            label = sample.label()
            shown.title = f"{label}: {classes[label]}" if label < len(classes) else f"class {label}"
        if "captions" in facts:
            first, *rest = sample.captions()
            shown.caption = f"{first} (and {len(rest)} more)" if rest else first
    except CorruptSample as error:
        shown.title = f"damaged, {error.reason}"
        shown.caption = str(error).removeprefix(sample.where)
    return shown


def _pictured(sample: Sample, name: str | None, decode: Decode | None) -> PILImage.Image | str:
    try:
        if moments_name(name) not in sample:
            return flat(sample.picture(name))
        moments = sample.moments(moments_name(name))
    except CorruptSample as error:
        return f"damaged, {error.reason}: {str(error).removeprefix(sample.where)}"
    mean = moments[0, 0].astype(np.float32)
    return decode(mean) if decode else false_colour(mean)


def false_colour(latents: np.ndarray) -> PILImage.Image:
    """The first three channels of latents (c, h, w) as red, green and blue, each stretched."""
    three = latents[[0, 1 % len(latents), 2 % len(latents)]]
    low, high = np.percentile(three, [1, 99], axis=(1, 2), keepdims=True)
    scaled = (three - low) / np.maximum(high - low, 1e-6)
    return PILImage.fromarray(np.rint(scaled.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))


def draw_sheet(sections: list[tuple[str, list[Shown]]]) -> "Figure":
    """All samples below their section's heading, `COLUMNS` cells in a line."""
    from matplotlib.figure import Figure

    heights = [-(-sum(max(1, len(s.parts)) for s in shown) // COLUMNS) for _, shown in sections]
    ratios = [2.3 * lines + 0.4 for lines in heights]
    figure = Figure((2 * COLUMNS, sum(ratios)), layout="constrained")
    parts = figure.subfigures(len(sections), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for part, lines, (heading, shown) in zip(parts, heights, sections, strict=True):
        part.suptitle(heading, fontsize=11, parse_math=False)
        axes = list(part.subplots(max(1, lines), COLUMNS, squeeze=False).flat)
        for each in axes:
            each.axis("off")
        cells = iter(axes)
        for sample in shown:
            for number, (what, learned) in enumerate(sample.parts or [("", False)]):
                _draw(next(cells), sample, what, learned, first=number == 0)
    return figure


def _draw(axes: Any, sample: Shown, what: PILImage.Image | str, learned: bool, first: bool) -> None:
    """A part of a sample; under the first of them the sample's key, class and caption."""
    axes.axis("on")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=LEARNED if learned else "#d6d9e0", linewidth=2 if learned else 0.5)
    colour = LEARNED if learned else "black"
    small = {"fontsize": 7, "parse_math": False}
    if isinstance(what, str):
        text = textwrap.fill(what, 24, max_lines=9, placeholder="…")
        axes.text(0.5, 0.5, text, color=colour, ha="center", va="center", **small)
    else:
        axes.imshow(
            what.convert("RGB"),
            interpolation="nearest" if what.width < 100 else "antialiased",
        )
    if first:
        said = [sample.key, sample.title, sample.caption]
        lines = [textwrap.fill(s, 34, max_lines=3, placeholder="…") for s in said if s]
        axes.set_xlabel("\n".join(lines), loc="left", **small)
