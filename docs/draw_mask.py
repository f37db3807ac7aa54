"""Draws docs/images/mask.png: one document, and what each of its tokens may see.

python docs/draw_mask.py
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mmfusion.data_pipelines.inspection.plot_rows import KINDS, mask
from mmfusion.sequence import Image, Noise, Row, Text
from mmfusion.split import cut

SIZES = 3, 2, 4  # tokens of the AR steps: a picture of 3 x 3
PROMPT, ANSWER = 4, 5  # tokens of the texts before and after it


def document() -> Row:
    """A prompt, a picture to draw in three AR steps, and a text to write about it."""
    latents, noisy = np.zeros((9, 1)), np.zeros((1, 9, 1))
    noise = Noise(noisy, noisy, noisy[..., 0], noisy[..., 0], 2.0)
    order = np.random.default_rng(0).permutation(9)
    row = Row(PROMPT + 2 * sum(SIZES) + ANSWER, 1, 1, 0)
    picture = Image(latents, 3, cut(order, list(SIZES)), noise)
    row.document([Text([0] * PROMPT), picture, Text([0] * ANSWER, loss=True)])
    return row


def draw() -> Figure:
    """The mask with a name for each stretch of tokens, on both axes."""
    row = document()
    parts = {"prompt": PROMPT}
    parts |= {f"clean, step {n}": size for n, size in enumerate(SIZES, 1)}
    parts |= {f"noisy, step {n}": size for n, size in enumerate(SIZES, 1)}
    parts["answer"] = ANSWER
    ends = np.cumsum([*parts.values()])
    middles = ends - np.array([*parts.values()]) / 2 - 0.5
    figure = Figure((8, 7.4), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(mask(row, row.length), interpolation="none")
    for end in ends[:-1] - 0.5:
        axes.axhline(end, color="#9aa0a6", linewidth=0.5)
        axes.axvline(end, color="#9aa0a6", linewidth=0.5)
    axes.set_yticks(middles, [*parts])
    axes.set_xticks(middles, [*parts], rotation=40, ha="left")
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.set_ylabel("a token that looks")
    axes.set_xlabel("what it may see")
    kinds = "text, given", "image, clean", "image, noisy", "text, learned"
    patches = [Patch(color=KINDS[kind], label=kind) for kind in kinds]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, frameon=False)
    return figure


if __name__ == "__main__":
    place = Path(__file__).with_name("images") / "mask.png"
    draw().savefig(place, dpi=100, metadata={"Software": None})
