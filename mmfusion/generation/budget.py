"""A time budget: the best measured way to draw within so many milliseconds, on this machine.

`mmfusion eval frontier` measures points, quality against time, and writes them to a file: beside
its page, and once more where it is found by the model's SHA-256, the machine and the task.
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

from mmfusion.config import build
from mmfusion.config.section import S, Section
from mmfusion.errors import UserError, shown, user_error
from mmfusion.home import cache_folder

log = logging.getLogger("mmfusion")
FILE = "frontier.json"
TASKS = ("class_to_image", "text_to_image")
"""What is measured. Edits and interleaved prompts take other times, so no budget is kept there."""


class Machine(Section):
    """What times depend on besides model and options; times of another machine say nothing here."""

    device: str  # name of the GPU, or of the CPU
    threads: int | None  # of torch on a CPU; None on a GPU
    dtype: str  # of the weights

    @classmethod
    def of(cls, weight: torch.Tensor) -> "Machine":
        """The machine on which a model with this parameter runs."""
        cuda, dtype = weight.device.type == "cuda", str(weight.dtype).removeprefix("torch.")
        name = torch.cuda.get_device_name(weight.device) if cuda else _processor()
        return cls(device=name, threads=None if cuda else torch.get_num_threads(), dtype=dtype)

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        return f"{self.device}{threads}, {self.dtype}"


def _processor() -> str:
    """The CPU's name, as Linux tells it where it does."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = ""
    named = re.search(r"^model name\s*:\s*(.+)$", told, re.M)
    return named[1].strip() if named else platform.processor() or platform.machine()


class Dials(Section):
    """The options that are measured: the rest are the model's own for the task."""

    ar_steps: int = Field(gt=0)
    scheduler: str
    num_inference_steps: int = Field(gt=0)
    guidance: float = Field(ge=0)
    # Only where the model's own default has sizes, which `ar_steps` could not change.
    ar_sizes: list[int] | None = None


class Point(Section):
    """What one setting of the dials gives."""

    options: Dials
    distance: float = Field(ge=0)  # Fréchet's, from the reference
    milliseconds: float = Field(gt=0)  # of one picture alone, the median of several
    pictures_per_second: float = Field(gt=0)  # side by side in batches
    on_frontier: bool = False  # no other point is both as fast and as near


class Frontier(Section):
    """All points of a run of `mmfusion eval frontier`."""

    model: str
    model_sha256: str  # `export.model_digest`
    task: str
    machine: Machine
    versions: dict[str, str]
    seed: int
    batch_size: int
    quality: dict[str, Any]  # what the distances depend on: n, extractor, reference
    points: list[Point] = Field(min_length=1)
    left_out: list[str] = Field([])  # why points that were asked for were not measured

    def within(self, milliseconds: float, best_of: int = 1) -> Point:
        """The nearest point that draws `best_of` pictures in so many milliseconds."""
        best = pareto(self.points)
        fitting = [p for p in best if p.milliseconds * best_of <= milliseconds]
        if not fitting:
            fastest = best_of * best[0].milliseconds
            of = f" with best_of {best_of}" if best_of > 1 else ""
            raise UserError(
                f"budget_ms {milliseconds:g}: the fastest measured {self.task}{of} takes "
                f"{fastest:.1f} ms on {self.machine}; give at least {int(fastest) + 1}, or measure "
                "fewer steps with `mmfusion eval frontier --steps`"
            )
        return fitting[-1]


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both time and distance, the fastest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.milliseconds, p.distance)):
        if not best or point.distance < best[-1].distance:
            best.append(point)
    return best


def read(kind: type[S], path: Path) -> S:
    """A measured frontier or point; a UserError where its file is missing or damaged."""
    bad = f"{path}: not a measured {kind.__name__.lower()}; delete it and measure anew"
    with user_error(bad, OSError, ValueError, RecursionError):
        raw = json.loads(path.read_text(encoding="utf-8"))
    return build(kind, raw, bad)


