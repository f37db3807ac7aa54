"""Keys and values of the clean tokens that came before, kept outside the model.

Each row has a length of its own. A pass writes its tokens past the end of their rows; clean ones
stay there (`keep`), noisy ones are overwritten by the next pass: nothing is copied.

Shapes: R rows, T tokens of a pass, Q queries, H heads, G key-value heads, d head dimension.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmfusion.attention import Group, Places, attention
from mmfusion.config import DecoderConfig
from mmfusion.mask import visible
from mmfusion.packing import Batch


class Cache:
    """Room for `length` tokens in each of `rows` rows, for every layer."""

    def __init__(
        self,
        config: DecoderConfig,
        rows: int,
        length: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        groups = config.kv_heads or config.heads
        shape = (config.depth, 2, rows, length, groups, config.width // config.heads)
        # Zeros, not empty: hidden entries are multiplied by 0, which does not remove a NaN.
        self.kv = torch.zeros(shape, device=device, dtype=dtype)
        self.length, self.used = length, np.zeros(rows, int)

    def take(self, other: "Cache", rows: Sequence[int], since: int = 0) -> None:
        """Hold what `rows` of another cache, or of this one, hold from `since` on.

        A row may be named several times: beams of a search share what came before them.
        """
        self.used = other.used[list(rows)]
        end = int(self.used.max())
        at = torch.tensor(rows, device=self.kv.device)
        self.kv[:, :, :, since:end] = other.kv[:, :, at, since:end]

    def keep(self, rows: Sequence[int], sizes: np.ndarray) -> None:
        """The tokens that a pass has written to these rows are clean: they stay."""
        self.used[list(rows)] += sizes


class Reading:
    """Attention of one pass: each document of a batch reads a row of the cache, and itself."""

    def __init__(self, cache: Cache, rows: Sequence[int], batch: Batch) -> None:
        """`rows` are those of the batch's documents, in their order."""
        self.cache, self.rows = cache, list(rows)
        doc = batch.doc.numpy()
        self.sizes = np.bincount(doc, minlength=len(self.rows))
        used = cache.used[self.rows]
        self.reach = int((used + self.sizes).max())
        if self.reach > cache.length:
            raise ValueError(f"{self.reach} tokens do not fit a cache of {cache.length}")
        starts = np.cumsum(self.sizes) - self.sizes
        within = np.arange(len(doc)) - np.repeat(starts, self.sizes)
        place = np.repeat(np.array(self.rows) * cache.length + used, self.sizes) + within
        device = cache.kv.device
        self.writes = torch.from_numpy(place).to(device)
        first = self.rows[0]
        together = self.rows == list(range(first, first + len(self.rows)))
        self.part: slice | Tensor = slice(first, first + len(self.rows))
        if not together:
            self.part = torch.tensor(self.rows, device=device)
        # Rows side by side, alike in length: one block of the cache is written, another read.
        self.blocks: list[list[Tensor]] = []
        if together and np.ptp(used) == np.ptp(self.sizes) == 0:
            seen = cache.kv[:, :, self.part, : self.reach]
            self.blocks = [[*layer.unbind()] for layer in seen.unbind()]
        self.asks = torch.cat([batch.noisy_at, batch.predict_at])
        self.plans = []
        for asks in (np.arange(len(doc)), self.asks.numpy()):
            table = Group.of(np.arange(len(asks)), doc[asks], len(self.rows)).table()
            token = np.where(table < 0, -1, asks[table]) if table.size else table
            mask = self._mask(batch, starts, used, token)
            self.plans.append((Places.of([table], len(asks), device), mask))
        self.asks = self.asks.to(device)

    def _mask(
        self, batch: Batch, starts: np.ndarray, used: np.ndarray, token: np.ndarray
    ) -> Tensor | None:
        """(R, 1, Q, reach): 0 or -inf for SDPA; None where everything is visible."""
        column = np.arange(self.reach)
        own = column[None] - used[:, None]
        inside = (own >= 0) & (own < self.sizes[:, None])
        key = np.where(inside, starts[:, None] + own, 0)
        parts = [part.numpy() for part in (batch.doc, batch.order, batch.stream)]
        rule = visible(*(p[token][:, :, None] for p in parts), *(p[key][:, None] for p in parts))
        seen = (own < 0)[:, None] | (inside[:, None] & rule) | (token < 0)[:, :, None]
        if seen.all():
            return None
        mask = torch.zeros(seen.shape).masked_fill_(~torch.from_numpy(seen), -torch.inf)
        return mask[:, None].to(self.cache.kv.device, self.cache.kv.dtype)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, last: bool) -> Tensor:
        """What queries (Q, H, d) read: (Q, H, d)."""
        kept = self.blocks[layer] if self.blocks else self.cache.kv[layer]
        for held, new in zip(kept, (key, value), strict=True):
            if self.blocks:
                size = int(self.sizes[0])
                held[:, self.reach - size :] = new.unflatten(0, (len(held), size))
            else:
                held.flatten(0, 1).index_copy_(0, self.writes, new)
        if not len(query):
            return query
        places, mask = self.plans[last]
        k, v = kept if self.blocks else (held[self.part, : self.reach] for held in kept)
        return places.together([attention(places.apart(query)[0], k, v, mask).flatten(0, 1)])
