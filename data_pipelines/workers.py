"""What the processes that read data make: rows of some slots, collated, for a rank's steps.

A process makes every so many micro-batches, or parts of them, up to two steps ahead of training.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mmfusion.errors import UserError, first_line
from mmfusion.files import room
from mmfusion.packing import Batch
from mmfusion.sequence import Row

if TYPE_CHECKING:
    from .loader import PackedRow, RowSlot


@dataclass(frozen=True)
class MicroBatch:
    """A batch, the state of its slots once it is consumed, and what was lost on the way."""

    batch: Batch
    states: dict[int, list[int]]
    lost: list[dict[str, str]]

    def pin_memory(self) -> "MicroBatch":
        """What torch's loader asks for on a machine with a GPU, in a thread of its own."""
        return replace(self, batch=self.batch.pin())


class MicroBatches(IterableDataset):
    """Step after step, the batches of some slots each; a worker makes every so many of them."""

    def __init__(
        self, groups: list[list["RowSlot"]], collate: Callable[[list[Row]], Batch]
    ) -> None:
        self.groups, self.collate = groups, collate

    def __iter__(self) -> Iterator[list[MicroBatch] | UserError]:
        worker = get_worker_info()
        mine = self.groups[worker.id :: worker.num_workers] if worker else self.groups
        while True:
            try:
                yield [self._make([slot.row() for slot in slots]) for slots in mine]
            except UserError as error:  # raised in a worker, it would come with a traceback
                yield error
                return

    def _make(self, packed: list["PackedRow"]) -> MicroBatch:
        batch, states = self.collate([p.row for p in packed]), {p.slot: p.state for p in packed}
        return MicroBatch(batch, states, [entry for p in packed for entry in p.lost])


@room(Path("/dev/shm"), "set data.workers=0, or give it more (docker run --shm-size=1g)")
def start(made: DataLoader) -> Iterator[list[MicroBatch] | UserError]:
    """Start the workers; one that dies is told where batches are asked for, and not in between."""
    if threading.current_thread() is not threading.main_thread():
        return iter(made)
    before = signal.getsignal(signal.SIGCHLD)
    started = iter(made)
    signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)  # torch's would raise anywhere
    return started


def next_of(steps: Iterator[list[MicroBatch] | UserError]) -> list[MicroBatch]:
    """A step's parts by the worker whose turn it is.

    Raises:
        UserError: it has found data that are of no use, or was killed.
    """
    try:
        step = next(steps)
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise UserError(
            f"a process that reads data was killed ({first_line(error)}), mostly for want of "
            "memory; set data.workers lower, or free memory, and start again to go on"
        ) from None
    if isinstance(step, UserError):
        raise step
    return step
