"""The exponential moving average of the weights, in fp32, sharded as the optimizer is.

At a decay of 0.9999 a bf16 average would round every update away (section 4 uses 0.9999).
"""

import torch
from torch import Tensor

from mmfusion.training.zero_shards import Piece


class Ema:
    """Averages of this rank's pieces, in their order."""

    def __init__(self, pieces: list[Piece], decay: float) -> None:
        self.decay, self.pieces = decay, pieces
        self.shards: list[Tensor] = [piece.master.clone() for piece in pieces]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step` (from 1): the decay warms up as (1 + step) / (10 + step)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shards, [piece.master for piece in self.pieces], 1 - decay)
