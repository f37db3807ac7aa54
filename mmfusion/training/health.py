"""Losses, gradients and weights that are not finite: noticed, counted, and never saved."""

from typing import Any

import torch
from torch import Tensor, distributed

from mmfusion.training.checkpoint import kept
from mmfusion.training.ema import Ema
from mmfusion.training.zero_shards import Piece, moments

PATIENCE = 3
"""Steps in a row that may go wrong; with the last of them a run ends."""


class Health:
    """What this rank knows of the last step, and all ranks of those before."""

    def __init__(self, engine: Any, pieces: list[Piece], ema: Ema) -> None:
        self._engine, self._pieces, self._ema = engine, pieces, ema
        # (), whether the last step's loss or gradient was not finite on this rank.
        self.wrong = torch.zeros((), dtype=torch.bool, device=engine.device)
        self._skipped, self._in_a_row = engine.skipped_steps, 0

    def note(self, step: int, sums: Tensor) -> None:
        """After optimizer step `step`, with the sums of its losses."""
        skipped = self._engine.skipped_steps > self._skipped
        self._skipped = self._engine.skipped_steps
        self.wrong = ~sums.isfinite().all() | skipped
        if skipped:  # AdamW counts it, too: a checkpoint says only how many steps there were
            for piece in self._pieces:
                moments(self._engine.basic_optimizer, piece.flat)["step"].fill_(step)

    def hopeless(self, wrong: bool) -> bool:
        """Whether too many steps in a row went wrong, with one more that went so on any rank."""
        self._in_a_row = self._in_a_row + 1 if wrong else 0
        return self._in_a_row == PATIENCE

    def look(self) -> tuple[bool, bool]:
        """Over all ranks: whether the last step went wrong, and what would be saved is broken."""
        found = torch.zeros(2, device=self._engine.device)
        found[0] = self.wrong
        for piece, average in zip(self._pieces, self._ema.shards, strict=True):
            for tensor in kept(piece, average, self._engine.basic_optimizer).values():
                found[1] += ~tensor.isfinite().all()
        distributed.all_reduce(found)
        wrong, broken = found.tolist()
        return wrong > 0, broken > 0
