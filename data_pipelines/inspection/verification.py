"""Reads every member of every shard, and says what of them training could not use.

Three things are looked at: the tar's own headers, each member's SHA-256 against the shard's index,
and whether the members are what docs/data.md says, by the same code that the loader reads them
with.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from tqdm import tqdm

from mmfusion import files
from mmfusion.codecs.image import flat
from mmfusion.errors import CorruptSample

from .. import storage
from ..index import SUFFIX, Index, make_index, open_index
from ..samples import Sample, is_image, is_moments, moments_name, serves, shown_members
from ..shard_writer import THREADS, ahead
from ..shards import Block, Shards
from ..tar_index import Contents, scan

log = logging.getLogger("mmfusion")
FIRST = 5  # findings of each reason that are told
CHUNK = 16  # samples that a thread takes at a time


@dataclass
class Report:
    """What was looked at and found; `indexes` were there, made, or made anew."""

    shards: int = 0
    samples: int = 0
    members: int = 0
    bytes: int = 0
    indexes: Counter = field(default_factory=Counter)
    damaged: Counter = field(default_factory=Counter)
    findings: list[dict[str, str]] = field(default_factory=list)

    def add(self, shard: str, damage: CorruptSample) -> None:
        """Count a finding by its reason."""
        self.damaged[damage.reason] += 1
        self.findings.append({"shard": shard, "reason": damage.reason, "what": str(damage)})

    def first(self, reason: str) -> list[str]:
        """The first few findings of a reason."""
        return [found["what"] for found in self.findings if found["reason"] == reason][:FIRST]

    def lines(self) -> list[str]:
        """The report for a terminal."""
        said = [
            f"looked at {self.shards} shards: {self.samples:,} samples, {self.members:,} members, "
            f"{self.bytes:,} bytes"
        ]
        if self.indexes:
            said.append("indexes: " + ", ".join(f"{n} {what}" for what, n in self.indexes.items()))
        for reason, count in self.damaged.most_common():
            said += [f"damaged, {reason}: {count}", *(f"  {each}" for each in self.first(reason))]
            if count > FIRST:
                said.append(f"  and {count - FIRST} more")
        return [*said, "damaged" if self.damaged else "all is well"]


def verify(
    patterns: list[str], quick: bool = False, reindex: bool = False, listing: Path | None = None
) -> Report:
    """Look at all shards of some patterns; `quick` at tar headers and checksums alone.

    With `reindex`, all indexes are made anew first. All that is found goes to the JSON `listing`.
    """
    report = Report()
    paths = {path: pattern for pattern in patterns for path in storage.shard_paths(pattern)}
    first: dict[str, Index] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for path, pattern in tqdm(paths.items(), "verify", unit="shard"):
            report.shards += 1
            try:
                walked, index = scan(path, digests=False), _indexed(path, reindex, report)
                report.bytes += index.bytes
                report.samples += len(index)
                report.members += sum(count for count, _ in index.tally().values())
                for damage in _tar(path, index, walked, first.setdefault(pattern, index)):
                    report.add(path, damage)
                torn = {lost.name for lost in walked.lost}
                for damage in _samples(path, index, torn, quick, pool) if len(index) else ():
                    report.add(path, damage)
            except CorruptSample as error:
                report.add(path, error)
    if not (report.samples or report.damaged):
        what = f"the shards of {', '.join(patterns)} hold no samples"
        report.add(patterns[0], CorruptSample("shard", what))
    if listing:
        files.write(listing, json.dumps(vars(report), indent=1).encode())
    return report


def _indexed(path: str, reindex: bool, report: Report) -> Index:
    """The index of a shard; one that is missing or does not fit is made."""
    before = {p: p.stat().st_ino for p in storage.companions(path, SUFFIX) if p.is_file()}
    index = make_index(path) if reindex else open_index(path, whole=True)
    state = "made"
    if before and not reindex:
        same = before.get(index.path) == index.path.stat().st_ino
        state = "there" if same else "made anew"
    report.indexes[state] += 1
    if state == "made anew":
        log.warning(
            "%s: did not fit its shard and has been made anew; what changed before that is not "
            "found by checksums",
            index.path,
        )
    return index


def _tar(path: str, index: Index, walked: Contents, first: Index) -> Iterator[CorruptSample]:
    """What of a tar cannot be read, or is not in its index, and so would be read by nobody."""
    if index.header != first.header:
        what = f"{path} and {first.shard} were made with different settings"
        yield CorruptSample("shard", f"{what}; keep one kind in a folder")
    yield from (lost.at(path) for lost in walked.lost)
    known = {
        f"{key}.{member.ext}"
        for key, members in map(index.sample, range(len(index)))
        for member in members
    }
    unknown = [
        name
        for key, sample in walked.samples.items()
        for name in (f"{key}.{ext}" for ext in sample)
        if name not in known
    ]
    for name in unknown + ["its header"] * (index.header != walked.header):
        what = f"{path}:{name}: not in the shard's index; if the shard was changed on purpose"
        yield CorruptSample("member", f"{what}, verify it with --reindex")


def _samples(
    path: str, index: Index, torn: set[str], quick: bool, pool: ThreadPoolExecutor
) -> Iterator[CorruptSample]:
    """What is damaged in a shard's samples; if nothing is, whether any task can use one."""
    served, sound = Event(), True
    look = partial(_chunk, Shards([path]), index, torn, quick, served)
    for found in ahead(pool, look, range(0, len(index), CHUNK)):
        sound = sound and not found
        yield from found
    if sound and not served.is_set():
        key, members = index.sample(0)
        names = ", ".join(f"{key}.{member.ext}" for member in members[:4])
        yield CorruptSample(
            "shard",
            f"{path}: no task can use any of its samples; the first, {key}, has {names}. A name is "
            "cut at its first dot; a sample needs KEY.png, .jpg, .jpeg, .webp or .moments.npy, and "
            "KEY.txt, KEY.cls or KEY.json",
        )


