"""Tars of samples to tars of samples: one for one, in the same order."""

import logging
import os
from collections.abc import Callable
from functools import partial

from mmfusion.errors import UserError

from ..samples import PICTURES, shown_members
from ..samples import Sample as Given
from ..shard_writer import Output, Parts, Sample, ShardJob
from ..shards import Members, Shards
from ..tar_index import LostPart

log = logging.getLogger("mmfusion")


def reshard(
    shards: Shards, output: Output, describe: Callable[[Given, int], Members | None]
) -> Parts[list[Sample]]:
    """A part for each shard; what an input shard has lost counts as items that cannot be used.

    `describe` gives the facts to be kept of a sample, by its number; None passes over it.
    """
    folder = os.path.realpath(output.folder)
    if any(os.path.realpath(os.path.dirname(path)) == folder for path in shards.paths):
        raise UserError(f"{output.folder}: holds the shards that are read; give another --output")
    lost: dict[str, list[LostPart]] = {}
    for path, entry in shards.lost:
        if path not in shards.paths:
            raise UserError(f"{entry.at(path)}; copy it anew, or leave it out of the pattern")
        lost.setdefault(path, []).append(entry)
    for path, entries in lost.items():
        told = "; ".join(f"{e.name}: {e.what}" if e.name else e.what for e in entries[:3])
        log.warning("%s: is damaged, and may have lost many samples (%s); copy it anew", path, told)

    def part(shard: int) -> ShardJob[list[Sample]]:
        path, size = shards.paths[shard], int(shards.sizes[shard])
        gone = lost.get(path, [])

        def make(number: int) -> list[Sample]:
            if number >= size:
                raise gone[number - size].at(path)
            sample = shards.read(shard, number)
            own = next((ext for ext in PICTURES if ext in sample), None)
            if own is None:
                lacking = f": no picture in this sample{shown_members(sample.extensions)}"
                raise sample.corrupt("picture", lacking)
            facts = describe(sample, shards.number(shard, number))
            if facts is None:
                return []
            extension, data = output.reader.member(sample[own], f"{sample.where}.{own}")
            return [(sample.key, {"json": facts, extension: data})]

        return ShardJob(range(size + len(gone)), make)

    return output.parts(partial(part, shard) for shard in range(len(shards.paths)))
