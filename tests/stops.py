"""The runs of tests/test_stopping.py that end early, or nearly: all in one process a rank.

    python tests/stops.py DATA FOLDER

as one rank (ZeRO stage 0), or as two (stage 2). What each run ended with on a rank is left in
FOLDER/NAME/ended-RANK.json. Something happens on the last rank alone, before a step, or on the
first, which writes.
"""

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ranks import MixedRows, tiny

from mmfusion.errors import UserError
from mmfusion.packing import Batch
from mmfusion.training import loop
from mmfusion.training.engine import start_distributed
from mmfusion.training.loop import Trainer


def nan(batch: Batch) -> Batch:
    return replace(batch, target=batch.target * torch.nan)


def terminate(batch: Batch) -> Batch:
    os.kill(os.getpid(), signal.SIGTERM)
    return batch


def damage(batch: Batch) -> Batch:
    raise UserError("shard 7: is gone")


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the disk")


def broken(*_: Any) -> None:
    raise ValueError("no colour named mauve")


def rows(happens: dict[int, Callable[[Batch], Batch]]) -> type[MixedRows]:
    """Rows of which the last rank's first batch of some steps is changed."""

    class Changed(MixedRows):
        def __init__(self, config: Any, rank: int, world: int) -> None:
            super().__init__(config, rank, world)
            self.last = rank == world - 1

        def __iter__(self) -> Iterator[list[Batch]]:
            for step in range(1, 100):
                first, *others = self.batches
                if self.last and step in happens:
                    first = happens[step](first)
                yield [first, *others]

    return Changed


def ended(config: Any, happens: dict[int, Callable[[Batch], Batch]], rank: int) -> None:
    """Run, and write down how it ended on this rank."""
    trainer = Trainer(config, rows(happens))
    try:
        trainer.run()
        told: Any = ["", ""]
    except (Exception, SystemExit) as error:
        told = [type(error).__name__, str(error)]
    path = Path(config.train.output) / f"ended-{rank}.json"
    path.write_text(json.dumps(told), encoding="utf-8")


def main() -> None:
    data, folder = map(Path, sys.argv[1:])
    rank, world = start_distributed()
    folder = folder / f"ranks-{world}"

    def config(name: str, **train: Any) -> Any:
        given = {"steps": 5, "save_every": 1, "keep": 9, "zero_stage": 0 if world == 1 else 2}
        return tiny(data, folder / name, micro_rows=1, **{**given, **train})

    loop.sample_sheet = lambda *_: np.zeros((1, 1, 3), np.uint8)  # they take longest
    ended(config("once"), {2: nan}, rank)
    ended(config("thrice", steps=9), dict.fromkeys((3, 4, 5, 6), nan), rank)
    ended(config("at-the-end", steps=3), {3: nan}, rank)
    if world == 1:
        return
    ended(config("signal", save_every=50), {3: terminate}, rank)
    ended(config("data", save_every=50), {3: damage}, rank)
    loop.sample_sheet = broken
    ended(config("sheet", steps=1), {}, rank)
    loop.export = full  # type: ignore[assignment]
    ended(config("export", steps=2), {}, rank)


if __name__ == "__main__":
    main()
