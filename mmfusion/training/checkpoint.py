"""Checkpoints to go on from exactly, also at another ZeRO stage or number of ranks.

What is saved and restored is exact; at another stage or ranks sums round otherwise from there on.

A checkpoint is a folder `step-00001000`: one safetensors file a rank with its pieces of weights,
moments and EMA in fp32, `state.json` with the counters and the data cursors, `config.yaml`, and a
manifest. It is written beside its place, sealed and renamed, so that a folder of that name is
whole; resuming takes the newest whose manifest holds. Only such a name is one of ours: a copy
`step-00001000-best` is never resumed from or removed, nor is what else was put into a checkpoint.
On several hosts the output folder must be shared. Nothing in it is unpickled.
"""

import json
import logging
import os
import re
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed

from mmfusion import files, manifest
from mmfusion.config import Config, save
from mmfusion.errors import UserError
from mmfusion.training.ema import Ema
from mmfusion.training.together import together
from mmfusion.training.zero_shards import MOMENTS, Piece, moments

log = logging.getLogger("mmfusion")
WEIGHT, EMA = "weight", "ema"
NAME = re.compile(r"step-(\d{8}|[1-9]\d{8,})", re.ASCII)
FILE = re.compile(r"rank-\d{5,}\.safetensors|state\.json|config\.yaml|manifest\.json", re.ASCII)
PART = re.compile(rf"\.{NAME.pattern}\.part", re.ASCII)


@dataclass
class State:
    """The counters of a run, what each row slot has consumed, and what its numbers mean."""

    step: int = 0
    seconds: float = 0.0
    slots: dict[int, list[int]] | None = None
    layout: dict[str, Any] | None = None


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
    with together(), files.writable(final):
        if rank == 0:
            for left in root.iterdir() if root.is_dir() else ():
                if PART.fullmatch(left.name):  # of a killed run
                    files.remove_folder(left)
            part.mkdir(parents=True)
    try:
        sealed: dict[str, str] = {}
        with together(), files.writable(final):
            # At stage 0 every rank holds the same.
            if rank == 0 or config.train.zero_stage > 0:
                file = part / f"rank-{rank:05d}.safetensors"
                _write_pieces(file, pieces, ema, optimizer)
                sealed = {file.name: manifest.secure(file)}  # each rank its own, side by side
        everyone: list[Any] = [None] * world
        distributed.all_gather_object(everyone, (state.slots, sealed))
        with together(), files.writable(final):
            if rank == 0:
                merged = {n: slot for slots, _ in everyone for n, slot in (slots or {}).items()}
                facts = asdict(replace(state, slots=merged))
                (part / "state.json").write_text(json.dumps(facts), encoding="utf-8")
                save(config, part / "config.yaml")
                _commit(part, final, {n: d for _, digests in everyone for n, d in digests.items()})
                # Newer ones than this are damaged: they do not count.
                found = [path for path in all_checkpoints(root) if not path.is_symlink()]
                for old in [p for p in found if _step(p) <= state.step][: -config.train.keep]:
                    _remove(old)
    except BaseException:
        if rank == 0:
            files.remove_folder(part)
        raise
    return final


def _commit(part: Path, final: Path, sealed: dict[str, str]) -> None:
    """Put a checkpoint in its place; one of this step that is there is damaged, or the same."""
    manifest.seal(part, sealed)
    _remove(final)
    if os.path.lexists(final):
        raise UserError(f"{final}: is in the way of a checkpoint; move it away")
    files.move(part, final)
    manifest.sync(final.parent)


def _remove(path: Path) -> None:
    """Remove a checkpoint's files, and the folder unless something else lies in it."""
    if path.is_dir() and not path.is_symlink():
        for file in _files(path):
            files.remove(file)
        files.remove_empty(path)


def _files(path: Path) -> list[Path]:
    """What we wrote into a checkpoint's folder."""
    return [file for file in sorted(path.iterdir()) if FILE.fullmatch(file.name)]


