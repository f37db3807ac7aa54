"""Keys and values of the clean tokens that came before, kept outside the model.

Each row has a length of its own. A pass writes its tokens past the end of their rows; clean ones
stay there (`keep`), noisy ones are overwritten by the next pass: nothing is copied. Caches that lie
in one pool can be read in one pass.

Shapes: R rows, T tokens of a pass, Q queries, P places of a pool, H heads, G key-value heads, d
head dimension.
"""

import weakref
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmfusion.attention import Group, Places, attention, buckets
from mmfusion.config import DecoderConfig
from mmfusion.mask import visible
from mmfusion.packing import Batch

GROWTH = 1.5  # of a pool that is full


class Pool:
    """Places for tokens, in every layer, of which caches take some and give them back.

    For one thread; a cache may be let go by any.

    Attributes:
        kv: (layers, 2, P, G, d) keys and values.
    """

    def __init__(
        self,
        config: DecoderConfig,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (config.depth, 2, 0, config.kv_heads or config.heads, config.width // config.heads)
        self.kv = torch.zeros(shape, device=device, dtype=dtype)
        self.free: list[tuple[int, int]] = []  # from, to; in order, no two of them touch
        self.returned: deque[tuple[int, int]] = deque()

    def take(self, size: int) -> int:
        """The first of so many free places, which hold zeros; the pool grows where there are none.

        Zeros: hidden entries are multiplied by 0, which does not remove a NaN.
        """
        self._merge()
        at = next((n for n, (start, end) in enumerate(self.free) if end - start >= size), None)
        if at is None:
            self._grow(size)
            at = len(self.free) - 1
        start, end = self.free[at]
        self.free[at : at + 1] = [(start + size, end)] if start + size < end else []
        self.kv[:, :, start : start + size] = 0
        return start

    def _merge(self) -> None:
        """What has been returned is free."""
        while self.returned:
            self.free.append(self.returned.popleft())
        merged: list[tuple[int, int]] = []
        for start, end in sorted(self.free):
            if merged and merged[-1][1] == start:
                start = merged.pop()[0]
            merged.append((start, end))
        self.free = merged

    def _grow(self, size: int) -> None:
        """Have so many free places at the end."""
        before = self.kv.shape[2]
        last = self.free[-1][0] if self.free and self.free[-1][1] == before else before
        after = max(last + size, int(before * GROWTH))
        kv = self.kv.new_zeros((*self.kv.shape[:2], after, *self.kv.shape[3:]))
        kv[:, :, :before] = self.kv
        self.kv = kv
        self.free = [span for span in self.free if span[0] != last] + [(last, after)]


class Cache:
    """Room for `length` tokens in each of `rows` rows of a pool."""

    def __init__(self, pool: Pool, rows: int, length: int) -> None:
        self.pool, self.length, self.used = pool, length, np.zeros(rows, int)
        self.start = pool.take(rows * length)
        span = self.start, self.start + rows * length
        weakref.finalize(self, pool.returned.append, span).atexit = False

    @property
    def kv(self) -> Tensor:
        """(layers, 2, R, length, G, d) keys and values, those of the pool."""
        size = len(self.used) * self.length
        return self.pool.kv[:, :, self.start : self.start + size].unflatten(2, (-1, self.length))

    def take(self, other: "Cache", rows: Sequence[int], since: int = 0) -> None:
        """Hold what `rows` of another cache, or of this one, hold from `since` on.

        A row may be named several times: beams of a search share what came before them.
        """
        self.used = other.used[list(rows)]
        end = int(self.used.max())
        at = torch.tensor(rows, device=self.pool.kv.device)
        self.kv[:, :, :, since:end] = other.kv[:, :, at, since:end]

    def keep(self, rows: Sequence[int], sizes: np.ndarray) -> None:
        """The tokens that a pass has written to these rows are clean: they stay."""
        self.used[list(rows)] += sizes


class Seat(NamedTuple):
    """The rows of a cache that a batch's documents read, in their order."""

    cache: Cache
    rows: list[int]


class Reading:
    """Attention of one pass: each document of a batch reads a row of a cache, and itself.

    Attributes:
        sizes: (documents,) tokens of each.
    """

    def __init__(self, batch: Batch, *seats: Seat) -> None:
        """`seats` are those of the batch's documents; their caches lie in one pool."""
        self.seats, self.pool = seats, seats[0].cache.pool
        device = self.pool.kv.device
        self.parts = [part.numpy() for part in (batch.doc, batch.order, batch.stream)]
        doc = self.parts[0]
        self.used = np.concatenate([cache.used[rows] for cache, rows in seats])
        self.sizes = np.bincount(doc, minlength=len(self.used))
        for cache, end in zip(*self._ends(), strict=True):
            if end > cache.length:
                raise ValueError(f"{end} tokens do not fit a cache of {cache.length}")
        rows = [cache.start + np.array(rows) * cache.length for cache, rows in seats]
        self.rows, self.starts = np.concatenate(rows), np.cumsum(self.sizes) - self.sizes
        within = np.arange(len(doc)) - np.repeat(self.starts, self.sizes)
        place = np.repeat(self.rows + self.used, self.sizes) + within
        self.writes = torch.from_numpy(place).to(device)
        asks = torch.cat([batch.noisy_at, batch.predict_at])
        every = np.arange(len(doc))
        self.plans = [self._plan(which) for which in (every, asks.numpy())]
        self.asks = asks.to(device)
        # Rows side by side, alike in length, are written as one block.
        (use, *_), alike = self.plans[0][1], np.ptp(self.used) == np.ptp(self.sizes) == 0
        self.block = use if alike and use.cache else None

    def _ends(self) -> tuple[list[Cache], list[int]]:
        """The caches, and how far the fullest row of each is after the pass."""
        ends = np.split(self.used + self.sizes, np.cumsum([len(rows) for _, rows in self.seats]))
        return [cache for cache, _ in self.seats], [int(end.max()) for end in ends[:-1]]

    def _plan(self, asks: np.ndarray) -> tuple[Places, list["_Use"]]:
        """How the queries of some tokens meet what is kept."""
        doc, reach = self.parts[0], self.used + self.sizes
        group = Group.of(np.arange(len(asks)), doc[asks], len(reach))
        # One session's rows are alike. Those of many are read side by side where they are.
        together = [np.arange(len(reach))]
        tables, uses = [], []
        for documents in together if len(self.seats) == 1 else buckets(reach, group.counts):
            table = group.table(documents)
            if table.size:
                tables.append(table)
                token = np.where(table < 0, -1, asks[table])
                uses.append(self._use(documents, token, int(reach[documents].max())))
        tables = tables or [np.zeros((0, 0), int)]
        return Places.of(tables, len(asks), self.pool.kv.device), uses

    def _use(self, documents: np.ndarray, token: np.ndarray, reach: int) -> "_Use":
        """Keys and mask of documents whose queries are `token` (R, Q), -1 is filling."""
        used, sizes, column = self.used[documents], self.sizes[documents], np.arange(reach)
        own = column - used[:, None]
        inside = (own >= 0) & (own < sizes[:, None])
        key = np.where(inside, self.starts[documents, None] + own, 0)
        rule = visible(
            *(part[token][:, :, None] for part in self.parts),
            *(part[key][:, None] for part in self.parts),
        )
        seen = (own < 0)[:, None] | (inside[:, None] & rule) | (token < 0)[:, :, None]
        device, mask = self.pool.kv.device, None
        if not seen.all():
            mask = torch.zeros(seen.shape).masked_fill_(~torch.from_numpy(seen), -torch.inf)
            mask = mask[:, None].to(device, self.pool.kv.dtype)
        cache, rows = self.seats[0]
        if len(self.seats) == 1 and rows == list(range(rows[0], rows[0] + len(rows))):
            return _Use(reach, mask, cache, rows[0], len(rows))
        # Beyond its end a row reads its own last token: another's could be no number.
        place = self.rows[documents, None] + np.minimum(column, (used + sizes)[:, None] - 1)
        return _Use(reach, mask, places=torch.from_numpy(place.ravel()).to(device))

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, last: bool) -> Tensor:
        """What queries (Q, H, d) read: (Q, H, d)."""
        kept = self.pool.kv[layer]
        size = int(self.sizes[0])
        for at, new in enumerate((key, value)):
            if self.block:
                self.block.rows(kept)[at, :, -size:] = new.unflatten(0, (-1, size))
            else:
                kept[at].index_copy_(0, self.writes, new)
        if not len(query):
            return query
        places, uses = self.plans[last]
        tables = zip(places.apart(query), uses, strict=True)
        return places.together([use.attend(q, kept).flatten(0, 1) for q, use in tables])


class _Use(NamedTuple):
    """What queries of some documents meet: `some` rows of a cache from `first` on, or places."""

    reach: int
    mask: Tensor | None
    cache: Cache | None = None
    first: int = 0
    some: int = 0
    places: Tensor | None = None

    def attend(self, query: Tensor, kept: Tensor) -> Tensor:
        """What queries (R, Q, H, d) read of the keys and values (2, P, G, d): (R, Q, H, d)."""
        if self.places is not None:
            k, v = kept.index_select(1, self.places).unflatten(1, (-1, self.reach))
        else:
            k, v = self.rows(kept)
        return attention(query, k, v, self.mask)

    def rows(self, kept: Tensor) -> Tensor:
        """Rows that lie together, as far as they reach: (2, R, reach, G, d)."""
        assert self.cache
        length = self.cache.length
        start = self.cache.start + self.first * length
        rows = kept[:, start : start + self.some * length].unflatten(1, (-1, length))
        return rows[:, :, : self.reach]
