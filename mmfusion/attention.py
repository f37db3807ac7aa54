"""How the tokens of a batch attend, all under the one rule of `mmfusion.mask`.

The decoder hands over queries, keys and values and takes what the queries read; nothing else
differs between machines. `ByDocument` (CPU) attends within documents of like length, clean queries
to clean keys alone. `ByRow` (CUDA) attends within rows of one length, by FlexAttention or with a
dense mask, which the others are compared with.

Shapes: T tokens, Q queries (T, or those of the last block), H heads, G key-value heads, d head
dimension.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mmfusion.mask import block_mask, dense_mask, flex_attention, visible
from mmfusion.packing import Batch

NARROWER = 0.8  # of a bucket's most clean tokens: a document with fewer begins another bucket,
SHORT = 8  # unless it lacks no more than so many


class Attend(Protocol):
    """Attention of every layer of one pass.

    Attributes:
        asks: (Q,) places of the last block's queries; None where all tokens are.
    """

    asks: Tensor | None

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, last: bool
    ) -> Tensor:
        """What queries (Q, H, d) read from keys and values (T, G, d): (Q, H, d)."""


class ByRow:
    """Attention within rows of one length.

    FlexAttention skips blocks where nothing is visible; without it every pair is multiplied.
    """

    asks = None

    def __init__(self, batch: Batch, flex: bool) -> None:
        self.rows = batch.rows
        parts = (part.view(batch.rows, -1) for part in (batch.doc, batch.order, batch.stream))
        self.mask = block_mask(*parts) if flex else dense_mask(*parts)[:, None]

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, last: bool
    ) -> Tensor:
        shapes = (x.unflatten(0, (self.rows, -1)) for x in (query, key, value))
        q, k, v = (x.transpose(1, 2) for x in shapes)
        if isinstance(self.mask, Tensor):
            read = attention(q, k, v, self.mask)
        else:
            read = flexattention(q, k, v, self.mask)
        return read.transpose(1, 2).flatten(0, 1)


class ByDocument:
    """Attention within documents, those of like length side by side.

    The clean tokens of a document come first there, then the noisy ones, which no clean one sees:
    clean queries meet clean keys alone. The padding of shorter documents is cut off again.
    """

    def __init__(self, batch: Batch) -> None:
        parts = [part.numpy() for part in (batch.doc, batch.order, batch.stream)]
        document = np.cumsum(np.diff(parts[0], prepend=parts[0][0]) != 0)
        noisy = parts[2] > 0
        every = np.arange(len(document))
        self.asks = torch.cat([batch.noisy_at, batch.predict_at])
        count = int(document[-1]) + 1
        keys = [Group.of(every[noisy == n], document[noisy == n], count) for n in (False, True)]
        buckets = _buckets(*(group.counts for group in keys))
        tables = [np.concatenate([g.table(b) for g in keys], axis=1) for b in buckets]
        self.sizes = [table.shape for table in tables]
        self.keys = Places.of(tables, len(every))
        self.plans = []
        for asks in (every, self.asks.numpy()):
            asked = [np.flatnonzero(noisy[asks] == which) for which in (False, True)]
            groups = [Group.of(entries, document[asks[entries]], count) for entries in asked]
            queries, uses = [], []
            for number, (bucket, key) in enumerate(zip(buckets, tables, strict=True)):
                for group, reach in zip(groups, (keys[0].table(bucket).shape[1], None), strict=True):
                    table = group.table(bucket)
                    if table.size:
                        mask = _mask(parts, np.where(table < 0, -1, asks[table]), key[:, :reach])
                        queries.append(table)
                        uses.append(_Use(number, reach, table.shape, mask))
            self.plans.append((Places.of(queries, len(asks)), uses))

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, last: bool
    ) -> Tensor:
        places, uses = self.plans[last]
        keys, values = (self._apart(x, self.keys, self.sizes) for x in (key, value))
        read = []
        for q, use in zip(self._apart(query, places, [u.shape for u in uses]), uses, strict=True):
            k, v = (x[use.bucket][:, :, : use.reach] for x in (keys, values))
            read.append(attention(q, k, v, use.mask).transpose(1, 2).flatten(0, 1))
        return _Move.apply(torch.cat(read), places.back, places.to, places.empty)

    def _apart(self, x: Tensor, places: "Places", shapes: list[Any]) -> list[Tensor]:
        """(N, heads, d) in a bucket each: (documents, heads, most tokens, d)."""
        moved = _Move.apply(x, places.to, places.back, None)
        parts = moved.split([rows * columns for rows, columns in shapes])
        return [
            part.unflatten(0, shape).transpose(1, 2)
            for part, shape in zip(parts, shapes, strict=True)
        ]


@dataclass(frozen=True)
class Group:
    """Some of the tokens by document: `order` holds them, document `i` from `starts[i]` on."""

    order: np.ndarray
    starts: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, entries: np.ndarray, owner: np.ndarray, documents: int) -> "Group":
        """`owner` is each entry's document."""
        counts = np.bincount(owner, minlength=documents)
        order = entries[np.argsort(owner, kind="stable")]
        return cls(order, np.cumsum(counts) - counts, counts)

    def table(self, documents: np.ndarray | slice = slice(None)) -> np.ndarray:
        """(documents, most) entries of each document, filled up with -1."""
        counts = self.counts[documents, None]
        column = np.arange(counts.max())
        at = np.minimum(self.starts[documents, None] + column, len(self.order) - 1)
        return np.where(column < counts, self.order[at] if len(self.order) else -1, -1)


