"""The frontier's page: quality against time, one line for each value of a dial.

Both axes are logarithmic. The frontier is drawn in steps, since between two of its points a budget
buys no more than the faster one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmfusion.files import write
from mmfusion.generation.frontier import Frontier, Point, pareto

from ..pages import render
from .points import name_of

PAGE = "frontier.html"
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 40
DIALS = {
    "ar_steps": ("AR steps", "S = {}"),
    "scheduler": ("Scheduler", "{}"),
    "num_inference_steps": ("Inference steps", "{} steps"),
    "guidance": ("Guidance", "w = {:g}"),
}
SHADES = 6
"""Colours of lines; more values than that take them in turn."""


@dataclass(frozen=True)
class Dot:
    """A point's place, and what is said of it."""

    x: float
    y: float
    said: str
    number: int = 0
    """Of the frontier's points, from 1; 0 for the others."""


@dataclass(frozen=True)
class Line:
    """The best that one value of a dial reaches."""

    name: str
    shade: int
    path: str
    dots: list[Dot]


@dataclass(frozen=True)
class Chart:
    """Distance over milliseconds in a box of `width` x `height`.

    Attributes:
        steps: the frontier as points of a polyline.
        dots: points that lie on no line.
        rows, columns: (place, label) of the ticks of the vertical and the horizontal axis.
    """

    title: str
    width: int
    height: int
    steps: str
    dots: list[Dot]
    lines: list[Line]
    rows: list[tuple[float, str]]
    columns: list[tuple[float, str]]


def write_page(folder: Path, frontier: Frontier, sheets: list[bytes]) -> Path:
    """Write frontier.html; it appears when it is complete.

    Args:
        sheets: a PNG of each point's first pictures.
    """
    points = frontier.points
    page = render(
        "frontier/frontier.html.j2",
        f=frontier,
        rows=[(point, sheets[points.index(point)]) for point in pareto(points)],
        whole=_chart("All points", points, 760, 340),
        charts=charts(points),
        box=(LEFT, RIGHT, TOP, BOTTOM),
    )
    write(folder / PAGE, page)
    return folder / PAGE


def charts(points: Sequence[Point]) -> list[Chart]:
    """A chart of each dial that was turned: a line for each of its values."""
    found = []
    for dial, (title, shown) in DIALS.items():
        values = sorted({getattr(point.options, dial) for point in points})
        if len(values) > 1:
            parts = {
                shown.format(v): [p for p in points if getattr(p.options, dial) == v]
                for v in values
            }
            found.append(_chart(title, points, 370, 250, parts))
    return found


def _chart(
    title: str,
    points: Sequence[Point],
    width: int,
    height: int,
    parts: dict[str, list[Point]] | None = None,
) -> Chart:
    across, columns = _axis([p.milliseconds for p in points], LEFT, width - RIGHT)
    down, rows = _axis([p.distance for p in points], height - BOTTOM, TOP)
    best = pareto(points)

    def dot(point: Point) -> Dot:
        said = (
            f"{name_of(point.options)}: distance {point.distance:.3g}, {point.milliseconds:.3g} ms"
        )
        number = best.index(point) + 1 if point in best else 0
        return Dot(across(point.milliseconds), down(point.distance), said, number)

    def drawn(places: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{x},{y}" for x, y in places)

    corners = []
    for point, following in zip(best, [*best[1:], None], strict=True):
        x, y = across(point.milliseconds), down(point.distance)
        end = across(following.milliseconds) if following else width - RIGHT
        corners += [(x, y), (float(end), y)]
    lines = []
    for number, (name, part) in enumerate((parts or {}).items()):
        dots = [dot(point) for point in pareto(part)]
        lines.append(Line(name, number % SHADES, drawn([(d.x, d.y) for d in dots]), dots))
    others = [] if parts else [dot(point) for point in points]
    return Chart(title, width, height, drawn(corners), others, lines, rows, columns)


def _axis(
    values: list[float], start: int, end: int
) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """Where a value lies on a logarithmic axis, and the axis's ticks."""
    known = [value for value in values if value > 0] or [1.0]
    low, high = math.log10(min(known)), math.log10(max(known))
    # Points apart by a hair still need a range, and none may lie on the frame.
    margin = max(0.06 * (high - low), (0.3 - (high - low)) / 2)
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        share = (math.log10(value) - low) / (high - low) if value > 0 else 0.0
        return round(start + share * (end - start), 1)

    ticks = _ticks(10**low, 10**high)
    return place, [(place(tick), f"{tick:g}") for tick in ticks]


def _ticks(low: float, high: float) -> list[float]:
    """Three or more round numbers from `low` to `high`."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        made = (float(f"{step}e{decade}") for decade in decades for step in steps)
        ticks = [tick for tick in made if low <= tick <= high]
        if len(ticks) >= 3:
            return ticks[:: math.ceil(len(ticks) / 8)]
    decade = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = max(n * decade for n in (1, 2, 5) if 3 * n * decade <= high - low)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
