"""Packed rows in an order that depends on the seed alone.

There is a fixed number of global row slots, one row of a step each. A slot has its own
deterministic stream of documents: which source comes next, and which of its samples, is a function
of the seed and of how many documents the slot has had (data_pipelines/sampler.py). Documents are
packed next-fit. A sample that cannot be used is counted by reason and listed, and the source's next
one takes its place. A slot's state is a short vector of counts. It travels with the row, so what is
saved is what was trained on, not what was prefetched, and any number of ranks that divides the
slots goes on exactly. Workers make whole micro-batches, steps ahead of training.
"""

import logging
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Config, SourceConfig
from mmfusion.errors import REASONS, CorruptSample, UserError
from mmfusion.manifest import sha256
from mmfusion.packing import Batch, Parts, collate
from mmfusion.rng import generator
from mmfusion.sequence import Counts, Document, Row, count

from .documents import DocumentMaker
from .latents import check_latents
from .layout import differences
from .sampler import MIXTURE, Order, mixture
from .samples import USED
from .shard_writer import reasons
from .shards import Block, Shards
from .workers import MicroBatch, MicroBatches, next_of, start

log = logging.getLogger("mmfusion")
DOCUMENTS = 0  # of a slot's state: how many were packed; losses by reason and cursors follow
FIRST_CURSOR = 1 + len(REASONS)
MOST_LISTED = 100_000  # losses that are kept until they are asked for; the newest
MOST_IN_A_ROW = 1000  # losses after which there is nothing to wait for
TOLERATED = 10  # losses of a slot that are too few to say anything about a rate


class Source:
    """One entry of the mixture with its shards."""

    def __init__(self, config: SourceConfig, run: Config) -> None:
        self.config, self.seed = config, run.seed
        remedy = f"data source {config.name} ({config.task}); docs/data.md says how to prepare it"
        self.shards = Shards(config.shards, remedy)
        data = run.data
        self.order = Order(self.shards.sizes, data.rows, data.block, run.seed, config.name)
        self._blocks: dict[int, tuple[tuple[int, int, int], Block]] = {}

    def document(self, maker: DocumentMaker, slot: int, draw: int) -> Document:
        """The document of a slot's `draw`-th sample."""
        epoch, shard, number, block = self.order.place(slot, draw)
        at = shard, *block
        held = self._blocks.get(slot)
        if held is None or held[0] != at:
            held = self._blocks[slot] = at, self.shards.block(*at)
        sample = self.shards.read(shard, number, USED, held[1])
        n = self.shards.number(shard, number)
        rng = generator(self.seed, "document", self.config.name, epoch, n, self.config.task)
        return maker.make(self.config, sample, rng)

    def where(self, slot: int, draw: int) -> str:
        """Shard and key of a slot's `draw`-th sample."""
        place = self.order.place(slot, draw)
        return ":".join(self.shards.place(self.shards.number(place.shard, place.number)))


@dataclass(frozen=True)
class PackedRow:
    """A row, the slot it fills, the slot's state once it is consumed, and what was lost on the way.

    Attributes:
        lost: source, reason and message of each sample that could not be used.
    """

    slot: int
    row: Row
    state: list[int]
    lost: list[dict[str, str]]


@dataclass
class _Drawn:
    document: Document
    size: Counts
    after: list[int]
    lost: list[dict[str, str]] = field(default_factory=list)