class _Use(NamedTuple):
    """Queries of one bucket and the keys they meet: all, or the first `reach`."""

    bucket: int
    reach: int | None
    shape: tuple[int, int]
    mask: Tensor | None


class Places(NamedTuple):
    """Where tokens go (`to`), where they come back from, and which places hold none."""

    to: Tensor
    back: Tensor
    empty: Tensor

    def on(self, device: torch.device) -> "Places":
        """The same on another device."""
        return Places(*(part.to(device) for part in self))

    @classmethod
    def of(cls, tables: list[np.ndarray], size: int) -> "Places":
        to = np.concatenate([table.ravel() for table in tables])
        held = np.flatnonzero(to >= 0)
        back = np.empty(size, int)
        back[to[held]] = held
        parts = np.maximum(to, 0), back, np.flatnonzero(to < 0)
        return cls(*map(torch.from_numpy, parts))


class _Move(torch.autograd.Function):
    """x[to], and the gradient by the way back: no sums, since a token goes to one place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, to: Tensor, back: Tensor, empty: Tensor | None) -> Tensor:
        ctx.back, ctx.empty = back, empty
        return x.index_select(0, to)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        slope = slope.index_select(0, ctx.back)
        if ctx.empty is not None and len(ctx.empty):
            slope.index_fill_(0, ctx.empty, 0)
        return slope, None, None, None


def _buckets(clean: np.ndarray, noisy: np.ndarray) -> list[np.ndarray]:
    """Documents with as many noisy tokens, and about as many clean ones, together."""
    order = np.lexsort((-clean, noisy))
    found: list[list[int]] = []
    for document in order.tolist():
        head = found[-1][0] if found else None
        if (
            head is None
            or noisy[head] != noisy[document]
            or clean[document] < min(NARROWER * clean[head], clean[head] - SHORT)
        ):
            found.append([])
        found[-1].append(document)
    return [np.array(bucket) for bucket in found]


def _mask(parts: list[np.ndarray], query: np.ndarray, key: np.ndarray) -> Tensor | None:
    """(documents, 1, queries, keys): 0 or -inf for SDPA; None where everything is visible."""
    q = [part[query][:, :, None] for part in parts]
    k = [part[key][:, None, :] for part in parts]
    hidden = ~visible(*q, *k) | (key < 0)[:, None, :]
    hidden &= (query >= 0)[:, :, None]  # filling may look anywhere, but must see something
    if not hidden.any():
        return None
    return torch.zeros(hidden.shape).masked_fill_(torch.from_numpy(hidden), -torch.inf)[:, None]


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention of (B, H, Q, d) over (B, G, K, d), G dividing H."""
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(query.dtype)
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped)
