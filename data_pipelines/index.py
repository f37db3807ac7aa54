"""The index of a shard: offset, size and SHA-256 of each member, by sample.

It is a file beside the shard, `x.tar.index`: one line, a SHA-256 and JSON, then plain arrays, which
are read for a block of samples at a time: millions cost no memory of their own, and any sample is a
positioned read away. Where it is missing, the shard is read once to make it.
"""

import hashlib
import json
import logging
import math
import re
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmfusion import files, locks
from mmfusion.errors import REASONS, CorruptSample, UserError

from . import storage
from .tar_index import Contents, LostPart, Member, scan

log = logging.getLogger("mmfusion")
SUFFIX = ".index"
VERSION = 2


class Index:
    """The saved index of one shard."""

    def __init__(self, shard: str, path: Path) -> None:
        """Read the line; the arrays are read when they are first asked for.

        Where there is none, or it is damaged, both raise one of `NO_INDEX`.
        """
        self.shard, self.path = shard, path
        with path.open("rb") as file:
            line = file.readline()
        digest, _, text = line.rstrip(b"\n").partition(b" ")
        if hashlib.sha256(text).hexdigest().encode() != digest:
            raise ValueError("the index is damaged")
        facts = json.loads(text)
        if facts["version"] != VERSION:
            raise ValueError("another version")
        self.bytes = int(facts["bytes"])
        self.header: dict[str, Any] = dict(facts["header"])
        self.lost = [LostPart(*map(str, entry)) for entry in facts["lost"]]
        if not {lost.reason for lost in self.lost} <= {*REASONS}:
            raise ValueError("losses of unknown reasons")
        self.extensions = [str(ext) for ext in facts["extensions"]]
        self._members, self._samples = int(facts["members"]), int(facts["samples"])
        self.digest, self._body = str(facts["sha256"]), len(line)

    def __len__(self) -> int:
        return self._samples

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """What lies behind the line. An index from elsewhere may be whole and still lie."""
        view = memoryview(self.path.read_bytes())[self._body :]
        if hashlib.sha256(view).hexdigest() != self.digest:
            raise ValueError("the index is damaged")
        a, at = {}, 0
        for name, dtype, shape in _layout(self._samples, self._members):
            a[name] = np.frombuffer(view, dtype, math.prod(shape), at).reshape(shape)
            at += a[name].nbytes
        a["keys"] = np.frombuffer(view, np.uint8, offset=at)
        ends = (a["first"], self._members), (a["name"], len(a["keys"]))
        sound = all(x[0] == 0 and x[-1] == end and np.all(np.diff(x) >= 0) for x, end in ends)
        offset, size = a["offset"], a["size"]
        sound &= bool(np.all((offset >= 0) & (size >= 0) & (size <= self.bytes - offset)))
        if not sound or np.any(a["extension"] >= len(self.extensions)):
            raise ValueError("the index contradicts itself")
        return a

    def sample(self, number: int) -> tuple[str, list[Member]]:
        """Key and members of a sample."""
        try:
            a = self.arrays
        except NO_INDEX as error:
            what = f"{self.path}: {error}; delete it to make it anew"
            raise CorruptSample("shard", what) from None
        key = a["keys"][a["name"][number] : a["name"][number + 1]].tobytes()
        own = slice(a["first"][number], a["first"][number + 1])
        members = [
            Member(self.extensions[ext], int(offset), int(size), digest.tobytes())
            for ext, offset, size, digest in zip(
                *(a[name][own] for name in ("extension", "offset", "size", "digest")), strict=True
            )
        ]
        return key.decode("utf-8", "replace"), members

    def tally(self) -> dict[str, tuple[int, int]]:
        """How many members there are of each extension, and their bytes."""
        kinds, sizes = self.arrays["extension"], self.arrays["size"]
        found = {ext: sizes[kinds == n] for n, ext in enumerate(self.extensions)}
        return {ext: (len(own), int(own.sum())) for ext, own in found.items()}

    def span(self, first: int, end: int) -> tuple[int, int, int]:
        """From where to where the members of some samples lie in the shard, and their bytes."""
        a = self.arrays
        members = slice(a["first"][first], a["first"][end])
        offsets, sizes = a["offset"][members], a["size"][members]
        if not len(offsets):
            return 0, 0, 0
        return int(offsets.min()), int((offsets + sizes).max()), int(sizes.sum())


