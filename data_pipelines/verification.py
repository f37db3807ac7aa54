"""Reads every member of every shard, and says what of them training could not use.

Three things are looked at: the tar's own headers, each member's SHA-256 against the shard's index,
and whether the members are what docs/data.md says, by the same code that the loader reads them
with. What is held in memory is one shard's index and a few samples.
"""

import json
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

from mmfusion.codecs.image import check_range
from mmfusion.errors import Damage, UserError

from . import storage
from .index import SUFFIX, Contents, Index, open_index, save, scan
from .jobs import BAR, THREADS
from .samples import Sample, is_moments, is_picture, moments_name
from .shards import Block, Shards

A = TypeVar("A")
B = TypeVar("B")

log = logging.getLogger("mmfusion")
CHUNK = 16  # samples that a thread takes at a time
MOST_BLOCK = 1 << 26  # bytes of neighbours that are read at once
FIRST = 5  # findings of each reason that a report keeps

Say = Callable[[str, Damage], None]


@dataclass
class Report:
    """What was looked at and found.

    Attributes:
        indexes: `there`, `made` where they were missing, `made anew` where they did not fit.
        damaged: findings by reason; `first` tells the first few of each.
    """

    shards: int = 0
    samples: int = 0
    members: int = 0
    bytes: int = 0
    indexes: Counter = field(default_factory=Counter)
    damaged: Counter = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)

    def add(self, damage: Damage) -> None:
        """Count a finding."""
        self.damaged[damage.reason] += 1
        told = self.first.setdefault(damage.reason, [])
        if len(told) < FIRST:
            told.append(str(damage))


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
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
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
    with bar, ThreadPoolExecutor(THREADS) as pool, _listed(listing, report) as listed:

        def say(path: str, damage: Damage) -> None:
            report.add(damage)
            listed({"shard": path, "reason": damage.reason, "what": str(damage)})

        headers: dict[int, tuple[str, dict]] = {}
        for path in paths:
            index = _shard(path, quick, reindex, pool, report, partial(say, path), bar.update)
            if index is not None:
                first, header = headers.setdefault(group[path], (path, index.header))
                if index.header != header:
                    what = f"{path} and {first} were made with different settings"
                    say(path, Damage("shard", f"{what}; keep one kind in a folder"))
            report.shards += 1
    return report


def _shard(
    path: str,
    quick: bool,
    reindex: bool,
    pool: ThreadPoolExecutor,
    report: Report,
    say: Callable[[Damage], None],
    advance: Callable[[float], Any],
) -> Index | None:
    """Look at one shard; its index, if it has one."""
    try:
        walked = scan(path, digests=False)
        index = _indexed(path, reindex, report)
        shards = Shards([path]) if len(index) else None
    except Damage as error:
        say(error)
        advance(1)
        return None
    report.bytes += index.bytes
    report.samples += len(index)
    for lost in walked.lost:
        say(Damage(lost.reason, f"{path}{':' if lost.name else ''}{lost.name}: {lost.what}"))
    torn = {lost.name for lost in walked.lost}
    for damage in _compare(path, index, walked, report):
        say(damage)
    del walked
    if not shards:
        advance(1)
        return index
    starts = range(0, len(index), CHUNK)
    look = partial(_chunk, shards, index, torn, quick)
    for found in _ahead(pool, look, starts):
        for damage in found:
            say(damage)
        advance(1 / len(starts))
    return index


def _indexed(path: str, reindex: bool, report: Report) -> Index:
    """The index of a shard; one that is missing or does not fit is made."""
    beside = storage.companion(path, SUFFIX)
    state = "made"
    if reindex:
        save(scan(path), beside)
    elif beside.is_file():
        state = "made anew"
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = Index(path, beside)
            found.check()
            state = "there" if found.bytes == storage.size(path) else state
    index = open_index(path, whole=True)
    report.indexes[state] += 1
    if state == "made anew":
        log.warning(
            "%s: did not fit its shard and has been made anew; what changed before that is not "
            "found by checksums",
            beside,
        )
    return index


