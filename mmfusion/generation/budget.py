"""A time budget: the best measured way to draw within so many milliseconds, on this machine."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mmfusion.config import ModelConfig
from mmfusion.errors import UserError
from mmfusion.generation.frontier import (
    TASKS,
    Dials,
    Frontier,
    Machine,
    Point,
    choose,
    known,
    measurable,
    read,
)

log = logging.getLogger("mmfusion")


class Budget:
    """Milliseconds for a picture, turned into options of a call.

    Args:
        config: of the model.
        digest: of the whole model (`export.model_digest`); None for one from no exported folder.
        machine: where it runs.
        milliseconds: for every call that does not say otherwise; None is no budget.
        path: a frontier file to go by; default: the one that was measured on this machine.

    Raises:
        UserError: the budget cannot be kept for any task of the model.
    """

    def __init__(
        self,
        config: ModelConfig,
        digest: str | None,
        machine: Machine,
        milliseconds: float | None = None,
        path: str | Path | None = None,
    ) -> None:
        self.digest, self.machine, self.milliseconds = digest, machine, milliseconds
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

    def fill(self, task: str, options: dict[str, Any], best_of: int = 1) -> dict[str, Any]:
        """The options of a call of `task`, those that it leaves open taken from the budget's point.

        An option `budget_ms` among them stands for this call only.

        Raises:
            UserError: no point is within the budget, or the call names both it and a dial.
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
        chosen = self.point(task, milliseconds, best_of).options.model_dump(exclude_none=True)
        if named := ", ".join(name for name in Dials.model_fields if name in given):
            if "budget_ms" in options:
                raise UserError(f"budget_ms: it is kept by choosing {named}; leave one of them out")
            log.warning("budget_ms %g is not kept: the call gives %s itself", milliseconds, named)
        if "ar_steps" in given:
            chosen.pop("ar_sizes", None)  # of the point's steps, not of these
        return chosen | given

    def point(self, task: str, milliseconds: float, best_of: int = 1) -> Point:
        """The best measured point of a task that draws `best_of` pictures in so many milliseconds.

        Raises:
            UserError: nothing was measured, the file is damaged, or the budget is too small.
        """
        if isinstance(milliseconds, bool) or not isinstance(milliseconds, (int, float)):
            raise UserError(f"budget_ms {milliseconds!r}: give milliseconds for a picture")
        if not milliseconds > 0:
            raise UserError(f"budget_ms {milliseconds}: give more than 0 milliseconds")
        if task not in self._read:
            self._read[task] = self._given(self.path, task) if self.path else self._found(task)
        return choose(self._read[task], milliseconds, best_of)

    def _given(self, path: Path, task: str) -> Frontier:
        frontier = read(path)
        if frontier.task != task:
            raise UserError(f"{path}: a frontier of {frontier.task}, not of {task}")
        if self.digest not in (None, frontier.model_sha256):
            raise UserError(
                f"{path}: measured with another model ({frontier.model}, SHA-256 "
                f"{frontier.model_sha256[:16]}; this one's is {str(self.digest)[:16]})"
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
        if self.digest is None:
            raise UserError(
                "budget_ms: this model came from no exported folder, so that its measurements "
                "cannot be found; give frontier=PATH, a file of `mmfusion eval frontier`"
            )
        path = known(self.digest, self.machine, task)
        if not path.is_file():
            raise UserError(
                f"budget_ms: {task} of this model was not measured on {self.machine}"
                f"{self._elsewhere(path.parent, task)}; run\n"
                f"  mmfusion eval frontier --model MODEL --task {task} --reference DATA -o FOLDER\n"
                "with this model once, or give frontier=PATH"
            )
        frontier = read(path)
        if (frontier.model_sha256, frontier.task) != (self.digest, task):
            raise UserError(f"{path}: not of this model and task; delete it and measure anew")
        return self._current(frontier, path)

    def _elsewhere(self, folder: Path, task: str) -> str:
        """On which other machines a task was measured; a damaged file tells nothing."""
        seen = []
        for other in folder.glob(f"{str(self.digest)[:16]}-*-{task}.json"):
            with suppress(UserError):
                seen.append(str(read(other).machine))
        return f" (but on {'; '.join(sorted(seen))})" if seen else ""

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
