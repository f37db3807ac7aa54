"""What a run writes down: metrics.jsonl, TensorBoard, a progress bar with the time left."""

import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

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
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
        # The bar counts shares of the run, not steps: a time limit can end it earlier.
        self._bar = tqdm(total=100.0, desc="training", bar_format=BAR, unit="%")

    def advance(self, share: float) -> None:
        """Move the bar to a share of the run."""
        if self.active:
            self._bar.update(100 * share - self._bar.n)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Write one line of figures."""
        if not self.active:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._bar.set_postfix_str(f"step {step}, loss {values['loss']:.4f}")

    def sheet(self, step: int, pixels: Any) -> None:
        """Show a sample sheet (H, W, channels) in TensorBoard."""
        if self.active:
            self._board.add_image("samples", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flush everything."""
        if self.active:
            self._bar.close()
            self._board.close()


class Lost:
    """What a rank's data could not be used: `lost/rank-00000.jsonl`, one line a sample."""

    def __init__(self, folder: Path, first_step: int, rank: int) -> None:
        self._path = folder / "lost" / f"rank-{rank:05d}.jsonl"
        if rank == 0:  # for all: there may have been more ranks
            for path in self._path.parent.glob("rank-*.jsonl"):
                _forget(path, first_step)

    def write(self, step: int, lost: list[dict[str, Any]]) -> int:
        """Add lines; returns how many."""
        if lost:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"step": step, **entry}) + "\n" for entry in lost)
        return len(lost)


def _forget(path: Path, first_step: int) -> None:
    """Drop lines past the checkpoint that the run goes on from."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            if json.loads(line)["step"] <= first_step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # cut off when the run was killed
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left, {postfix}"
