"""HTML pages and their charts: each page one file that loads nothing, with all pictures inside.

So a page can be mailed, archived and opened without a network. What a model wrote is escaped: a
caption is as little to be trusted as any other input. Charts are SVG by matplotlib, readable on
light and dark ground, and the same bytes again.
"""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image as PILImage

from mmfusion import jsonl
from mmfusion.codecs.image import encoded

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
Points = Sequence[tuple[float, float]]


def render(template: str, **values: Any) -> bytes:
    """A page of a template, whose path is below this folder, as UTF-8."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "data_uri": data_uri,
        "percent": lambda share: f"{100 * share:.1f}%",
        "duration": lambda s: f"{s:.1f} s" if s < 60 else f"{s // 60:.0f} min {s % 60:.0f} s",
    }
    # A caption from a damaged model may hold lone surrogates, which UTF-8 cannot.
    return environment.get_template(template).render(values).encode("utf-8", "replace")


def data_uri(picture: PILImage.Image | bytes) -> str:
    """A picture, or the bytes of a PNG or SVG, inside a URL."""
    data = picture if isinstance(picture, bytes) else encoded(picture)
    kind = "svg+xml" if data.startswith(b"<?xml") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def losses(path: Path) -> dict[str, bytes]:
    """A chart of each loss in a metrics file that has two values or more, by its title.

    The height is logarithmic, so a loss of which there is none (0) has no chart; of many points the
    means of neighbours are drawn.
    """
    lines = list(jsonl.objects(path)) if path.is_file() else []
    found = {}
    for key, title in LOSSES.items():
        points = {m["step"]: m[key] for m in lines if _positive(m.get("step"), m.get(key))}
        if len(points) < 2:
            continue
        parts = np.array_split(np.array(sorted(points.items())), min(MOST, len(points)))
        x, y = np.array([part.mean(0) for part in parts]).T

        def draw(axes: "Axes", x: np.ndarray = x, y: np.ndarray = y, title: str = title) -> None:
            axes.plot(x, y, color=ACCENT, linewidth=1.2)
            axes.set(xlabel="step", ylabel=title.lower())
            _log(axes.yaxis)

        found[title] = svg(draw, 4.2, 2.4)
    return found


def _positive(*values: Any) -> bool:
    return all(isinstance(v, (int, float)) and math.isfinite(v) and v > 0 for v in values)


def scatter(groups: Mapping[str, Points], frontier: Points, xlabel: str, ylabel: str) -> bytes:
    """Points in groups, each with a colour and a line, beside the corners of a frontier.

    A group named "" is of dots without a line, on a wide chart that numbers the corners. Both axes
    are logarithmic.
    """
    whole = "" in groups

    def draw(axes: "Axes") -> None:
        axes.step(*zip(*frontier, strict=True), where="post", color=INK, alpha=0.4, linewidth=3)
        for name, points in groups.items():
            x, y = zip(*points, strict=True)
            axes.plot(x, y, "o" if whole else "-o", label=name or None, markersize=4)
        if whole:
            for number, at in enumerate(frontier, start=1):
                axes.annotate(str(number), at, (0, 5), textcoords="offset points", ha="center")
        else:
            axes.legend()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _log(axes.xaxis)
        if all(y > 0 for points in groups.values() for _, y in points):
            _log(axes.yaxis)

    return svg(draw, *((8, 3.2) if whole else (4.2, 2.6)))


def svg(draw: Callable[["Axes"], None], width: float, height: float) -> bytes:
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
