"""Draws docs/images/house.png: the parts of mmfusion, how large they are, and who imports whom.

python docs/draw_house.py
"""

import ast
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
FLOORS = [  # each imports from the floors below it, as tests/test_architecture.py holds
    ["cli"],
    ["serving"],
    ["eval"],
    ["data_pipelines"],
    ["training", "pipeline"],
    ["pretrained"],
    ["generation", "importers", "losses"],
    ["export", "decoder", "cache", "attention", "packing", "mask"],
    ["card", "sequence", "codecs", "diffusion", "split", "hub"],
    ["config", "manifest", "launcher", "overrides", "files", "errors", "rng"],
]
PARTS = [part for floor in FLOORS for part in floor]
GROUND = {"errors", "files", "rng", "overrides", "config"}  # imported by all: no arrows


def files(part: str) -> list[Path]:
    """The Python files of a part: a package or a module of mmfusion."""
    folder = (ROOT / "mmfusion" / part).resolve()  # eval and data_pipelines are links
    return sorted(folder.rglob("*.py")) or [folder.with_suffix(".py")]


def imported(part: str) -> set[str]:
    """The other parts that a part imports."""
    found = set()
    for file in files(part):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            found |= {name.split(".")[1] for name in names if name.startswith("mmfusion.")}
    return (found & set(PARTS)) - {part}


def draw() -> Figure:
    """The house: floors of rooms, as wide as the root of their lines of code."""
    figure = Figure((11, 9), layout="constrained")
    axes = figure.add_subplot()
    axes.axis("off")
    places = {}
    for number, floor in enumerate(FLOORS):
        lines = [sum(len(f.read_text("utf-8").splitlines()) for f in files(p)) for p in floor]
        widths = [max(0.9, (n / 120) ** 0.5) for n in lines]
        left, y = -(sum(widths) + 0.5 * (len(widths) - 1)) / 2, -number * 1.5
        for part, count, width in zip(floor, lines, widths, strict=True):
            text = f"{part}\n{count:,} lines in {len(files(part))}"
            box = {"boxstyle": "round,pad=0.3", "facecolor": "#f4f5f8", "edgecolor": "#4f7fc8"}
            axes.text(left + width / 2, y, text, ha="center", va="center", fontsize=8, bbox=box)
            places[part] = left + width / 2, y
            left += width + 0.5
    for part, (x, y) in places.items():
        for other in imported(part) - GROUND:
            style = {"arrowstyle": "-|>", "color": "#85817a", "alpha": 0.5, "shrinkA": 16}
            axes.annotate("", places[other], (x, y), arrowprops={**style, "shrinkB": 16}, zorder=0)
    xs, ys = zip(*places.values(), strict=True)
    axes.set(xlim=(min(xs) - 1, max(xs) + 1), ylim=(min(ys) - 0.6, max(ys) + 0.6))
    return figure


if __name__ == "__main__":
    draw().savefig(ROOT / "docs/images/house.png", dpi=80, metadata={"Software": None})
