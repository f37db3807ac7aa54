"""Quality against time, as `mmfusion eval frontier` measured it on a machine: points, their file.

The file lies beside the command's page, and once more where it is found by the model's SHA-256,
the machine and the task.
"""

import json
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from mmfusion.config import ModelConfig, build
from mmfusion.config.section import Section
from mmfusion.errors import UserError
from mmfusion.home import cache_folder

FILE = "frontier.json"
TASKS = ("class_to_image", "text_to_image")
"""What is measured. Edits and interleaved prompts take other times, so no budget is kept there."""


class Machine(Section):
    """What times depend on besides model and options; times of another machine say nothing here."""

    device: str
    """Name of the GPU, or of the CPU."""
    threads: int | None
    """Of torch on a CPU; None on a GPU."""
    dtype: str
    """Of the weights."""

    def __str__(self) -> str:
        threads = "" if self.threads is None else f", {self.threads} thread"
        threads += "s" if (self.threads or 1) > 1 else ""
        return f"{self.device}{threads}, {self.dtype}"


class Dials(Section):
    """The options that are measured: the rest are the model's own for the task."""

    ar_steps: int = Field(gt=0)
    scheduler: str
    num_inference_steps: int = Field(gt=0)
    guidance: float = Field(ge=0)
    ar_sizes: list[int] | None = None
    """Only where the model's own default has sizes, which `ar_steps` could not change."""


class Point(Section):
    """What one setting of the dials gives."""

    options: Dials
    distance: float = Field(ge=0)
    """Fréchet distance from the reference."""
    milliseconds: float = Field(gt=0)
    """Of one picture alone, the median of several."""
    pictures_per_second: float = Field(gt=0)
    """Side by side in batches."""
    on_frontier: bool = False
    """No other point is both as fast and as near."""


class Frontier(Section):
    """All points of a run of `mmfusion eval frontier`."""

    model: str
    model_sha256: str
    """Of config, weights, tokenizer and autoencoder: `export.model_digest`."""
    task: str
    """One of `TASKS`."""
    machine: Machine
    versions: dict[str, str]
    seed: int
    batch_size: int
    quality: dict[str, Any]
    """What the distances depend on: n, extractor, reference and its digest."""
    points: list[Point] = Field(min_length=1)
    left_out: list[str] = Field([])
    """Why points that were asked for were not measured."""


def describe(weight: torch.Tensor) -> Machine:
    """The machine on which a model with this parameter runs."""
    dtype = str(weight.dtype).removeprefix("torch.")
    if weight.device.type == "cuda":
        name = torch.cuda.get_device_name(weight.device)
        return Machine(device=name, threads=None, dtype=dtype)
    return Machine(device=_processor(), threads=torch.get_num_threads(), dtype=dtype)


def measurable(config: ModelConfig) -> list[str]:
    """The tasks of a model that can be measured."""
    can = {"class_to_image": bool(config.classes), "text_to_image": config.text is not None}
    return [task for task in TASKS if can[task]]


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both time and distance, the fastest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.milliseconds, p.distance)):
        if not best or point.distance < best[-1].distance:
            best.append(point)
    return best


def choose(frontier: Frontier, milliseconds: float, best_of: int = 1) -> Point:
    """The point of the lowest distance whose time is within the budget, the faster of equals.

    Args:
        best_of: how many pictures have to be drawn one by one within it.

    Raises:
        UserError: even the fastest point takes longer.
    """
    within = [p for p in pareto(frontier.points) if p.milliseconds * best_of <= milliseconds]
    if not within:
        fastest = best_of * min(point.milliseconds for point in frontier.points)
        of = f" with best_of {best_of}" if best_of > 1 else ""
        raise UserError(
            f"budget_ms {milliseconds:g}: the fastest measured {frontier.task}{of} takes "
            f"{fastest:.1f} ms on {frontier.machine}; give at least {int(fastest) + 1}, or measure "
            "fewer steps with `mmfusion eval frontier --steps`"
        )
    return within[-1]


def read(path: Path) -> Frontier:
    """Read a frontier file, or the one in a folder.

    Raises:
        UserError: it is missing or damaged.
    """
    path = path / FILE if path.is_dir() else path
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `mmfusion eval frontier` writes one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not a readable frontier ({error}); delete it and measure anew with "
            "`mmfusion eval frontier`"
        ) from None
    return build(Frontier, raw, f"{path}: not a frontier; delete it and measure anew")


def known(digest: str, machine: Machine, task: str) -> Path:
    """Where the frontier of this model on this machine is kept for the user."""
    name = re.sub(r"[^a-z0-9]+", "-", str(machine).lower()).strip("-")
    return cache_folder() / "frontiers" / f"{digest[:16]}-{name}-{task}.json"


def _processor() -> str:
    """The CPU's name, as Linux tells it where it does."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = ""
    named = re.search(r"^model name\s*:\s*(.+)$", told, re.M)
    return named[1].strip() if named else platform.processor() or platform.machine()