def _layout(samples: int, members: int) -> list[tuple[str, str, tuple[int, ...]]]:
    return [
        ("offset", "<i8", (members,)),
        ("size", "<i8", (members,)),
        ("digest", "u1", (members, 32)),
        ("first", "<i4", (samples + 1,)),  # of the sample's members
        ("name", "<i4", (samples + 1,)),  # where its key begins
        ("extension", "<u4", (members,)),
    ]


# What reading a file that is no index may raise.
NO_INDEX = OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError


def open_index(shard: str, whole: bool = False) -> Index:
    """The index of a shard: the saved one, or made anew where that is missing or does not fit.

    With `whole`, all of it is read and checked, and not only its line.
    """
    size, places = storage.size(shard), storage.companions(shard, SUFFIX)
    if (found := _saved(shard, size, places, whole)) is not None:  # one of no samples is one, too
        return found
    with locks.locked(places[0], wait=True):
        found = _saved(shard, size, places, whole)  # by another process meanwhile
        if found is None and storage.is_remote(shard):
            beside = f"{shard}{SUFFIX}"
            with suppress(UserError):  # none is there
                files.write(places[0], storage.read(beside, 0, storage.size(beside)))
                found = _saved(shard, size, places, whole)
        return make_index(shard) if found is None else found


def make_index(shard: str) -> Index:
    """Make the index of a shard anew: beside it, or in the cache where one may not write there."""
    contents = scan(shard)
    places = storage.companions(shard, SUFFIX)
    error = UserError(f"{places[0]}: is of another program; set MMFUSION_CACHE for an index")
    for path in places if may_replace(places[0]) else places[1:]:
        try:
            save(contents, path)
            return Index(shard, path)
        except UserError as failure:
            error = failure
    raise error


def may_replace(path: Path) -> bool:
    """Whether what stands beside a shard is an index of ours, if damaged, and not another tool's.

    It begins with 64 hex digits and a version; of one that is damaged, either is left.
    """
    try:
        with path.open("rb") as file:
            head = file.read(80)
    except OSError:
        return True
    return not head or bool(
        re.match(rb"[0-9a-f]{64}|[0-9a-f]+\Z|.{65}\{\"version\"", head, re.DOTALL)
    )


def _saved(shard: str, size: int, places: list[Path], whole: bool) -> Index | None:
    for path in places:
        try:
            found = Index(shard, path)
            # A shard that has become shorter was cut: the index still knows what it held.
            if whole or found.bytes > size:
                _ = found.arrays
            if found.bytes > size:
                what = f"{size} bytes of {found.bytes}: it was cut short"
                found.lost.append(LostPart("", "shard", what))
            if found.bytes >= size:
                return found
            log.warning("%s: is of a smaller %s, and is made anew", path, shard)
        except NO_INDEX as error:
            storage.refuse_shortage(error)
    return None


def save(contents: Contents, path: Path) -> None:
    """Write an index; it appears as a whole."""
    members = [member for sample in contents.samples.values() for member in sample.values()]
    extensions = sorted({member.ext for member in members})
    number = {ext: n for n, ext in enumerate(extensions)}
    keys = [key.encode() for key in contents.samples]
    arrays = {
        "offset": [member.offset for member in members],
        "size": [member.size for member in members],
        "digest": np.frombuffer(b"".join(member.digest for member in members), np.uint8),
        "first": np.cumsum([0, *(len(sample) for sample in contents.samples.values())]),
        "name": np.cumsum([0, *map(len, keys)]),
        "extension": [number[member.ext] for member in members],
    }
    layout = _layout(len(keys), len(members))
    body = b"".join(np.asarray(arrays[name], dtype).tobytes() for name, dtype, _ in layout)
    body += b"".join(keys)
    facts = {
        "version": VERSION,
        "bytes": contents.bytes,
        "samples": len(keys),
        "members": len(members),
        "header": contents.header,
        "extensions": extensions,
        "lost": contents.lost,
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    text = json.dumps(facts).encode()
    line = hashlib.sha256(text).hexdigest().encode() + b" " + text + b"\n"
    files.write(path, line + body, "set MMFUSION_CACHE to a folder where you may write")