class RowSlot:
    """One slot's endless stream of rows."""

    def __init__(
        self, number: int, config: Config, sources: list[Source], maker: DocumentMaker
    ) -> None:
        self.number, self.config, self.sources, self.maker = number, config, sources, maker
        self.begin([0] * (FIRST_CURSOR + len(sources)))
        self._weights = tuple(source.config.weight for source in sources)
        data = config.data
        lists = data.capacity.model_dump() if data.capacity else {}
        unbounded = dict.fromkeys(("text", "label", "image", "noisy", "predict"), config.row_length)
        self._limit = Counts(config.row_length, **{**unbounded, **lists})

    def begin(self, state: list[int]) -> None:
        """Go on from a state."""
        self.state = list(state)
        self._pending: _Drawn | None = None  # drawn, but of a later row

    def row(self) -> PackedRow:
        """The next row, filled until a document does not fit."""
        row = Row.of(self.config, self.config.row_length)
        used = Counts()
        lost: list[dict[str, str]] = []
        while True:
            drawn, self._pending = self._pending or self._draw(), None
            if not used.plus(drawn.size).fits(self._limit):
                self._pending = drawn
                return PackedRow(self.number, row, self.state, lost)
            row.document(drawn.document)
            used, self.state = used.plus(drawn.size), drawn.after
            lost += drawn.lost

    def _draw(self) -> _Drawn:
        after = list(self.state)
        lost: list[dict[str, str]] = []
        c = self.config
        block, place = divmod(after[DOCUMENTS], MIXTURE)
        chosen = int(mixture(c.seed, c.data.rows, self.number, block, self._weights)[place])
        source = self.sources[chosen]
        while True:
            draw = after[FIRST_CURSOR + chosen]
            after[FIRST_CURSOR + chosen] += 1
            try:
                document = source.document(self.maker, self.number, draw)
                size = count(document, c.decoder.label_tokens)
                if not size.fits(self._limit):
                    where = source.where(self.number, draw)
                    what = f"{where}: a document of {size.beyond(self._limit)}"
                    raise CorruptSample("length", what)
            except CorruptSample as error:
                after[1 + REASONS.index(error.reason)] += 1
                lost.append(_entry(source, error))
                self._check(after, source, error, len(lost))
            else:
                after[DOCUMENTS] += 1
                return _Drawn(document, size, after, lost)

    def _check(self, state: list[int], source: Source, last: CorruptSample, in_a_row: int) -> None:
        lost, drawn = sum(state[1:FIRST_CURSOR]), sum(state[FIRST_CURSOR:])
        rate, how = self.config.data.most_lost, f"{lost} of {drawn} samples"
        if lost > TOLERATED + rate * drawn:
            limit = f", more than data.most_lost={rate} allows"
        elif in_a_row == MOST_IN_A_ROW:
            how, limit = f"{in_a_row} samples one after another", ""
        else:
            return
        counts = +Counter(dict(zip(REASONS, state[1:FIRST_CURSOR], strict=True)))
        raise UserError(
            f"data source {source.config.name}: {how} cannot be used ({reasons(counts)}){limit}; "
            f"the last: {last}"
        ) from None


