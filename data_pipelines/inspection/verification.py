"""Reads every member of every shard, and says what of them training could not use.

Three things are looked at: the tar's own headers, each member's SHA-256 against the shard's index,
and whether the members are what docs/data.md says, by the same code that the loader reads them
with. What is held in memory is one shard's index and a few samples.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event

from tqdm import tqdm

from mmfusion import launcher
from mmfusion.errors import CorruptSample

from .. import storage
from ..index import NO_INDEX, SUFFIX, Index, make_index, open_index
from ..samples import Sample, serves
from ..shard_writer import BAR, THREADS, ahead
from ..shards import Block, Shards
from ..tar_index import Contents, Member, scan
from .damage_report import Report, listed
from .validate import findings

log = logging.getLogger("mmfusion")
CHUNK = 16  # samples that a thread takes at a time
MOST_BLOCK = 1 << 26  # bytes of neighbours that are read at once


def verify(
    patterns: list[str], quick: bool = False, reindex: bool = False, listing: Path | None = None
) -> Report:
    """Look at all shards of some patterns; of several processes, each at its share of them.

    Args:
        patterns: globs, braces or URLs.
        quick: look at tar headers and checksums alone.
        reindex: make all indexes anew first.
        listing: JSON file for all that is found.
    """
    rank, world, *_ = launcher.place()
    groups = [storage.shard_paths(pattern) for pattern in patterns]
    if listing and world > 1:
        listing = listing.with_suffix(f".{rank}{listing.suffix}")
    report = Report()
    group = {path: n for n, found in enumerate(groups) for path in found}
    paths = list(group)[rank::world]
    bar = tqdm(total=len(paths), desc="verify", unit="shard", bar_format=BAR, disable=rank > 0)
    with bar, ThreadPoolExecutor(THREADS) as pool, listed(listing, report) as write:
        for path in paths:
            for damage in _shard(path, group[path], quick, reindex, pool, report, bar):
                report.add(damage)
                write({"shard": path, "reason": damage.reason, "what": str(damage)})
            report.shards += 1
            bar.n = report.shards
            bar.update(0)
    return report


def _shard(
    path: str,
    pattern: int,
    quick: bool,
    reindex: bool,
    pool: ThreadPoolExecutor,
    report: Report,
    bar: tqdm,
) -> Iterator[CorruptSample]:
    """What is damaged in one shard."""
    try:
        walked = scan(path, digests=False)
        index = _indexed(path, reindex, report)
        shards = Shards([path]) if len(index) else None
    except CorruptSample as error:
        yield error
        return
    report.bytes += index.bytes
    report.samples += len(index)
    if mixed := report.mixed(pattern, path, index.header):
        yield mixed
    yield from (lost.at(path) for lost in walked.lost)
    torn = {lost.name for lost in walked.lost}
    yield from _compare(path, index, walked, report)
    del walked
    if not shards:
        return
    starts, served, sound = range(0, len(index), CHUNK), Event(), True
    look = partial(_chunk, shards, index, torn, quick, served)
    for number, found in enumerate(ahead(pool, look, starts), 1):
        sound = sound and not found
        yield from found
        bar.n = report.shards + number / len(starts)
        bar.update(0)
    if sound and not served.is_set():
        yield _no_use(path, *index.sample(0))


def _no_use(path: str, key: str, members: list[Member]) -> CorruptSample:
    names = ", ".join(f"{key}.{member.ext}" for member in members[:4])
    return CorruptSample(
        "shard",
        f"{path}: no task can use any of its samples; the first, {key}, has {names}. A name is "
        "cut at its first dot; a sample needs KEY.png, .jpg, .jpeg, .webp or .moments.npy, and "
        "KEY.txt, KEY.cls or KEY.json",
    )


def _indexed(path: str, reindex: bool, report: Report) -> Index:
    """The index of a shard; one that is missing or does not fit is made."""
    state = "made"
    before = [p for p in storage.companions(path, SUFFIX) if p.is_file()][:1]
    if reindex:
        make_index(path)
    elif before:
        state = "made anew"
        with suppress(*NO_INDEX):
            found = Index(path, before[0])
            found.check()
            state = "there" if found.bytes >= storage.size(path) else state
    index = open_index(path, whole=True)
    report.indexes[state] += 1
    if state == "made anew":
        log.warning(
            "%s: did not fit its shard and has been made anew; what changed before that is not "
            "found by checksums",
            index.path,
        )
    return index


def _compare(path: str, index: Index, walked: Contents, report: Report) -> Iterator[CorruptSample]:
    """What the tar holds and the index does not know: nobody would read it."""
    for number in range(len(index)):
        key, members = index.sample(number)
        report.members += len(members)
        found = walked.samples.pop(key, {})
        for ext in found.keys() - {member.ext for member in members}:
            yield _unknown(path, f"{key}.{ext}")
    for key, found in walked.samples.items():
        for ext in found:
            yield _unknown(path, f"{key}.{ext}")
    if index.header != walked.header:
        yield _unknown(path, "its header")


def _unknown(path: str, what: str) -> CorruptSample:
    told = f"{path}:{what}: not in the shard's index; if the shard was changed on purpose, verify"
    return CorruptSample("member", f"{told} it with --reindex")


def _chunk(
    shards: Shards, index: Index, torn: set[str], quick: bool, served: Event, first: int
) -> list[CorruptSample]:
    """What is damaged in `CHUNK` samples; `served` is set if one is of use."""
    end = min(first + CHUNK, len(index))
    start, stop, _ = index.span(first, end)
    block = None
    try:
        if stop - start <= MOST_BLOCK:
            block = shards.block(0, first, end)
        return [
            damage
            for number in range(first, end)
            for damage in _sample(shards, number, block, torn, quick, served)
        ]
    except CorruptSample as damage:  # the shard has gone, or its storage does not answer
        return [damage]


def _sample(
    shards: Shards, number: int, block: Block | None, torn: set[str], quick: bool, served: Event
) -> Iterator[CorruptSample]:
    whole = True
    try:
        sample = shards.read(0, number, block=block)
    except CorruptSample as damage:
        if damage.reason != "member":
            raise
        whole, sample = False, Sample({}, "")
        for ext in shards.extensions(number):
            try:
                part = shards.read(0, number, (ext,), block)
            except CorruptSample as each:
                if each.reason != "member":
                    raise
                yield each
            else:
                sample.where = part.where
                sample.update(part)
    with suppress(CorruptSample):
        if serves(sample.extensions, sample.json()):
            served.set()
    if not quick:
        key = sample.where.rpartition(":")[2]
        yield from findings(sample, whole and not any(n.startswith(f"{key}.") for n in torn))
