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

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, last: bool) -> Tensor:
        """What queries (Q, H, d) read from keys and values (T, G, d): (Q, H, d)."""


class ByRow:
    """Attention within rows of one length.

    FlexAttention skips blocks where nothing is visible; without it every pair is multiplied.
    """

    asks = None

    def __init__(self, batch: Batch, flex: bool) -> None:
        self.rows = batch.rows
        flat = batch.doc, batch.order, batch.stream
        doc, order, stream = (part.view(batch.rows, -1) for part in flat)
        make: Any = block_mask if flex else dense_mask
        self.mask = make(doc, order, stream)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, last: bool) -> Tensor:
        q, k, v = (x.unflatten(0, (self.rows, -1)) for x in (query, key, value))
        if isinstance(self.mask, Tensor):
            read = attention(q, k, v, self.mask[:, None])
        else:
            read = flex_attention(q, k, v, self.mask)
        return read.flatten(0, 1)


class ByDocument:
    """Attention within documents, those of like length side by side.

    The clean tokens of a document come first there, then the noisy ones, which no clean one sees:
    clean queries meet clean keys alone. The padding of shorter documents is cut off again.
    """

    def __init__(self, batch: Batch) -> None:
        parts = [part.numpy() for part in (batch.doc, batch.order, batch.stream)]
        document = np.cumsum(np.diff(parts[0], prepend=parts[0][0]) != 0)
        noisy, every = parts[2] > 0, np.arange(len(document))
        self.asks = torch.cat([batch.noisy_at, batch.predict_at])

        def halves(asks: np.ndarray) -> list[Group]:
            """The clean ones of some tokens by document, and the noisy ones."""
            found = [np.flatnonzero(noisy[asks] == which) for which in (False, True)]
            return [Group.of(some, document[asks[some]], document[-1] + 1) for some in found]

        whole = halves(every)
        alike = buckets(*(group.counts for group in whole))
        self.plans = []
        for asks, groups in ((every, whole), (self.asks.numpy(), halves(self.asks.numpy()))):
            tables, uses = [], []
            for bucket in alike:
                clean, other = (group.table(bucket) for group in whole)
                keys = clean, np.concatenate([clean, other], axis=1)
                queries = [group.table(bucket) for group in groups]
                tokens = [np.where(q < 0, -1, asks[q]) if q.size else q for q in queries]
                masks = [_mask(parts, q, k) for q, k in zip(tokens, keys, strict=True)]
                tables.append(np.concatenate(queries, axis=1))
                uses.append(_Use(clean.shape[1], [q.shape[1] for q in queries], masks))
            self.plans.append((Places.of(tables, len(asks)), uses))

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, last: bool) -> Tensor:
        places, uses = self.plans[last]
        whole = self.plans[False][0]
        read = [
            use.attend(q, k, v).flatten(0, 1)
            for q, k, v, use in zip(
                places.apart(query), whole.apart(key), whole.apart(value), uses, strict=True
            )
        ]
        return places.together(read)


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
    """How the queries of a bucket, clean ones before noisy ones, meet its keys."""

    clean: int
    asks: list[int]
    masks: list[Tensor | None]

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(documents, tokens, heads, d) each; what the queries read."""
        reach, read = (self.clean, key.shape[1]), []
        for q, most, mask in zip(query.split(self.asks, 1), reach, self.masks, strict=True):
            if q.shape[1]:
                # A slice, even of all, has its gradient copied into zeros.
                k, v = (x if most == x.shape[1] else x[:, :most] for x in (key, value))
                read.append(attention(q, k, v, mask))
        if not read:
            return query
        return torch.cat(read, dim=1) if len(read) > 1 else read[0]


@dataclass(frozen=True)
class Places:
    """Tokens laid out in tables (documents, most tokens), and the way back.

    Attributes:
        to: which token each place holds, filling the first; None where they lie so already.
        back: each token's place.
        empty: the places that hold none.
    """

    shapes: list[tuple[int, ...]]
    to: Tensor | None
    back: Tensor
    empty: Tensor

    @classmethod
    def of(
        cls, tables: list[np.ndarray], size: int, device: torch.device | str = "cpu"
    ) -> "Places":
        """`size` tokens by tables of their numbers; -1 is filling."""
        to = np.concatenate([table.ravel() for table in tables])
        held = np.flatnonzero(to >= 0)
        back = np.empty(size, int)
        back[to[held]] = held
        lists = np.maximum(to, 0), back, np.flatnonzero(to < 0)
        tensors = [torch.from_numpy(array).to(device) for array in lists]
        there = np.array_equal(to, np.arange(size))
        shapes = [table.shape for table in tables]
        return cls(shapes, None if there else tensors[0], *tensors[1:])

    def apart(self, x: Tensor) -> list[Tensor]:
        """(size, heads, d) as tables, (documents, most tokens, heads, d) each."""
        if self.to is not None:
            x = _Move.apply(x, self.to, self.back, None)
        sizes = [rows * columns for rows, columns in self.shapes]
        parts = x.split(sizes) if len(sizes) > 1 else [x]
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def together(self, tables: list[Tensor]) -> Tensor:
        """Tables (documents * most tokens, heads, d) as (size, heads, d)."""
        x = torch.cat(tables) if len(tables) > 1 else tables[0]
        return x if self.to is None else _Move.apply(x, self.back, self.to, self.empty)


class _Move(torch.autograd.Function):
    """x[to], and the gradient by the way back: no sums, since a token goes to one place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, to: Tensor, back: Tensor, empty: Tensor | None) -> Tensor:
        ctx.back, ctx.empty = back, empty
        return x.index_select(0, to)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None]:
        slope = slope.index_select(0, ctx.back)
        if ctx.empty is not None and len(ctx.empty):
            slope.index_fill_(0, ctx.empty, 0)
        return slope, None, None, None


def buckets(clean: np.ndarray, noisy: np.ndarray) -> list[np.ndarray]:
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
    """Softmax attention of (B, Q, H, d) over (B, K, G, d), G dividing H: (B, Q, H, d)."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)  # SDPA misreads an fp32 mask beside fp64 numbers
    grouped = q.shape[1] != k.shape[1]
    read = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    return read.transpose(1, 2)
