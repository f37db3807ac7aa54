"""Losses, gradients and weights that are not finite: noticed, counted, and never saved.

DeepSpeed reads the norm of all ranks' gradient before it does a step, and does none where that is
not finite (at stage 0 `engine.make_engine` does so). A loss that is not finite has no finite
gradient (`losses.total`). So every rank knows the same of a step, and nothing more is read of it.
"""

from typing import Any

import torch
from torch import distributed

from mmfusion.training.checkpoint import kept
from mmfusion.training.ema import Ema
from mmfusion.training.zero_shards import Piece, moments

PATIENCE = 3
"""Steps in a row that may go wrong; with the last of them a run ends."""


class Health:
    """Whether the last step went wrong, and how many in a row did; the same on all ranks."""

    def __init__(self, engine: Any, pieces: list[Piece], ema: Ema) -> None:
        self._engine, self._pieces, self._ema = engine, pieces, ema
        self.wrong, self._skipped, self._in_a_row = False, engine.skipped_steps, 0

    @property
    def hopeless(self) -> bool:
        """Whether too many steps in a row went wrong."""
        return self._in_a_row >= PATIENCE

    def note(self, step: int) -> None:
        """After optimizer step `step`."""
        self.wrong = self._engine.skipped_steps > self._skipped
        self._skipped = self._engine.skipped_steps
        self._in_a_row = self._in_a_row + 1 if self.wrong else 0
        if self.wrong:  # AdamW counts it, too: a checkpoint says only how many steps there were
            for piece in self._pieces:
                moments(self._engine.basic_optimizer, piece.flat)["step"].fill_(step)

    def broken(self) -> bool:
        """Whether what would be saved is not finite, on any rank."""
        found = torch.zeros((), device=self._engine.device)
        for piece, average in zip(self._pieces, self._ema.shards, strict=True):
            for tensor in kept(piece, average, self._engine.basic_optimizer).values():
                found += ~tensor.isfinite().all()
        distributed.all_reduce(found)
        return bool(found)
