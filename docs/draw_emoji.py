"""Draws docs/images/emoji.png: what an emoji model draws, edits, captions, restyles and continues.

python docs/draw_emoji.py MODEL DATA OUT.png

Names across, styles down, cells that no task has framed; beneath them a row each of the other
tasks. Cells are the first ones of the evaluation's test (seed 0), none picked.
"""

import sys
import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image as PILImage

from mmfusion import ImageSlot, Pipeline
from mmfusion.data_pipelines.converters.emoji import RESTYLE
from mmfusion.eval.emoji.cells import Test, prompt, read_real
from mmfusion.eval.emoji.sheets import NAMES, table_cells

FRAME, INK = "#2f5fa8", "#1d1c1a"


def show(axes: Axes, picture: PILImage.Image, framed: bool = False) -> None:
    """A picture; its cell's edge is drawn where it is framed."""
    axes.imshow(picture.convert("RGB"), interpolation="nearest")
    for spine in axes.spines.values():
        spine.set(visible=framed, color=FRAME, linewidth=2)


def write(axes: Axes, text: str) -> None:
    """Words in the place of a picture."""
    axes.text(0.5, 0.5, textwrap.fill(text, 13), ha="center", va="center", fontsize=7, color=INK,
              transform=axes.transAxes)  # fmt: skip


def others(pipeline: Pipeline, test: Test) -> list[list]:
    """Rows of words and pictures: edit, caption; restyle, analogy, whose answers are framed."""
    real, asked = test.real.pictures, test.asked
    given, other = real[asked[0].trained], test.other_name(asked[0].trained)
    edited = pipeline.edit(given, "bottom", prompt(other))
    shown, wanted = real[asked[1].kept], asked[2].kept
    restyle = [real[asked[2].trained], RESTYLE.format(style=wanted[1])]
    last = asked[3]
    cells = (last.example, last.trained[1]), (last.example, last.kept[1]), last.trained
    analogy = [real[cell] for cell in cells]
    return [
        ["edit", given, f"the bottom as {prompt(other)} →", edited,
         "", "caption", shown, "→ " + pipeline.image_to_text(shown)],
        ["restyle", *restyle, (pipeline.generate([*restyle, ImageSlot()])[-1], True),
         "analogy", *analogy, (pipeline.generate([*analogy, ImageSlot()])[-1], True)],
    ]  # fmt: skip


def draw(model: str, data: Path) -> Figure:
    """The sheet, a cell an inch."""
    pipeline, test = Pipeline.from_pretrained(model), Test(read_real(data), "held_out", NAMES, 0)
    cells = table_cells(test)
    made = iter(pipeline.text_to_image([prompt(cell) for row in cells for cell in row]))
    rows: list[list] = [["", *(cell[0] for cell in cells[0])]]
    rows += [
        [row[0][1], *((next(made), cell not in test.real.trained) for cell in row)]
        for row in cells
    ]  # fmt: skip
    rows += others(pipeline, test)
    columns = max(map(len, rows))
    heights = [0.4, *[1.0] * (len(rows) - 1)]
    figure = Figure((columns, sum(heights)), facecolor="white")
    places = figure.subplots(len(rows), columns, height_ratios=heights, squeeze=False)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.99, wspace=0.12, hspace=0.12)
    for row, line in zip(rows, places, strict=True):
        for axes in line:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for part, axes in zip(row, line, strict=False):
            if isinstance(part, str):
                write(axes, part)
            else:
                show(axes, *(part if isinstance(part, tuple) else (part,)))
    return figure


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    draw(sys.argv[1], Path(sys.argv[2])).savefig(sys.argv[3], dpi=84, metadata={"Software": None})