def _chunk(
    shards: Shards, index: Index, torn: set[str], quick: bool, served: Event, first: int
) -> list[CorruptSample]:
    """What is damaged in `CHUNK` samples; `served` is set if one is of use."""
    end = min(first + CHUNK, len(index))
    found: list[CorruptSample] = []
    try:
        block = shards.block(0, first, end)
        for number in range(first, end):
            sample, damage = _read(shards, number, block)
            found += damage
            with suppress(CorruptSample):
                if serves(sample.extensions, sample.json()):
                    served.set()
            if not quick:
                cut = any(name.startswith(f"{sample.key}.") for name in torn)
                found += findings(sample, whole=not damage and not cut)
    except CorruptSample as damage:  # the shard has gone, or its storage does not answer
        found.append(damage)
    return found


def _read(shards: Shards, number: int, block: Block) -> tuple[Sample, list[CorruptSample]]:
    """A sample without those of its members that are damaged, and what is said of these."""
    try:
        return shards.read(0, number, block=block), []
    except CorruptSample as damage:
        if damage.reason != "member":
            raise
    sample, found = Sample({}, ""), []
    for ext in shards.extensions(number):
        try:
            part = shards.read(0, number, (ext,), block)
            sample.where, sample.key = part.where, part.key
            sample.update(part)
        except CorruptSample as damage:
            found.append(damage)
    return sample, found


def findings(sample: Sample, whole: bool = True) -> Iterator[CorruptSample]:
    """What of a sample could not be used by any task; unless `whole`, members are known to lack."""
    facts: dict[str, Any] = {}
    pictures = [ext for ext in sample if is_image(ext)]
    looks: list[Callable[[], Any]] = [partial(_picture, sample, ext) for ext in pictures]
    looks += [partial(sample.moments, ext) for ext in sample if is_moments(ext)]
    try:
        facts = sample.json()
    except CorruptSample as damage:
        yield damage
    kinds: dict[str, Callable[[], Any]] = {
        "label": sample.label,
        "captions": sample.captions,
        "content": partial(_content, sample, whole),
    }
    for look in looks + [look for kind, look in kinds.items() if kind in facts]:
        try:
            look()
        except CorruptSample as damage:
            yield damage
    pictured = any("." not in ext for ext in pictures) or moments_name() in sample
    needed = "content" not in facts and ("label" in facts or "captions" in facts)
    if whole and needed and not pictured:
        lacking = f": no picture in this sample{shown_members(sample.extensions)}"
        yield sample.corrupt("picture", lacking)


def _picture(sample: Sample, ext: str) -> None:
    try:
        flat(sample.picture(ext))
    except CorruptSample as damage:
        raise damage.at(f"{sample.where}.{ext}") from None


def _content(sample: Sample, whole: bool) -> None:
    for part in sample.content():
        there = part.value in sample or moments_name(part.value) in sample
        if whole and part.kind == "image" and not there:
            lacking = f": no picture {part.value} in this sample"
            raise sample.corrupt("picture", lacking + shown_members(sample.extensions))
