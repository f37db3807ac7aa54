"""Training curves as points of small charts, from the lines that training writes."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, HEIGHT = 360, 180
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
POINTS = 200
"""Points a line; more steps are averaged."""
CURVES = {"loss": "Loss", "image_loss": "Image loss", "text_loss": "Text loss"}


@dataclass(frozen=True)
class Chart:
    """One curve over training steps; the loss axis is logarithmic.

    Attributes:
        line: points of an SVG polyline, in a box of WIDTH x HEIGHT.
        rows, columns: (place, label) of the ticks of the vertical and the horizontal axis.
        first, last: the curve's ends, for those who cannot see it.
    """

    title: str
    line: str
    rows: list[tuple[float, str]]
    columns: list[tuple[float, str]]
    first: float
    last: float


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; one that is cut short (training was killed) is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def charts(metrics: list[dict[str, Any]]) -> list[Chart]:
    """A chart of every loss in the metrics that has two values or more."""
    found = []
    for key, title in CURVES.items():
        points = [(m["step"], m[key]) for m in metrics if _drawable(m.get("step"), m.get(key))]
        if len({step for step, _ in points}) > 1:
            found.append(_chart(title, np.array(sorted(points), dtype=float)))
    return found


def _drawable(step: Any, value: Any) -> bool:
    numbers = isinstance(step, (int, float)) and isinstance(value, (int, float))
    return numbers and math.isfinite(step) and math.isfinite(value) and value > 0


def _chart(title: str, points: np.ndarray) -> Chart:
    parts = np.array_split(points, min(POINTS, len(points)))
    steps, values = np.array([part.mean(0) for part in parts]).T
    low, high = np.log10(values.min()), np.log10(values.max())
    # A flat curve still needs a range, and no chart may blow noise up to its full height.
    if high - low < 0.1:
        low, high = low - 0.05, high + 0.05

    def across(step: Any) -> Any:
        span = steps[-1] - steps[0]
        return LEFT + (step - steps[0]) / span * (WIDTH - LEFT - RIGHT)

    def down(value: Any) -> Any:
        return TOP + (high - np.log10(value)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across(steps), down(values), strict=True))
    rows = [(round(float(down(v)), 1), f"{v:.3g}") for v in np.logspace(low, high, 4)]
    columns = [
        (round(float(across(s)), 1), f"{s:,.0f}") for s in np.linspace(steps[0], steps[-1], 3)
    ]
    return Chart(title, line, rows, columns, float(values[0]), float(values[-1]))
