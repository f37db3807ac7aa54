"""A time budget: the best measured way to draw within so many milliseconds, on this machine.

`mmfusion eval frontier` measures a model at points of its dials and writes a frontier file, once
beside its page and once where it is found by the weights' SHA-256, the machine and the task. Here
such files are described, found, read, and a point of one is chosen.
"""

import json
import logging
import os
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
from mmfusion.export import WEIGHTS
from mmfusion.manifest import MANIFEST, sha256

log = logging.getLogger("mmfusion")
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
    weights_sha256: str
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


def weights_digest(folder: Path) -> str:
    """The digest of an exported model's weights, as its verified manifest has it."""
    digests = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return digests.get(WEIGHTS) or sha256(folder / WEIGHTS)


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


def choose(frontier: Frontier, milliseconds: float) -> Point:
    """The point of the lowest distance whose time is within the budget, the faster of equals.

    Raises:
        UserError: even the fastest point takes longer.
    """
    within = [p for p in pareto(frontier.points) if p.milliseconds <= milliseconds]
    if not within:
        fastest = min(point.milliseconds for point in frontier.points)
        raise UserError(
            f"budget_ms {milliseconds:g}: the fastest measured {frontier.task} takes "
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


def write(path: Path, data: bytes) -> None:
    """Write a file that appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    os.replace(part, path)


def known(weights: str, machine: Machine, task: str) -> Path:
    """Where the frontier of these weights on this machine is kept for the user.

    In `$MMFUSION_CACHE`, else `$XDG_CACHE_HOME/mmfusion`, else `~/.cache/mmfusion`.
    """
    own, shared = os.environ.get("MMFUSION_CACHE"), os.environ.get("XDG_CACHE_HOME")
    folder = Path(own) if own else Path(shared or Path.home() / ".cache") / "mmfusion"
    name = re.sub(r"[^a-z0-9]+", "-", str(machine).lower()).strip("-")
    return folder / "frontiers" / f"{weights[:16]}-{name}-{task}.json"


class Budget:
    """Milliseconds for a picture, turned into options of a call.

    Args:
        config: of the model.
        weights: their SHA-256; None for a model that came from no exported folder.
        machine: where it runs.
        milliseconds: for every call that does not say otherwise; None is no budget.
        path: a frontier file to go by; default: the one that was measured on this machine.

    Raises:
        UserError: the budget cannot be kept for any task of the model.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: str | None,
        machine: Machine,
        milliseconds: float | None = None,
        path: str | Path | None = None,
    ) -> None:
        self.weights, self.machine, self.milliseconds = weights, machine, milliseconds
        self.path = Path(path) if path is not None else None
        self._read: dict[str, Frontier] = {}
        if milliseconds is None:
            return
        mistakes = []
        for task in measurable(config):
            try:
                self.point(task, milliseconds)
            except UserError as error:
                mistakes.append(str(error))
            else:
                return
        raise UserError("\n".join(mistakes) or "budget_ms: this model draws no single pictures")

    def fill(self, task: str, options: dict[str, Any]) -> dict[str, Any]:
        """The options of a call of `task`, those that it leaves open taken from the budget's point.

        An option `budget_ms` among them stands for this call only.
        """
        own = {name: value for name, value in options.items() if name != "budget_ms"}
        milliseconds = options.get("budget_ms", self.milliseconds)
        if task not in TASKS:
            if options.get("budget_ms") is not None:
                raise UserError(f"budget_ms: only for {' and '.join(TASKS)}, not for {task}")
            return own
        if milliseconds is None:
            return own
        given = {name: value for name, value in own.items() if value is not None}
        return self.point(task, milliseconds).options.model_dump(exclude_none=True) | given

    def point(self, task: str, milliseconds: float) -> Point:
        """The best measured point of a task within so many milliseconds.

        Raises:
            UserError: nothing was measured, the file is damaged, or the budget is too small.
        """
        if isinstance(milliseconds, bool) or not isinstance(milliseconds, (int, float)):
            raise UserError(f"budget_ms {milliseconds!r}: give milliseconds for a picture")
        if not milliseconds > 0:
            raise UserError(f"budget_ms {milliseconds}: give more than 0 milliseconds")
        if task not in self._read:
            self._read[task] = self._given(self.path, task) if self.path else self._found(task)
        return choose(self._read[task], milliseconds)

    def _given(self, path: Path, task: str) -> Frontier:
        frontier = read(path)
        if frontier.task != task:
            raise UserError(f"{path}: a frontier of {frontier.task}, not of {task}")
        if self.weights not in (None, frontier.weights_sha256):
            raise UserError(
                f"{path}: measured with other weights ({frontier.model}, SHA-256 "
                f"{frontier.weights_sha256[:16]}; this model's is {str(self.weights)[:16]})"
            )
        if frontier.machine != self.machine:
            log.warning(
                "%s: times of another machine (%s; this is %s)",
                path,
                frontier.machine,
                self.machine,
            )
        return self._current(frontier, path)

    def _found(self, task: str) -> Frontier:
        if self.weights is None:
            raise UserError(
                "budget_ms: this model came from no exported folder, so that its measurements "
                "cannot be found; give frontier=PATH, a file of `mmfusion eval frontier`"
            )
        path = known(self.weights, self.machine, task)
        if not path.is_file():
            others = path.parent.glob(f"{self.weights[:16]}-*-{task}.json")
            seen = "; ".join(sorted(str(read(other).machine) for other in others))
            raise UserError(
                f"budget_ms: {task} of this model was not measured on {self.machine}"
                f"{f' (but on {seen})' if seen else ''}; run\n"
                f"  mmfusion eval frontier --model MODEL --task {task} --reference DATA -o FOLDER\n"
                "with this model once, or give frontier=PATH"
            )
        frontier = read(path)
        if (frontier.weights_sha256, frontier.task) != (self.weights, task):
            raise UserError(f"{path}: not of this model and task; delete it and measure anew")
        return self._current(frontier, path)

    def _current(self, frontier: Frontier, path: Path) -> Frontier:
        then = frontier.versions.get("torch")
        if then != torch.__version__:
            log.warning(
                "%s: measured with torch %s, this is %s; times may differ, "
                "`mmfusion eval frontier` measures anew",
                path,
                then,
                torch.__version__,
            )
        return frontier


def _processor() -> str:
    """The CPU's name, as Linux tells it where it does."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = ""
    named = re.search(r"^model name\s*:\s*(.+)$", told, re.M)
    return named[1].strip() if named else platform.processor() or platform.machine()
