"""What a run writes down: metrics.jsonl, TensorBoard, a progress bar with the time left."""

import math
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from tqdm import tqdm

from mmfusion import files, jsonl
from mmfusion.config import Config


class Metrics:
    """Rank 0's records; on other ranks every call does nothing."""

    def __init__(self, config: Config, first_step: int, active: bool) -> None:
        self.active = active
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(config.train.output)
        self._path = folder / "metrics.jsonl"
        _forget(self._path, first_step)
        self._shown = folder / "tensorboard"
        with files.room(self._shown):
            self._board = SummaryWriter(str(self._shown), purge_step=first_step + 1)
        # The bar counts shares of the run, not steps: a time limit can end it earlier.
        file: Any = _Screen()
        self._bar = tqdm(total=100.0, desc="training", bar_format=BAR, unit="%", file=file)

    def advance(self, share: float) -> None:
        """Move the bar to a share of the run."""
        if self.active:
            self._bar.update(100 * share - self._bar.n)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Write one line of figures."""
        if not self.active:
            return
        files.append(self._path, jsonl.dumps({"step": step, **values}) + "\n")
        with files.room(self._shown):
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        self._bar.set_postfix_str(f"step {step}, loss {values['loss']:.4f}")

    def sheet(self, step: int, pixels: Any) -> None:
        """Show a sample sheet (H, W, channels) in TensorBoard."""
        if self.active:
            with files.room(self._shown):
                self._board.add_image("samples", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flush everything."""
        if self.active:
            self._bar.close()
            with files.room(self._shown):
                self._board.close()


class _Screen:
    """sys.stderr for the bar. That nobody reads it any more, or that its disk is full, ends no run.

    At Ctrl-C `mmfusion train 2>&1 | tee log` loses its reader first, before a checkpoint is saved.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


class Window:
    """The steps since the last line of figures, on this rank."""

    def __init__(self, device: torch.device) -> None:
        self._losses = torch.zeros(2, device=device, dtype=torch.float64)
        self._noisy, self._targets, self._lost = 0.0, 0.0, 0
        self._steps, self._since = 0, time.monotonic()

    def add(self, losses: Tensor, noisy: float, targets: float, lost: int) -> None:
        """A step: this rank's summed losses (2,), all ranks' counts, this rank's lost samples."""
        self._losses += losses
        self._noisy, self._targets = self._noisy + noisy, self._targets + targets
        self._lost, self._steps = self._lost + lost, self._steps + 1

    def figures(
        self, text_weight: float, lr: float, run_seconds: float, norm: Tensor | float | None
    ) -> dict[str, float]:
        """Means and sums over all ranks, which all ask for them; waits for the device."""
        lost = torch.tensor(self._lost)
        for sums in (self._losses, lost):
            distributed.all_reduce(sums)
        image, text = self._losses.tolist()
        image, text = image / max(self._noisy, 1), text / max(self._targets, 1)
        seconds = time.monotonic() - self._since
        figures = {
            "loss": image + text_weight * text,
            "image_loss": image,
            "text_loss": text,
            "lr": lr,
            "seconds": run_seconds,
            "seconds_per_step": seconds / self._steps,
            "noisy_tokens_per_second": self._noisy / seconds,
            "samples_lost": float(lost),
        }
        # DeepSpeed does not tell the norm at stage 0.
        return figures if norm is None else {**figures, "grad_norm": float(norm)}


class SkippedLog:
    """Samples that this rank skipped, one JSON line each: `lost/rank-00000.jsonl`."""

    def __init__(self, folder: Path, first_step: int, rank: int) -> None:
        self._path = folder / "lost" / f"rank-{rank:05d}.jsonl"
        if rank == 0:  # for all: there may have been more ranks
            for path in self._path.parent.glob("rank-*.jsonl"):
                if re.fullmatch(r"rank-\d{5,}", path.stem):  # not a copy of the user's
                    _forget(path, first_step)

    def write(self, step: int, lost: list[dict[str, Any]]) -> int:
        """Add lines; returns how many."""
        if lost:
            lines = (jsonl.dumps({"step": step, **entry}) + "\n" for entry in lost)
            files.append(self._path, "".join(lines))
        return len(lost)


def _forget(path: Path, first_step: int) -> None:
    """Drop lines past the checkpoint that the run goes on from."""
    if not path.is_file():
        return
    kept = [line for line in jsonl.objects(path) if _step(line) <= first_step]
    files.write(path, "".join(f"{jsonl.dumps(line)}\n" for line in kept).encode())


def _step(line: dict[str, Any]) -> float:
    step = line.get("step")
    return step if isinstance(step, int) else math.inf


BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left{postfix}"
