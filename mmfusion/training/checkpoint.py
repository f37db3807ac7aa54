"""Checkpoints to go on from exactly, also at another ZeRO stage or number of ranks.

What is saved and restored is exact; at another stage or ranks sums round otherwise from there on.

A checkpoint is a folder `step-00001000`: one safetensors file a rank with its pieces of weights,
moments and EMA in fp32, `state.json` with the counters and the data cursors, `config.yaml`, and a
manifest. It is written beside its place, sealed and renamed, so that a folder of that name is
whole; resuming takes the newest whose manifest holds. On several hosts the output folder must be
shared. Nothing in it is unpickled.
"""

import json
import logging
import os
import shutil
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed

from mmfusion import manifest
from mmfusion.config import Config, save
from mmfusion.errors import UserError
from mmfusion.training.ema import Ema
from mmfusion.training.partition import MOMENTS, Piece, moments

log = logging.getLogger("mmfusion")
WEIGHT, EMA = "weight", "ema"


@dataclass
class State:
    """The counters of a run, and what each row slot has consumed."""

    step: int = 0
    seconds: float = 0.0
    slots: dict[int, list[int]] | None = None
    layout: dict[str, Any] | None = None
    """What the numbers of a slot mean, in the data's own words."""


def write(
    root: Path,
    config: Config,
    state: State,
    pieces: list[Piece],
    ema: Ema,
    optimizer: torch.optim.Optimizer,
) -> Path:
    """Write and commit a checkpoint; every rank calls it, with its own slots in `state`."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    final = root / f"step-{state.step:08d}"
    part = root / f".{final.name}.part"
    if rank == 0:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    distributed.barrier()
    if rank == 0 or config.train.zero_stage > 0:  # at stage 0 every rank holds the same
        _write_pieces(part / f"rank-{rank:05d}.safetensors", pieces, ema, optimizer)
    everyone: list[Any] = [None] * world
    distributed.all_gather_object(everyone, state.slots)
    if rank == 0:
        merged = {number: slot for slots in everyone for number, slot in (slots or {}).items()}
        facts = asdict(replace(state, slots=merged))
        (part / "state.json").write_text(json.dumps(facts), encoding="utf-8")
        save(config, part / "config.yaml")
        manifest.seal(part)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
        manifest.sync(root)
        # Newer ones are damaged, or the run would have gone on from them: they do not count.
        sound = [path for path in all_checkpoints(root) if path.name <= final.name]
        for old in sound[: -config.train.keep]:
            shutil.rmtree(old)
    distributed.barrier()
    return final


def _write_pieces(
    path: Path, pieces: list[Piece], ema: Ema, optimizer: torch.optim.Optimizer
) -> None:
    tensors: dict[str, Tensor] = {}
    starts = {}
    for piece, average in zip(pieces, ema.shards, strict=True):
        starts[piece.name] = piece.start
        tensors[f"{WEIGHT}/{piece.name}"] = piece.master
        tensors[f"{EMA}/{piece.name}"] = average
        adam = moments(optimizer, piece.flat)
        for key in MOMENTS:
            tensors[f"{key}/{piece.name}"] = piece.of(adam[key])
    tensors = {name: t.float().cpu().contiguous().clone() for name, t in tensors.items()}
    save_file(tensors, path, metadata={"starts": json.dumps(starts)})


def all_checkpoints(root: Path) -> list[Path]:
    """Committed checkpoint folders, oldest first."""
    return sorted(path for path in root.glob("step-*") if path.is_dir())


def newest(root: Path) -> Path | None:
    """The newest checkpoint whose manifest holds; damaged ones are named and passed over.

    Raises:
        UserError: there are checkpoints, and none is whole.
    """
    found = all_checkpoints(root)
    problems = []
    for path in reversed(found):
        try:
            manifest.verify(path, "checkpoint")
            return path
        except UserError as error:
            log.warning("%s; trying an older one", error)
            problems.append(str(error))
    if problems:
        raise UserError(
            f"no whole checkpoint under {root}; remove the folder to start over:\n  "
            + "\n  ".join(problems)
        )
    return None


class Checkpoint:
    """A committed checkpoint, read piece by piece."""

    def __init__(self, path: Path) -> None:
        self.path = path
        facts = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if "layout" not in facts:
            raise UserError(f"checkpoint {path}: is of an older version; start the run anew")
        slots = {int(number): slot for number, slot in facts["slots"].items()}
        self.state = State(facts["step"], facts["seconds"], slots, facts["layout"])
        self._where: dict[str, list[tuple[int, Path]]] = defaultdict(list)
        try:
            for file in sorted(path.glob("rank-*.safetensors")):
                with safe_open(file, "pt") as opened:
                    for name, start in json.loads(opened.metadata()["starts"]).items():
                        self._where[name].append((start, file))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"checkpoint {path}: not readable ({error})") from None

    def whole(self, kind: str, name: str) -> Tensor:
        """A flattened parameter, its EMA or a moment, put together from all ranks' pieces."""
        if name not in self._where:
            raise UserError(f"checkpoint {self.path}: has no {name}; the decoder config differs")
        parts = []
        for _, file in sorted(self._where[name]):
            with safe_open(file, "pt") as opened:
                parts.append(opened.get_tensor(f"{kind}/{name}"))
        return torch.cat(parts)

    def weights(self, kind: str, like: torch.nn.Module) -> dict[str, Tensor]:
        """All parameters of `like`, in its shapes; buffers are not kept."""
        out = {}
        if more := self._where.keys() - {name for name, _ in like.named_parameters()}:
            raise UserError(
                f"checkpoint {self.path}: has {min(more)}, the config's decoder has not; resume "
                "with the same decoder section"
            )
        for name, parameter in like.named_parameters():
            flat = self.whole(kind, name)
            if flat.numel() != parameter.numel():
                raise UserError(
                    f"checkpoint {self.path}: {name} has {flat.numel()} numbers, the config's "
                    f"decoder {parameter.numel()}; resume with the same decoder section"
                )
            out[name] = flat.view(parameter.shape)
        return out

    def restore(self, pieces: list[Piece], ema: Ema, optimizer: torch.optim.Optimizer) -> None:
        """Put weights, moments and EMA back into this rank's pieces, in place."""
        with torch.no_grad():
            for piece, average in zip(pieces, ema.shards, strict=True):
                at = slice(piece.start, piece.start + piece.size)
                piece.master.copy_(self.whole(WEIGHT, piece.name)[at])
                average.copy_(self.whole(EMA, piece.name)[at])
                adam = moments(optimizer, piece.flat)
                for key in MOMENTS:
                    piece.of(adam[key]).copy_(self.whole(key, piece.name)[at])
                adam["step"].fill_(self.state.step)
