"""Charts for pages: SVG by matplotlib, readable on light and dark ground, the same bytes again."""

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, ACCENT = "#85817a", "#4f7fc8"  # on white as on black
MOST = 200  # points of a curve
LOSSES = {"loss": "Loss", "image_loss": "Image loss", "text_loss": "Text loss"}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "mmfusion", "svg.fonttype": "path", "font.size": 9, "axes.grid": True,
    "grid.alpha": 0.25, "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False,
}  # fmt: skip


def svg(draw: Callable[["Axes"], None], width: float = 4.2, height: float = 2.4) -> bytes:
    """What `draw` puts onto axes, as an SVG of so many inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure((width, height), layout="constrained")
        draw(figure.add_subplot())
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def _log(axis: Any) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:.3g}")


def line(points: Mapping[float, float], xlabel: str, ylabel: str) -> bytes:
    """One curve with a logarithmic height; of many points means of neighbours."""
    parts = np.array_split(np.array(sorted(points.items())), min(MOST, len(points)))
    x, y = np.array([part.mean(0) for part in parts]).T

    def draw(axes: "Axes") -> None:
        axes.plot(x, y, color=ACCENT, linewidth=1.2)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _log(axes.yaxis)

    return svg(draw)


def losses(path: Path) -> dict[str, bytes]:
    """A chart of each loss in a metrics file that has two values or more, by its title.

    A line that is cut short (training was killed) is left out.
    """
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            held = json.loads(text)
        except ValueError:
            continue
        lines += [held] if isinstance(held, dict) else []
    found = {}
    for key, title in LOSSES.items():
        points = {m["step"]: m[key] for m in lines if _finite(m.get("step"), m.get(key))}
        if len(points) > 1:
            found[title] = line(points, "step", title.lower())
    return found


def _finite(*values: Any) -> bool:
    return all(isinstance(v, (int, float)) and math.isfinite(v) and v >= 0 for v in values)


def scatter(
    groups: Mapping[str, Sequence[tuple[float, float]]],
    frontier: Sequence[tuple[float, float]],
    xlabel: str,
    ylabel: str,
    width: float = 4.2,
) -> bytes:
    """Points in groups, each with a colour and a line, and numbered corners of a frontier.

    A group named "" is of dots without a line. Both axes are logarithmic.
    """

    def draw(axes: "Axes") -> None:
        if frontier:
            axes.step(*zip(*frontier, strict=True), where="post", color=INK, alpha=0.4, linewidth=3)
        for name, points in groups.items():
            x, y = zip(*points, strict=True)
            axes.plot(x, y, "-o" if name else "o", label=name or None, markersize=4)
        if "" in groups:
            for number, at in enumerate(frontier, start=1):
                axes.annotate(str(number), at, (0, 5), textcoords="offset points", ha="center")
        else:
            axes.legend()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _log(axes.xaxis)
        if all(y > 0 for points in groups.values() for _, y in points):
            _log(axes.yaxis)

    return svg(draw, width, 3.2 if width > 5 else 2.6)
