"""Packed rows in an order that depends on the seed alone.

There is a fixed number of global row slots, one row of a step each. A slot has its own
deterministic stream of documents: which source comes next is drawn by weight, each source is
walked through in an epoch-wise permutation that the slots share out among themselves, and
documents are packed next-fit. The state of a slot is how many documents it has consumed in all
and per source. It travels with the row, so what is saved is what was trained on, not what was
prefetched, and any number of ranks that divides the slots goes on exactly.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Config, SourceConfig
from mmfusion.errors import UserError
from mmfusion.packing import Batch, collate
from mmfusion.rng import generator
from mmfusion.sequence import Counts, Document, Row, count

from .documents import DocumentMaker
from .shards import Shards

MOST_REFUSED = 1000  # documents in a row that do not fit, before the data is taken to be wrong


@lru_cache(maxsize=32)  # two epochs a source may be under way
def _permutation(seed: int, name: str, epoch: int, size: int) -> np.ndarray:
    return generator(seed, "epoch", name, epoch).permutation(size)


class Source:
    """One entry of the mixture with its shards."""

    def __init__(self, config: SourceConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        remedy = f"data source {config.name} ({config.task}); docs/data.md says how to prepare it"
        self.shards = Shards(config.shards, remedy)

    def document(self, maker: DocumentMaker, draw: int) -> Document:
        """The document of the source's `draw`-th sample over all slots and epochs."""
        epoch, place = divmod(draw, len(self.shards))
        number = int(_permutation(self.seed, self.config.name, epoch, len(self.shards))[place])
        rng = generator(self.seed, "document", self.config.name, epoch, number, self.config.task)
        return maker.make(self.config, self.shards[number], rng)


@dataclass(frozen=True)
class PackedRow:
    """A row, the slot it fills, and the slot's state once it is consumed."""

    slot: int
    row: Row
    state: dict[str, int]


class Slot:
    """One slot's endless stream of rows."""

    def __init__(
        self, number: int, config: Config, sources: list[Source], maker: DocumentMaker
    ) -> None:
        self.number, self.config, self.sources, self.maker = number, config, sources, maker
        self.state = dict.fromkeys(["documents", "refused", *(s.config.name for s in sources)], 0)
        weights = np.array([s.config.weight for s in sources])
        self._shares = np.cumsum(weights / weights.sum())
        self._pending: tuple[Document, Counts, dict[str, int]] | None = None
        data = config.data
        lists = data.capacity.model_dump() if data.capacity else {}
        unbounded = dict.fromkeys(("text", "label", "image", "noisy", "predict"), config.row_length)
        self._limit = Counts(config.row_length, **{**unbounded, **lists})

    def row(self) -> PackedRow:
        """The next row, filled until a document does not fit; one that no row holds is refused."""
        row = Row(
            self.config.row_length,
            self.config.image.latent_dim,
            self.config.decoder.label_tokens,
        )
        used, refused = Counts(), 0
        while True:
            document, size, after = self._pending or self._draw()
            if not size.fits(self._limit):
                refused += 1
                after["refused"] += 1
                if refused == MOST_REFUSED:
                    raise UserError(
                        f"row_length: {refused} documents one after another do not fit a row "
                        f"of {self._limit}; the last has {size}"
                    )
            elif not used.plus(size).fits(self._limit):
                self._pending = document, size, after
                return PackedRow(self.number, row, dict(self.state))
            else:
                row.document(document)
                used, refused = used.plus(size), 0
            self._pending, self.state = None, after

    def _draw(self) -> tuple[Document, Counts, dict[str, int]]:
        after = dict(self.state)
        pick = generator(self.config.seed, "mixture", self.number, after["documents"]).random()
        place = min(int(np.searchsorted(self._shares, pick, "right")), len(self.sources) - 1)
        source = self.sources[place]
        draw = after[source.config.name] * self.config.data.rows + self.number
        document = source.document(self.maker, draw)
        after["documents"] += 1
        after[source.config.name] += 1
        return document, count(document, self.config.decoder.label_tokens), after


class _Slots(IterableDataset):
    """The rows of some slots in turn; each worker takes every so many of them."""

    def __init__(self, slots: list[Slot]) -> None:
        self.slots = slots

    def __iter__(self) -> Iterator[PackedRow | UserError]:
        worker = get_worker_info()
        mine = self.slots[worker.id :: worker.num_workers] if worker else self.slots
        while True:
            for slot in mine:
                try:
                    yield slot.row()
                except UserError as error:  # raised in a worker, it would come with a traceback
                    yield error
                    return


def _sound(row: PackedRow | UserError) -> PackedRow:
    if isinstance(row, UserError):
        raise row
    return row


class Loader:
    """This rank's batches: a list of micro-batches a step."""

    def __init__(self, config: Config, rank: int = 0, world: int = 1) -> None:
        """Open the shards.

        Raises:
            UserError: shards are missing or broken, or rows, ranks and workers do not divide.
        """
        data = config.data
        data.check_ranks(world)
        self.config = config
        tokenizer = Tokenizer(config.text.tokenizer) if config.text else None
        maker = DocumentMaker(config, tokenizer)
        sources = [Source(source, config.seed) for source in data.sources]
        self.slots = [Slot(n, config, sources, maker) for n in range(rank, data.rows, world)]
        capacity = data.capacity
        self._capacity = Counts(config.row_length, **capacity.model_dump()) if capacity else None
        self._consumed = {slot.number: slot.state for slot in self.slots}

    def __iter__(self) -> Iterator[list[Batch]]:
        workers = self.config.data.workers
        rows = iter(DataLoader(_Slots(self.slots), batch_size=None, num_workers=workers))
        micro = self.config.data.micro_rows
        while True:
            packed = [_sound(next(rows)) for _ in self.slots]
            self._consumed = {p.slot: p.state for p in packed}
            parts = [packed[at : at + micro] for at in range(0, len(packed), micro)]
            yield [collate([p.row for p in part], self._capacity) for part in parts]

    def state(self) -> dict[int, dict[str, int]]:
        """The state of this rank's slots, as consumed."""
        return self._consumed

    def resume(self, state: dict[int, dict[str, int]]) -> None:
        """Go on from the states of all slots (before iterating).

        Raises:
            UserError: the saved run had other slots or other sources.
        """
        for slot in self.slots:
            saved = state.get(slot.number)
            if len(state) != self.config.data.rows or saved is None:
                raise UserError(
                    f"data.rows: the checkpoint has {len(state)} row slots, the config "
                    f"{self.config.data.rows}; resume with the same number"
                )
            if set(saved) != set(slot.state):
                raise UserError(
                    f"data.sources: the checkpoint was trained on {sorted(saved)}, the config has "
                    f"{sorted(slot.state)}; resume with the same sources"
                )
            slot.state = dict(saved)
        self._consumed = {slot.number: slot.state for slot in self.slots}
