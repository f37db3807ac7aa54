"""Keys and values of the clean tokens that came before, kept outside the model.

All rows share one write place; a row that has nothing to write there gets padding, which the
visibility rule hides. So rows of different lengths, and rows that have already ended, stand side
by side. Tokens that are only being denoised lie in the free space past the end and are gone with
the next pass: nothing is copied and nothing noisy is ever kept.
"""

import torch
from torch import Tensor

from mmfusion.config import DecoderConfig
from mmfusion.mask import cross_mask
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
        shape = (config.depth, 2, rows, groups, length, config.width // config.heads)
        # Zeros, not empty: hidden entries are multiplied by 0, which does not remove a NaN.
        self.kv = torch.zeros(shape, device=device, dtype=dtype)
        self.doc = torch.full((rows, length), -1, dtype=torch.int32, device=device)
        self.order = torch.zeros((rows, length), dtype=torch.int32, device=device)
        self.stream = torch.zeros((rows, length), dtype=torch.int32, device=device)
        self.used = 0

    @property
    def length(self) -> int:
        """Tokens that fit."""
        return self.doc.shape[1]

    def part(self, rows: slice) -> "Cache":
        """Some of the rows, on the same memory."""
        part = Cache.__new__(Cache)
        part.kv, part.used = self.kv[:, :, rows], self.used
        part.doc, part.order, part.stream = self.doc[rows], self.order[rows], self.stream[rows]
        return part

    def take(self, other: "Cache", rows: Tensor, since: int = 0) -> None:
        """Hold what `rows` (B,) of another cache, or of this one, hold from `since` on.

        A row may be named several times: beams of a search share what came before them.
        """
        end = self.used = other.used
        self.kv[..., since:end, :] = other.kv[:, :, rows, :, since:end]
        self.doc[:, since:end] = other.doc[rows, since:end]
        self.order[:, since:end] = other.order[rows, since:end]
        self.stream[:, since:end] = other.stream[rows, since:end]

    def mask(self, batch: Batch) -> Tensor:
        """(B, Q, used + Q): what the batch's tokens see of the cache and of each other."""
        own = (batch.doc, batch.order, batch.stream)
        kept = (self.doc, self.order, self.stream)
        key = tuple(torch.cat([k[:, : self.used], o], 1) for k, o in zip(kept, own, strict=True))
        return cross_mask(own, key)  # type: ignore[arg-type]

    def extended(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, G, used + Q, d) of the cache followed by the given ones."""
        end = self.used + key.shape[2]
        k, v = self.kv[layer]
        k[:, :, self.used : end], v[:, :, self.used : end] = key, value
        return k[:, :, :end], v[:, :, :end]

    def keep(self, batch: Batch) -> None:
        """Keep the clean tokens of the pass just made."""
        end = self.used + batch.doc.shape[1]
        self.doc[:, self.used : end] = batch.doc
        self.order[:, self.used : end] = batch.order
        self.stream[:, self.used : end] = batch.stream
        self.used = end
