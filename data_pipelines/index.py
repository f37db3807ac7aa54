"""What a shard holds and where: offset, size and SHA-256 of each member, by sample.

The index is a file beside the shard, `x.tar.index`: one line, a SHA-256 and JSON, then plain
arrays, which are mapped and not read: millions of samples cost no memory of their own, and any
sample is a positioned read away. Where it is missing, the shard is read once to make it.

A damaged tar loses no more than what is damaged: after a header that cannot be read, the next one
that can be is looked for. What is lost is listed with its reason.
"""

import hashlib
import json
import mmap
import os
import re
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mmfusion.errors import REASONS, Damage, UserError, printable

from . import storage

SUFFIX = ".index"
VERSION = 2
HEADER = "__mmfusion__"  # webdataset, too, passes over names of this form
BLOCK = 512  # bytes; a tar consists of such blocks
FIRST_READ = 4096  # holds the line of an index, mostly
MOST_HEADER = 1 << 20  # bytes of a shard's header
MOST_NAME = 4096  # characters of a member's name
MOST_TOLD = 200  # characters of a name in a message
MOST_HOLES = 1000  # damaged places after which the rest of a shard is left unread


class Member(NamedTuple):
    """One file of a sample."""

    ext: str
    offset: int
    size: int
    digest: bytes


class Lost(NamedTuple):
    """A part of a shard that cannot be used."""

    name: str
    reason: str
    what: str


@dataclass
class Contents:
    """What reading a shard from end to end found."""

    bytes: int
    header: dict = field(default_factory=dict)
    samples: dict[str, dict[str, Member]] = field(default_factory=dict)
    lost: list[Lost] = field(default_factory=list)