class Loader:
    """This rank's batches: a list of micro-batches a step."""

    def __init__(self, config: Config, rank: int = 0, world: int = 1) -> None:
        """Open the shards."""
        data = config.data
        data.check_ranks(world)
        self.config = config
        tokenizer = Tokenizer(config.text.tokenizer) if config.text else None
        files = {"tokenizer": tokenizer and tokenizer.path, "linear": config.image.linear}
        self._files = {name: path and sha256(Path(path)) for name, path in files.items()}
        maker = DocumentMaker(config, tokenizer)
        self.sources = [Source(source, config) for source in data.sources]
        check_latents(
            {f"data source {s.config.name}": s.shards.header for s in self.sources}, config.image
        )
        self.slots = [
            RowSlot(n, config, self.sources, maker) for n in range(rank, data.rows, world)
        ]
        self._capacity = None
        if (capacity := data.capacity) and torch.cuda.is_available():
            self._capacity = Counts(config.row_length, **capacity.model_dump())
        self._consumed = {slot.number: slot.state for slot in self.slots}
        self._lost: deque[dict[str, Any]] = deque(maxlen=MOST_LISTED)
        for source in self.sources:
            self._check_shards(source, listed=rank == 0)

    def _check_shards(self, source: Source, listed: bool) -> None:
        shards, rate = source.shards, self.config.data.most_lost
        found = [part.at(path) for path, part in shards.lost]
        if listed:
            self._lost.extend(_entry(source, damage) for damage in found)
        # Of a shard that is gone or cut nobody knows how many samples it held: as many as the
        # largest, say. And of many shards few may be damaged, however small the damage looks.
        held = dict(zip(shards.paths, shards.sizes.tolist(), strict=True))
        torn = {path for path, part in shards.lost if part.reason == "shard"}
        parts = len(found) + sum(max(held.values()) - held.get(path, 0) for path in torn)
        most_torn = max(1, rate * len(held.keys() | torn))
        if parts > TOLERATED + rate * (len(shards) + parts) or len(torn) > most_torn:
            counts = Counter(damage.reason for damage in found)
            raise UserError(
                f"data source {source.config.name}: {len(found)} parts of its shards cannot be "
                f"used ({reasons(counts)}), {len(torn)} shards are gone or cut; more than "
                f"data.most_lost={rate} allows; the last: {found[-1]}"
            )

    def __iter__(self) -> Iterator[list[Batch] | list[Parts]]:
        """Steps from the state on, without end; whoever iterates again goes on after the last."""
        for slot in self.slots:
            slot.begin(self._consumed[slot.number])
        micro, cuda = self.config.data.micro_rows, torch.cuda.is_available()
        groups = [self.slots[at : at + micro] for at in range(0, len(self.slots), micro)]
        # A GPU's step is short: more workers than micro-batches make a part of one each. (On the
        # CPU one would gain nothing, and sums would depend on their number.)
        parts = min(micro, -(-self.config.data.workers // len(groups)) or 1) if cuda else 1
        groups = [
            group[micro * part // parts : micro * (part + 1) // parts]
            for group in groups
            for part in range(parts)
        ]
        made = MicroBatches(groups, partial(collate, padded=cuda, capacity=self._capacity))
        workers = min(self.config.data.workers, len(groups))
        steps = start(DataLoader(made, batch_size=None, num_workers=workers, pin_memory=cuda))
        step: list[MicroBatch] = [None] * len(groups)  # type: ignore[list-item]
        while True:
            for first in range(workers or 1):
                step[first :: workers or 1] = next_of(steps)
            self._consumed = {slot: state for part in step for slot, state in part.states.items()}
            self._lost.extend(entry for part in step for entry in part.lost)
            batches = [part.batch for part in step]
            if parts > 1:
                yield [Parts(batches[at : at + parts]) for at in range(0, len(batches), parts)]
            else:
                yield batches

    def lost(self) -> list[dict[str, Any]]:
        """What could not be used since this was last asked: source, reason and what of each."""
        return [self._lost.popleft() for _ in range(len(self._lost))]

    def layout(self) -> dict[str, Any]:
        """What the numbers of the state mean, and what they hold for."""
        return {
            "columns": ["documents", *REASONS, *(s.config.name for s in self.sources)],
            "seed": self.config.seed,
            "block": self.config.data.block,
            **self._files,
            "sources": {
                s.config.name: {
                    "task": s.config.task,
                    "flip": s.config.flip,
                    "weight": s.config.weight,
                    "samples": len(s.shards),
                    "shards": s.shards.digest,
                }
                for s in self.sources
            },
        }

    def state(self) -> dict[int, list[int]]:
        """The state of this rank's slots, as consumed: a number for each of the columns."""
        return self._consumed

    def resume(self, layout: dict[str, Any], state: dict[int, list[int]]) -> None:
        """Go on from the states of all slots.

        Raises:
            UserError: the saved run had other slots, sources or samples: a line for each.
        """
        found = list(differences(layout, self.layout()))
        if len(state) != self.config.data.rows:
            found.append(
                f"data.rows: the checkpoint has {len(state)} row slots, the config "
                f"{self.config.data.rows}"
            )
        if found:
            raise UserError("\n".join(found))
        for name, facts in layout["sources"].items():
            weight = next(s.config.weight for s in self.sources if s.config.name == name)
            if facts["weight"] != weight:
                log.warning(
                    "data source %s: goes on with weight %g, not %g", name, weight, facts["weight"]
                )
        self._consumed = {slot.number: list(state[slot.number]) for slot in self.slots}
        self._lost.clear()  # the saved run has listed its shards' damage


def _entry(source: Source, damage: CorruptSample) -> dict[str, str]:
    return {"source": source.config.name, "reason": damage.reason, "what": str(damage)}