def kept_at(digest: str, machine: Machine, task: str) -> Path:
    """Where the frontier of this model on this machine is kept for the user."""
    name = re.sub(r"[^a-z0-9]+", "-", str(machine).lower()).strip("-")
    return cache_folder() / "frontiers" / f"{digest[:16]}-{name}-{task}.json"


class Budget:
    """Milliseconds for a picture, turned into options of a call.

    Args:
        digest: of the whole model (`export.model_digest`); None for one from no exported folder.
        machine: where it runs.
        milliseconds: for every call that does not say otherwise; None is no budget. It is refused
            if it cannot be kept for any task.
        path: a frontier file, or its folder; default: the one measured on this machine.
    """

    def __init__(
        self,
        digest: str | None,
        machine: Machine,
        milliseconds: float | None = None,
        path: str | Path | None = None,
    ) -> None:
        self.digest, self.machine, self.milliseconds = digest, machine, milliseconds
        if path is not None and not isinstance(path, (str, Path)):
            raise UserError(f"frontier {shown(path)}: give the path of a file")
        self.path = Path(os.path.expanduser(path)) if path is not None else None
        self._read: dict[str, Frontier] = {}
        if milliseconds is None:
            return
        mistakes = []
        for task in TASKS:
            try:
                self._frontier(task, milliseconds).within(milliseconds)
            except UserError as error:
                mistakes.append(str(error))
        if len(mistakes) == len(TASKS):
            raise UserError("\n".join(dict.fromkeys(mistakes)))

    def fill(self, task: str, options: dict[str, Any], best_of: int = 1) -> dict[str, Any]:
        """The options of a call of `task`, those that it leaves open taken from the budget's point.

        An option `budget_ms` among them stands for this call only, and instead of any dial.
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
        point = self._frontier(task, milliseconds).within(milliseconds, best_of)
        chosen = point.options.model_dump(exclude_none=True)
        if named := ", ".join(name for name in Dials.model_fields if name in given):
            if "budget_ms" in options:
                raise UserError(f"budget_ms: it is kept by choosing {named}; leave one of them out")
            log.warning("budget_ms %g is not kept: the call gives %s itself", milliseconds, named)
        if "ar_steps" in given:
            chosen.pop("ar_sizes", None)  # of the point's steps, not of these
        return chosen | given

    def _frontier(self, task: str, milliseconds: Any) -> Frontier:
        """What was measured of a task, read once."""
        number = isinstance(milliseconds, (int, float)) and not isinstance(milliseconds, bool)
        if not number or not milliseconds > 0:
            raise UserError(f"budget_ms {milliseconds!r}: give more than 0 milliseconds")
        if task not in self._read:
            self._read[task] = self._open(task)
        return self._read[task]

    def _open(self, task: str) -> Frontier:
        if self.path is None and self.digest is None:
            raise UserError(
                "budget_ms: this model came from no exported folder, so that its measurements "
                "cannot be found; give frontier=PATH, a file of `mmfusion eval frontier`"
            )
        path = self.path or kept_at(str(self.digest), self.machine, task)
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            if self.path:
                told = "give a file of `mmfusion eval frontier`, or its folder"
                raise UserError(f"frontier {path}: no such file; {told}")
            raise UserError(
                f"budget_ms: {task} of this model was not measured on {self.machine}; run\n"
                f"  mmfusion eval frontier --model MODEL --task {task} --reference DATA -o FOLDER\n"
                "with this model once, or give frontier=PATH"
            )
        found = read(Frontier, path)
        if found.task != task or self.digest not in (None, found.model_sha256):
            raise UserError(
                f"{path}: measured for {found.task} with {found.model} (SHA-256 "
                f"{found.model_sha256[:16]}), not for {task} with this model "
                f"({str(self.digest)[:16]}); measure anew"
            )
        then = found.machine, found.versions.get("torch")
        if then != (self.machine, torch.__version__):
            log.warning(
                "%s: measured on %s with torch %s, this is %s with %s; times may differ",
                path, *then, self.machine, torch.__version__,
            )  # fmt: skip
        return found