def _compare(path: str, index: Index, walked: Contents, report: Report) -> Iterator[Damage]:
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


def _unknown(path: str, what: str) -> Damage:
    told = f"{path}:{what}: not in the shard's index; if the shard was changed on purpose, verify"
    return Damage("member", f"{told} it with --reindex")


def _chunk(shards: Shards, index: Index, torn: set[str], quick: bool, first: int) -> list[Damage]:
    """What is damaged in `CHUNK` samples."""
    end = min(first + CHUNK, len(index))
    start, stop = index.span(first, end)
    block = None
    try:
        if stop - start <= MOST_BLOCK:
            block = shards.block(0, first, end)
        return [
            damage
            for number in range(first, end)
            for damage in _sample(shards, number, block, torn, quick)
        ]
    except Damage as damage:  # the shard has gone, or its storage does not answer
        return [damage]


def _sample(
    shards: Shards, number: int, block: Block | None, torn: set[str], quick: bool
) -> Iterator[Damage]:
    whole = True
    try:
        sample = shards.read(0, number, block=block)
    except Damage as damage:
        if damage.reason != "member":
            raise
        whole, sample = False, Sample({}, "")
        for ext in shards.extensions(number):
            try:
                part = shards.read(0, number, (ext,), block)
            except Damage as each:
                if each.reason != "member":
                    raise
                yield each
            else:
                sample.where = part.where
                sample.update(part)
    if not quick:
        key = sample.where.rpartition(":")[2]
        yield from findings(sample, whole and not any(n.startswith(f"{key}.") for n in torn))


def findings(sample: Sample, whole: bool = True) -> Iterator[Damage]:
    """What of a sample could not be used by any task; unless `whole`, members are known to lack."""
    facts: dict[str, Any] = {}
    members: list[Callable[[], Any]] = [partial(_picture, sample, e) for e in _pictures(sample)]
    members += [partial(sample.moments, ext) for ext in sample if is_moments(ext)]
    try:
        facts = sample.json()
    except Damage as damage:
        yield damage
    if "label" in facts:
        members.append(partial(sample.label, facts))
    if "captions" in facts:
        members.append(partial(sample.captions, facts))
    if "content" in facts:
        members.append(partial(_content, sample, facts, whole))
    for look in members:
        try:
            look()
        except Damage as damage:
            yield damage
    pictured = any("." not in ext for ext in _pictures(sample)) or moments_name() in sample
    needed = "content" not in facts and ("label" in facts or "captions" in facts)
    if whole and needed and not pictured:
        yield Damage("picture", f"{sample.where}: no picture in this sample")


def _pictures(sample: Sample) -> list[str]:
    return [ext for ext in sample if is_picture(ext)]


def _picture(sample: Sample, ext: str) -> None:
    try:
        check_range(sample.picture(ext))
    except Damage as damage:
        raise damage.at(f"{sample.where}.{ext}") from None


def _content(sample: Sample, facts: dict[str, Any], whole: bool) -> None:
    for part in sample.content(facts):
        there = part.value in sample or moments_name(part.value) in sample
        if whole and part.kind == "image" and not there:
            raise Damage("picture", f"{sample.where}: no picture {part.value} in this sample")


def _ahead(pool: ThreadPoolExecutor, work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """What threads make of the items, in order, no more than a few of them ahead."""
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > 2 * THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _listed(path: Path | None, report: Report) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What writes findings to a JSON file; it appears as a whole, with the report at its end."""
    if path is None:
        yield lambda entry: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    count = 0

    def write(entry: dict[str, Any]) -> None:
        nonlocal count
        file.write((",\n" if count else "\n") + json.dumps(entry))
        count += 1

    try:
        file: TextIO
        with part.open("w", encoding="utf-8") as file:
            file.write('{"findings": [')
            yield write
            told = {name: getattr(report, name) for name in ("shards", "samples", "members")}
            told |= {"bytes": report.bytes, "indexes": report.indexes, "damaged": report.damaged}
            file.write("\n],\n" + json.dumps(told)[1:] + "\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
