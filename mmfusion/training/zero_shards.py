"""Which piece of each parameter this rank's optimizer holds in fp32, at any ZeRO stage.

EMA, checkpoint and export work on these pieces alone: a name, where the piece starts in the
flattened parameter, and views of the optimizer's own memory. DeepSpeed's layout stays in here.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Piece:
    """`size` numbers of parameter `name` from `start` on, at `offset` of the optimizer's `flat`."""

    name: str
    start: int
    size: int
    flat: Tensor
    offset: int

    @property
    def master(self) -> Tensor:
        """The fp32 weights, (size,), in place."""
        return self.of(self.flat)

    def of(self, flat: Tensor) -> Tensor:
        """The same piece of another tensor laid out like `flat`, such as a moment."""
        return flat.detach().view(-1).narrow(0, self.offset, self.size)


def pieces(engine: Any, stage: int, rank: int) -> list[Piece]:
    """This rank's pieces, in the order of the parameters' names in the module."""
    found = []
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        piece = _piece(name, parameter, engine.optimizer, stage, rank)
        if piece is not None and piece.size > 0:
            found.append(piece)
    return found


def _piece(name: str, parameter: Any, optimizer: Any, stage: int, rank: int) -> Piece | None:
    if stage == 0:  # every rank holds everything
        return Piece(name, 0, parameter.numel(), parameter, 0)
    if stage == 3:
        group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = rank * size  # equal shares; the last ones are padded past the parameter's end
        size = max(0, min(size, parameter.ds_numel - start))
        return Piece(name, start, size, optimizer.fp32_partitioned_groups_flat[group], offset)
    mapping = parameter._hp_mapping  # None where another rank holds the whole parameter
    if mapping is None:
        return None
    flats = getattr(optimizer, "single_partition_of_fp32_groups", None)
    if flats is None:  # DeepSpeed's bf16 optimizer, at stage 1
        flats = optimizer.fp32_groups_flat_partition
    lower, higher = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Piece(name, lower.start, lower.numel, flats[mapping.param_group_index], higher.start)


def moments(optimizer: torch.optim.Optimizer, flat: Tensor) -> dict[str, Tensor]:
    """AdamW's state of a flat tensor: `exp_avg`, `exp_avg_sq`, `step`; made if not there yet."""
    state = optimizer.state[flat]
    if "step" not in state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        for key in MOMENTS:
            state[key] = torch.zeros_like(flat, memory_format=torch.preserve_format)
    return state
