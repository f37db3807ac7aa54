"""Packed rows as pictures: what the decoder is given, and what each token may see.

Above, four bands over the tokens of a row: kind, document, order and stream. Below, on the same
axis, the visibility mask that follows from them (mmfusion/mask.py).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Config, SourceConfig
from mmfusion.errors import printable
from mmfusion.mask import dense_mask
from mmfusion.sequence import IMAGE, LABEL, TEXT, Document, Image, Label, Row, Text, count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = 4  # documents of a row
MOST_TOLD = 110  # characters about a document
KINDS = {
    "padding": "#e3e5ea",
    "text, given": "#5b8def",
    "text, learned": "#1d3f8f",
    "label": "#f0a32f",
    "image, clean": "#3fa66b",
    "image, noisy": "#d1495b",
}
DOCUMENTS = ("#4c78a8", "#f2a65a", "#72b7b2", "#b279a2", "#9d755d", "#8cb369")
STREAMS = ("#cfd8e6", "#d1495b", "#8e5bb5", "#3d7ea6", "#b0832a")  # clean, then noisy copies
ABOUT = """\
kind: what a token is
doc: which document it belongs to; a document sees itself alone
order: its place in causal time, from dark to light; the tokens of a label, a clean picture or an AR
step share one
stream: grey is clean, colours are noisy copies, to be denoised
mask: a line is a token that looks, a column one that is looked at. It sees what is clean and
earlier in order, and what shares its order and its stream: text is a triangle; a label, a clean
picture and an AR step are squares"""


class PlottedRow(NamedTuple):
    """A row with a heading, and a line about each of its documents."""

    row: Row
    about: list[str]


def rgb(colours: Iterable[str]) -> np.ndarray:
    """Colours (n, 3), uint8, of their names."""
    return np.array([list(bytes.fromhex(colour[1:])) for colour in colours], np.uint8)


def bands(row: Row) -> dict[str, np.ndarray]:
    """Colours (L, 3), uint8, of the tokens of a row: by kind, document, order and stream."""
    from matplotlib import colormaps

    learned = row.predict >= 0
    learned[1:] |= learned[:-1].copy()
    shown = {
        "padding": row.doc < 0,
        "text, learned": (row.kind == TEXT) & learned,
        "text, given": row.kind == TEXT,
        "label": row.kind == LABEL,
        "image, noisy": (row.kind == IMAGE) & (row.stream > 0),
        "image, clean": row.kind == IMAGE,
    }
    kinds = rgb(KINDS[name] for name in shown)
    last = max(1, int(row.order[row.doc >= 0].max(initial=1)))
    copy = np.where(row.stream > 0, (row.stream - 1) % (len(STREAMS) - 1) + 1, 0)
    found = {
        "kind": kinds[np.argmax(list(shown.values()), 0)],
        "doc": rgb(DOCUMENTS)[row.doc % len(DOCUMENTS)],
        "order": colormaps["viridis"](np.clip(row.order / last, 0, 1), bytes=True)[:, :3],
        "stream": rgb(STREAMS)[copy],
    }
    return {name: np.where(row.doc[:, None] < 0, kinds[0], c) for name, c in found.items()}


def mask(row: Row, length: int) -> np.ndarray:
    """Colours (length, length, 3): a visible key has the kind of its query; others are white."""
    parts = (torch.from_numpy(p[None, :length]) for p in (row.doc, row.order, row.stream))
    visible = dense_mask(*parts)[0].numpy()
    return np.where(visible[..., None], bands(row)["kind"][:length, None], np.uint8(255))


def plotted(
    config: Config, source: SourceConfig, documents: list[Document], tokenizer: Tokenizer | None
) -> list[PlottedRow]:
    """A row of the first few documents, one after another as in training; none if none fits."""
    row = Row.of(config, config.row_length)
    about: list[str] = []
    for document in documents[:DRAWN]:
        if row.used + count(document, row.label_tokens).tokens > row.length:
            break
        row.document(document)
        about.append(f"doc {len(about)}: {told(document, tokenizer)}"[:MOST_TOLD])
    name = source.name if source.name == source.task else f"{source.name}: {source.task}"
    heading = f"{name}, {len(about)} documents in {row.used} of {row.length} tokens"
    return [PlottedRow(row, [heading, *about])] if about else []


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


def plot_rows(rows: list[PlottedRow]) -> "Figure":
    """All rows, two side by side, above what the colours mean."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    lines = -(-len(rows) // 2)
    figure = Figure((16, 9.5 * lines + 2.2), layout="constrained")
    ratios = [9.5 * lines, 2.2]
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=ratios).flat
    parts = above.subfigures(lines, 2, squeeze=False).flat
    for part, plotted in zip(parts, rows, strict=False):
        _plot(part, plotted)
    patches = [Patch(color=colour, label=name) for name, colour in KINDS.items()]
    below.legend(handles=patches, loc="upper center", ncols=len(patches), frameon=False)
    below.text(0.1, 0.8, ABOUT, va="top")
    return figure


def _plot(figure: Any, plotted: PlottedRow) -> None:
    row = plotted.row
    length = min(row.length, row.used + max(2, row.used // 16))  # not all of the padding
    figure.suptitle(
        "\n".join(map(printable, plotted.about)), fontsize=10, ha="left", x=0.02, parse_math=False
    )
    shown = {name: colours[None, :length] for name, colours in bands(row).items()}
    shown["mask"] = mask(row, length)
    parts = figure.subplots(len(shown), 1, height_ratios=[1, 1, 1, 1, 26], sharex=True)
    for axes, (name, colours) in zip(parts, shown.items(), strict=True):
        axes.imshow(colours, aspect="auto", interpolation="none")
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        axes.set(xticks=[], yticks=[])
