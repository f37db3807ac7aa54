"""Work that any number of processes share, on one host or many: files, each made by one of them.

There is no process group: a file that is there is done, a lock that is free is nobody's. So the
same command runs under a launcher or alone, goes on where it was stopped, and does the part of a
process that died. What is in a file depends on its number alone, never on who made it.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tqdm import tqdm

from mmfusion import launcher
from mmfusion.data_pipelines.shard_writer import claim

WAIT = 0.5
"""Seconds between two looks at what others are still making."""


def rank() -> int:
    """This process's number under a launcher; 0 alone."""
    return launcher.place().rank


def share(
    parts: Mapping[Path, Callable[[Path], None]], what: str, unit: str, count: int, size: int
) -> None:
    """Make those of the files that are not there; return when all are.

    Args:
        parts: file -> what makes it, whole or not at all (write beside it and rename).
        what: shown beside the bar.
        unit: what the bar counts, such as "picture", with its throughput.
        count: units in all files.
        size: units in each file but the last, which may have fewer.
    """
    paths, world = list(parts), launcher.place().world
    first = rank() * len(paths) // world

    def done() -> int:
        """Of all processes; the last file counts as a full one until all are there."""
        return min(count, sum(path.exists() for path in paths) * size)

    with tqdm(total=count, initial=done(), desc=what, unit=unit, disable=rank() > 0) as bar:
        while True:
            for number in [*range(first, len(paths)), *range(first)]:
                path = paths[number]
                if not path.exists():
                    with claim(path, static=number % world == rank()) as mine:
                        if mine:
                            parts[path](path)
                            bar.update(done() - bar.n)
            bar.update(done() - bar.n)
            if all(path.exists() for path in paths):
                return
            time.sleep(WAIT)
