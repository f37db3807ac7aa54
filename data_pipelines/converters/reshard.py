"""Tars of samples to tars of samples: one for one, in the same order."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from mmfusion.errors import CorruptSample, UserError

from ..images import ImageReader
from ..samples import PICTURES, shown_members
from ..samples import Sample as Given
from ..shard_writer import Sample, ShardJob
from ..shards import Members, Shards
from ..tar_index import LostPart

log = logging.getLogger("mmfusion")


def reshard(
    shards: Shards,
    output: Path,
    name: str,
    reader: ImageReader,
    describe: Callable[[Given, str, int], Members | None],
) -> dict[Path, Callable[[], ShardJob[list[Sample]]]]:
    """A part for each shard; what an input shard has lost counts as items that cannot be used.

    Args:
        shards: to be read.
        output: folder of those to be written.
        name: how their names begin.
        reader: how pictures become members.
        describe: (sample, its key, its number in all shards) -> the facts to be kept of it;
            None passes over it.
    """
    if any(os.path.realpath(os.path.dirname(p)) == os.path.realpath(output) for p in shards.paths):
        raise UserError(f"{output}: holds the shards that are read; give another --output")
    lost: dict[str, list[LostPart]] = {}
    for path, entry in shards.lost:
        if path not in shards.paths:
            what = entry.what if path in entry.what else f"{path}: {entry.what}"
            raise UserError(f"{what}; copy it anew, or leave it out of the pattern")
        lost.setdefault(path, []).append(entry)
    for path, entries in lost.items():
        log.warning(
            "%s: is damaged, and may have lost many samples (%s); copy it anew",
            path,
            "; ".join(f"{e.name}: {e.what}" if e.name else e.what for e in entries[:3]),
        )

    def part(shard: int) -> ShardJob[list[Sample]]:
        path, size = shards.paths[shard], int(shards.sizes[shard])
        gone = lost.get(path, [])

        def make(number: int) -> list[Sample]:
            if number >= size:
                entry = gone[number - size]
                raise CorruptSample(entry.reason, entry.what).at(
                    f"{path}{entry.name and ':'}{entry.name}"
                )
            sample = shards.read(shard, number)
            key = sample.where[len(path) + 1 :]
            own = next((ext for ext in PICTURES if ext in sample), None)
            if own is None:
                lacking = f"no picture in this sample{shown_members(sample.extensions)}"
                raise CorruptSample("picture", f"{sample.where}: {lacking}")
            described = describe(sample, key, shards.number(shard, number))
            if described is None:
                return []
            extension, data = reader.member(sample[own], f"{sample.where}.{own}")
            return [(key, {"json": described, extension: data})]

        return ShardJob(range(size + len(gone)), make)

    def opens(shard: int) -> Callable[[], ShardJob[list[Sample]]]:
        return lambda: part(shard)

    return {output / f"{name}-{n:05d}.tar": opens(n) for n in range(len(shards.paths))}