def _write_pieces(
    path: Path, pieces: list[Piece], ema: Ema, optimizer: torch.optim.Optimizer
) -> None:
    starts = {piece.name: piece.start for piece in pieces}
    tensors = {
        f"{kind}/{piece.name}": tensor.float().cpu().contiguous().clone()
        for piece, average in zip(pieces, ema.shards, strict=True)
        for kind, tensor in kept(piece, average, optimizer).items()
    }
    save_file(tensors, path, metadata={"starts": json.dumps(starts)})


def kept(piece: Piece, average: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that a checkpoint keeps of a piece, in place."""
    adam = moments(optimizer, piece.flat)
    return {WEIGHT: piece.master, EMA: average, **{key: piece.of(adam[key]) for key in MOMENTS}}


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def all_checkpoints(root: Path) -> list[Path]:
    """Committed checkpoint folders, oldest first: of our names, with files of ours."""
    named = [p for p in (root.iterdir() if root.is_dir() else ()) if NAME.fullmatch(p.name)]
    return sorted((p for p in named if p.is_dir() and _files(p)), key=_step)


def newest(root: Path) -> Path | None:
    """The newest checkpoint whose manifest holds; damaged ones are named and passed over."""
    problems = []
    for path in reversed(all_checkpoints(root)):
        try:
            manifest.verify(path, "checkpoint")
            return path
        except UserError as error:
            log.warning("%s; trying an older one", error)
            problems.append(str(error))
    if problems:
        told = "\n  ".join(problems)
        raise UserError(
            f"no whole checkpoint under {root}; remove the folder to start over:\n  {told}"
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
        self._opened: dict[Path, Any] = {}
        for file in [file for file in _files(path) if file.suffix == ".safetensors"]:
            for name, start in json.loads(self._file(file).metadata()["starts"]).items():
                self._where[name].append((start, file))

    def whole(self, kind: str, name: str) -> Tensor:
        """A flattened parameter, its EMA or a moment, put together from all ranks' pieces."""
        return self.part(kind, name, 0, sys.maxsize)

    def part(self, kind: str, name: str, start: int, end: int) -> Tensor:
        """Its numbers from `start` to `end`; nothing else is read."""
        parts, places = [], sorted(self._where[name])
        ends = [*(first for first, _ in places[1:]), sys.maxsize]
        for (first, file), last in zip(places, ends, strict=True):
            if first < end and start < last:
                held = self._file(file).get_slice(f"{kind}/{name}")
                parts.append(held[max(start - first, 0) : end - first])
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _file(self, path: Path) -> Any:
        """A rank's file: opened once, for all that is asked of it."""
        if path not in self._opened:
            self._opened[path] = safe_open(path, "pt")
        return self._opened[path]

    def weights(self, kind: str, like: torch.nn.Module) -> dict[str, Tensor]:
        """All parameters of `like`, in its shapes; buffers are not kept."""
        found = {name: self.whole(kind, name) for name in self._where}
        shapes = {name: parameter.shape for name, parameter in like.named_parameters()}
        for name in {**shapes, **found}:
            there = found[name].numel() if name in found else 0
            wanted = shapes[name].numel() if name in shapes else 0
            if there != wanted:
                raise UserError(
                    f"checkpoint {self.path}: {name} has {there} numbers, the config's decoder "
                    f"{wanted}; resume with the same decoder section"
                )
        return {name: found[name].view(shape) for name, shape in shapes.items()}

    def restore(self, pieces: list[Piece], ema: Ema, optimizer: torch.optim.Optimizer) -> None:
        """Put weights, moments and EMA back into this rank's pieces, in place."""
        with torch.no_grad():
            for piece, average in zip(pieces, ema.shards, strict=True):
                end = piece.start + piece.size
                for kind, tensor in kept(piece, average, optimizer).items():
                    tensor.copy_(self.part(kind, piece.name, piece.start, end))
                moments(optimizer, piece.flat)["step"].fill_(self.state.step)