class Index:
    """The saved index of one shard."""

    def __init__(self, shard: str, path: Path) -> None:
        """Read the line; the arrays are mapped when they are first asked for.

        Raises:
            *NO_INDEX: it is not there, or is no index.
        """
        self.shard, self.path = shard, path
        with path.open("rb") as file:
            start = file.read(FIRST_READ)
            while b"\n" not in start and (more := file.read(FIRST_READ)):
                start += more
        line, _, _ = start.partition(b"\n")
        digest, _, text = line.partition(b" ")
        if hashlib.sha256(text).hexdigest().encode() != digest:
            raise ValueError("the index is damaged")
        facts = json.loads(text)
        if facts["version"] != VERSION:
            raise ValueError("another version")
        self.bytes = int(facts["bytes"])
        self.header: dict[str, Any] = dict(facts["header"])
        self.lost = [Lost(*map(str, entry)) for entry in facts["lost"]]
        if not {lost.reason for lost in self.lost} <= {*REASONS}:
            raise ValueError("losses of unknown reasons")
        self.extensions = [str(ext) for ext in facts["extensions"]]
        self._members, self._samples = int(facts["members"]), int(facts["samples"])
        self._digest, self._body = facts["sha256"], len(line) + 1
        self._arrays: dict[str, np.ndarray] | None = None
        self._names: memoryview = memoryview(b"")

    def __len__(self) -> int:
        return self._samples

    def _map(self) -> dict[str, np.ndarray]:
        if self._arrays is not None:
            return self._arrays
        with self.path.open("rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[self._body :]
        if hashlib.sha256(view).hexdigest() != self._digest:
            raise ValueError("the index is damaged")
        arrays, at = {}, 0
        for name, dtype, shape in _layout(self._samples, self._members):
            count = int(np.prod(shape))
            arrays[name] = np.frombuffer(view, dtype, count, at).reshape(shape)
            at += arrays[name].nbytes
        self._names = view[at:]
        self._check(arrays)
        self._arrays = arrays
        return arrays

    def _check(self, a: dict[str, np.ndarray]) -> None:
        """An index from elsewhere may be whole and still lie."""
        ends = (a["first"], self._members), (a["name"], len(self._names))
        sound = all(x[0] == 0 and x[-1] == end and np.all(np.diff(x) >= 0) for x, end in ends)
        offset, size = a["offset"], a["size"]
        sound &= bool(np.all((offset >= 0) & (size >= 0) & (size <= self.bytes - offset)))
        if not sound or np.any(a["extension"] >= len(self.extensions)):
            raise ValueError("the index contradicts itself")

    def sample(self, number: int) -> tuple[str, list[Member]]:
        """Key and members of a sample.

        Raises:
            Damage: the index is not what it was when it was opened.
        """
        try:
            a = self._map()
        except NO_INDEX as error:
            raise Damage("shard", f"{self.path}: {error}; delete it to make it anew") from None
        key = bytes(self._names[a["name"][number] : a["name"][number + 1]]).decode(
            "utf-8", "replace"
        )
        members = [
            Member(
                self.extensions[a["extension"][m]],
                int(a["offset"][m]),
                int(a["size"][m]),
                a["digest"][m].tobytes(),
            )
            for m in range(a["first"][number], a["first"][number + 1])
        ]
        return key, members

    def check(self) -> None:
        """Read the arrays now.

        Raises:
            *NO_INDEX: they are damaged.
        """
        self._map()

    def span(self, first: int, end: int) -> tuple[int, int]:
        """From where to where the members of some samples lie in the shard."""
        a = self._map()
        members = slice(a["first"][first], a["first"][end])
        offsets, sizes = a["offset"][members], a["size"][members]
        if not len(offsets):
            return 0, 0
        return int(offsets.min()), int((offsets + sizes).max())


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

    Raises:
        Damage: the shard cannot be read, or is no tar file.
    """
    path, size = storage.companion(shard, SUFFIX), storage.size(shard)
    for attempt in ("beside", "fetched"):
        try:
            found = Index(shard, path)
            if found.bytes == size:
                if whole:
                    found.check()
                return found
        except NO_INDEX:
            pass
        if attempt == "beside" and not _fetch(shard, path):
            break
    contents = scan(shard)
    try:
        save(contents, path)
        return Index(shard, path)
    except OSError as error:
        raise UserError(
            f"{path}: the shard's index cannot be written there ({error.strerror}); make it once "
            "with `mmfusion data verify` where you may write"
        ) from None


def _fetch(shard: str, path: Path) -> bool:
    """Bring the index of a remote shard here."""
    if not storage.is_remote(shard):
        return False
    try:
        data = storage.read(f"{shard}{SUFFIX}", 0, storage.size(f"{shard}{SUFFIX}"))
    except UserError:
        return False
    _write(path, data)
    return True


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    part.write_bytes(data)
    os.replace(part, path)


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
    _write(path, hashlib.sha256(text).hexdigest().encode() + b" " + text + b"\n" + body)


def scan(shard: str) -> Contents:
    """Read a shard from end to end.

    Raises:
        Damage: it cannot be read, or nothing of it is a tar file.
    """
    contents = Contents(storage.size(shard))
    try:
        with storage.open_file(shard) as file:
            for member in _members(file, contents):
                _take(member, file, contents)
    except (OSError, tarfile.TarError) as error:
        raise Damage("shard", f"shard {shard}: cannot be read ({error})") from None
    empty = not contents.header and contents.bytes > tarfile.RECORDSIZE
    if not contents.samples and (contents.lost or empty):
        what = contents.lost[0].what if contents.lost else "nothing in it is a part of a sample"
        raise Damage("shard", f"shard {shard}: not a tar file with samples ({what})")
    return contents


def _members(file: BinaryIO, contents: Contents) -> Iterator[tarfile.TarInfo]:
    """The plain files of a tar that are whole; what is not goes to `contents.lost`."""
    at, size = 0, contents.bytes
    hole: int | None = None
    for _ in range(MOST_HOLES):
        end, cut = at, False
        try:
            file.seek(at)
            with tarfile.TarFile(fileobj=file, mode="r") as tar:
                while not cut and (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                    if member.size < 0 or tar.offset <= end:
                        raise ValueError("a size that leads back")
                    cut = member.offset_data + member.size > size
                    if cut:
                        contents.lost.append(_lost(member, "shard", "it is cut short"))
                    elif member.isreg() and not member.issparse():
                        yield member
                    elif not member.isdir():
                        contents.lost.append(_lost(member, "member", "no plain file"))
                    end = member.offset_data if cut else tar.offset
                end = end if cut else tar.offset
        except OSError:
            raise
        except Exception:  # a header that cannot be read, at `end`: tarfile raises many things
            pass
        marked = not cut and _is_zero(file, end)  # the end, or a hole in the file
        found = _next_header(file, end if cut else end + BLOCK, size)
        if found is None and marked:
            return
        if cut:
            hole = None
        else:
            if end == at and hole is not None:  # it goes on
                contents.lost.pop()
            else:
                hole = end
            what = f"bytes {hole} to {found or size} are no members"
            if end + BLOCK > size:
                what = "the end mark is missing: it was cut short"
            contents.lost.append(Lost("", "shard", what))
        if found is None:
            return
        at = found
    contents.lost.append(Lost("", "shard", f"bytes {at} to {size}: the rest, after so much damage"))


def _is_zero(file: BinaryIO, at: int) -> bool:
    file.seek(at)
    block = file.read(BLOCK)
    return len(block) == BLOCK and not any(block)


def _next_header(file: BinaryIO, start: int, size: int) -> int | None:
    """Where the next block that is a member's header lies."""
    at = start
    while at < size:
        file.seek(at)
        read = file.read(BLOCK * 2048)
        for place in range(0, len(read) - BLOCK + 1, BLOCK):
            block = read[place : place + BLOCK]
            if block[257:262] == b"ustar":
                try:
                    tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                except tarfile.HeaderError:
                    continue
                return at + place
        at += len(read) or size
    return None


def _take(member: tarfile.TarInfo, file: BinaryIO, contents: Contents) -> None:
    """Put a member where it belongs: into a sample, the header, or what is lost."""
    name = printable(member.name)
    file.seek(member.offset_data)
    if name == HEADER:
        contents.header, lost = _header(file.read(min(member.size, MOST_HEADER + 1)))
        if lost:
            contents.lost.append(_lost(member, "json", lost))
        return
    parts = name.split("/")
    head, base = "/".join(parts[:-1]), parts[-1]
    key, dot, ext = base.partition(".")
    ext = ext.lower()
    if not key or not dot or (key.startswith("__") and key.endswith("__")):
        return  # hidden, or no part of a sample
    if name.startswith("/") or ".." in re.split(r"[/\\]", member.name):
        contents.lost.append(_lost(member, "member", "a name that leads out of the shard"))
        return
    if len(name) > MOST_NAME:
        contents.lost.append(_lost(member, "member", "a name of more than 4,096 characters"))
        return
    sample = contents.samples.setdefault(f"{head}/{key}" if head else key, {})
    if ext in sample:
        contents.lost.append(_lost(member, "member", "the name is there twice"))
        return
    digest, left = hashlib.sha256(), member.size
    while left > 0 and (data := file.read(min(left, 1 << 20))):
        digest.update(data)
        left -= len(data)
    sample[ext] = Member(ext, member.offset_data, member.size, digest.digest())


def _header(data: bytes) -> tuple[dict[str, Any], str]:
    """A shard's header, or what is wrong with it."""
    try:
        if len(data) > MOST_HEADER:
            raise ValueError("too long")
        found = json.loads(data)
        json.dumps([[found]])  # it must fit into the index, too
    except (ValueError, RecursionError):
        found = None
    return (found, "") if isinstance(found, dict) else ({}, "the shard's header is not valid JSON")


def _lost(member: tarfile.TarInfo, reason: str, what: str) -> Lost:
    return Lost(printable(member.name[:MOST_TOLD]), reason, what)
