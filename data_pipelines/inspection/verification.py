"""Reads every member of every shard, and says what of them training could not use.

Three things are looked at: the tar's own headers, each member's SHA-256 against the shard's index,
and whether the members are what docs/data.md says, by the same code that the loader reads them
with. What is held in memory is one shard's index and a few samples.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from tqdm import tqdm

from mmfusion import launcher
from mmfusion.errors import CorruptSample, UserError

from .. import storage
from ..index import NO_INDEX, SUFFIX, Index, make_index, open_index
from ..samples import Sample, serves
from ..shard_writer import BAR, THREADS
from ..shards import Block, Shards
from ..tar_index import Contents, Member, scan
from .damage_report import Report, listed
from .validate import findings

A = TypeVar("A")
B = TypeVar("B")

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

    Raises:
        UserError: a pattern names no shard, or an index cannot be written.
    """
    rank, world, *_ = launcher.place()
    groups = [storage.expand(pattern) for pattern in patterns]
    for pattern, found in zip(patterns, groups, strict=True):
        if not found:
            raise UserError(f"no shards match {pattern}")
    if listing and world > 1:
        listing = listing.with_suffix(f".{rank}{listing.suffix}")
    report = Report()
    group = {path: n for n, found in enumerate(groups) for path in found}
    paths = list(group)[rank::world]
    bar = tqdm(total=len(paths), desc="verify", unit="shard", bar_format=BAR, disable=rank > 0)
    with bar, ThreadPoolExecutor(THREADS) as pool, listed(listing, report) as write:

        def say(path: str, damage: CorruptSample) -> None:
            report.add(damage)
            write({"shard": path, "reason": damage.reason, "what": str(damage)})

        def advance(share: float) -> None:
            bar.update(min(share, bar.total - bar.n))  # shares of a shard add up to a little more

        for path in paths:
            index = _shard(path, quick, reindex, pool, report, partial(say, path), advance)
            mixed = index and report.mixed(group[path], path, index.header)
            if mixed:
                say(path, mixed)
            report.shards += 1
    return report


def _shard(
    path: str,
    quick: bool,
    reindex: bool,
    pool: ThreadPoolExecutor,
    report: Report,
    say: Callable[[CorruptSample], None],
    advance: Callable[[float], Any],
) -> Index | None:
    """Look at one shard; its index, if it has one."""
    try:
        walked = scan(path, digests=False)
        index = _indexed(path, reindex, report)
        shards = Shards([path]) if len(index) else None
    except CorruptSample as error:
        say(error)
        advance(1)
        return None
    report.bytes += index.bytes
    report.samples += len(index)
    for lost in walked.lost:
        say(CorruptSample(lost.reason, f"{path}{':' if lost.name else ''}{lost.name}: {lost.what}"))
    torn = {lost.name for lost in walked.lost}
    for damage in _compare(path, index, walked, report):
        say(damage)
    del walked
    if not shards:
        advance(1)
        return index
    starts, served, sound = range(0, len(index), CHUNK), Event(), True
    look = partial(_chunk, shards, index, torn, quick, served)
    for found in _ahead(pool, look, starts):
        for damage in found:
            sound = False
            say(damage)
        advance(1 / len(starts))
    if sound and not served.is_set():
        say(_no_use(path, *index.sample(0)))
    return index


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
    if not served.is_set() and _is_of_use(sample):
        served.set()
    if not quick:
        key = sample.where.rpartition(":")[2]
        yield from findings(sample, whole and not any(n.startswith(f"{key}.") for n in torn))


def _is_of_use(sample: Sample) -> bool:
    try:
        return serves(sample.extensions, sample.json())
    except CorruptSample:
        return False


def _ahead(pool: ThreadPoolExecutor, work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """What threads make of the items, in order, no more than a few of them ahead."""
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > 2 * THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
