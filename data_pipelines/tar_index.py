"""What a tar shard holds and where, found by reading it from end to end.

A header that cannot be read costs the rest of the shard, since nothing says where its members lie.
What is lost is listed with its reason.
"""

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from mmfusion.errors import CorruptSample, printable

from . import storage

HEADER = "__mmfusion__"  # webdataset, too, passes over names of this form
BLOCK = 512  # bytes; a tar consists of such blocks
MOST_HEADER = 1 << 20  # bytes of a shard's header
MOST_EXTENDED = 1 << 20  # bytes of an extended header: a long name, or PAX facts
EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
COMPRESSED = "it is compressed by {}: unpack it, since samples are read by their place"
OTHER_KINDS = {
    b"\x1f\x8b": COMPRESSED.format("gzip"),
    b"BZh": COMPRESSED.format("bzip2"),
    b"\xfd7zXZ": COMPRESSED.format("xz"),
    b"(\xb5/\xfd": COMPRESSED.format("zstd"),
    b"PK\3\4": "it is a zip: make a tar of what is in it",
    b"version https://git-lfs": "it only says where the file is: fetch it by `git lfs pull`",
}
MOST_NAME = 4096  # characters of a member's name
MOST_TOLD = 200  # characters of a name in a message


class Member(NamedTuple):
    """One file of a sample."""

    ext: str
    offset: int
    size: int
    digest: bytes


class LostPart(NamedTuple):
    """A part of a shard that cannot be used."""

    name: str
    reason: str
    what: str

    def at(self, path: str) -> CorruptSample:
        """The same with its place."""
        where = f"{path}:{self.name}" if self.name else path
        what = self.what if path in self.what else f"{where}: {self.what}"
        return CorruptSample(self.reason, what)


class Header(tarfile.TarInfo):
    """A tar's header that does not let tarfile read an extended header of any size to memory."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> "Header":
        """A header from its 512 bytes."""
        header = super().frombuf(buf, encoding, errors)
        if header.type in EXTENDED and not 0 <= header.size <= MOST_EXTENDED:
            raise CorruptSample("shard", f"an extended header of {header.size:,} bytes")
        return header


@dataclass
class Contents:
    """What reading a shard from end to end found."""

    bytes: int
    header: dict = field(default_factory=dict)
    samples: dict[str, dict[str, Member]] = field(default_factory=dict)
    lost: list[LostPart] = field(default_factory=list)


def scan(shard: str, digests: bool = True) -> Contents:
    """Read a shard from end to end; without `digests`, only the tar's own headers."""
    contents = Contents(storage.size(shard))
    try:
        with storage.open_file(shard) as file:
            for member in plain_files(file, contents):
                _take(member, file, contents, digests)
    except (OSError, tarfile.TarError) as error:
        raise CorruptSample("shard", f"shard {shard}: cannot be read ({error})") from None
    empty = not contents.header and contents.bytes > tarfile.RECORDSIZE
    if not contents.samples and (contents.lost or empty):
        what = contents.lost[0].what if contents.lost else "nothing in it is a part of a sample"
        what = _other_kind(shard) or what
        raise CorruptSample("shard", f"shard {shard}: not a tar file with samples ({what})")
    return contents


def _other_kind(shard: str) -> str:
    """What a file is that is no tar, and the remedy, if it is a kind that is met with."""
    begin = storage.read(shard, 0, 24)
    return next((told for mark, told in OTHER_KINDS.items() if begin.startswith(mark)), "")


def plain_files(file: BinaryIO, contents: Contents, start: int = 0) -> Iterator[tarfile.TarInfo]:
    """The plain files of a tar up to the first that is damaged; what is not, to `contents.lost`.

    The tar may lie in another file: from `start` to `contents.bytes`.
    """
    at, end, why = start, contents.bytes, ""
    try:
        file.seek(start)
        with tarfile.TarFile(fileobj=file, mode="r", tarinfo=Header) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                if member.size < 0 or tar.offset <= at:
                    raise ValueError("a size that leads back")
                if member.offset_data + member.size > end:
                    contents.lost.append(_lost(member, "shard", "it is cut short"))
                    return
                if member.isreg() and not member.issparse():
                    yield member
                elif not member.isdir():
                    contents.lost.append(_lost(member, "member", "no plain file"))
                at = tar.offset
    except OSError:
        raise
    except CorruptSample as error:
        why = f" ({error})"
    except Exception:  # a header that cannot be read: tarfile raises many things
        pass
    if at + BLOCK > end:
        what = "the end mark is missing: it was cut short"
    elif _ends(file, at, end):
        return
    else:
        what = f"bytes {at} to {end} are lost: they begin with no header of a member{why}"
    contents.lost.append(LostPart("", "shard", what))


def _ends(file: BinaryIO, at: int, end: int) -> bool:
    """Whether a tar ends here: with a block of zeros, and no header of a member behind it."""
    file.seek(at)
    zeros = not any(file.read(BLOCK))
    while zeros and (read := file.read(min(BLOCK * 2048, end - file.tell()))):
        zeros = not any(read[n : n + 5] == b"ustar" for n in range(257, len(read), BLOCK))
    return zeros


def _take(member: tarfile.TarInfo, file: BinaryIO, contents: Contents, digests: bool) -> None:
    """Put a member where it belongs: into a sample, the header, or what is lost."""
    name = printable(member.name)
    file.seek(member.offset_data)
    if name == HEADER:
        header = _header(file.read(min(member.size, MOST_HEADER + 1)))
        contents.header = header or {}
        if header is None:
            contents.lost.append(_lost(member, "json", "the shard's header is not valid JSON"))
        return
    folder, slash, base = name.rpartition("/")
    key, dot, ext = base.partition(".")
    if not key or not dot or (key.startswith("__") and key.endswith("__")):
        return  # hidden, or no part of a sample
    found = contents.samples.get(folder + slash + key, {})
    if name.startswith("/") or ".." in re.split(r"[/\\]", member.name):
        why = "a name that leads out of the shard"
    elif len(name) > MOST_NAME:
        why = f"a name of more than {MOST_NAME:,} characters"
    elif ext.lower() in found:
        why = "the name is there twice"
    else:
        digest, left = hashlib.sha256(), member.size * digests
        while left > 0 and (data := file.read(min(left, 1 << 20))):
            digest.update(data)
            left -= len(data)
        found[ext.lower()] = Member(ext.lower(), member.offset_data, member.size, digest.digest())
        contents.samples[folder + slash + key] = found
        return
    contents.lost.append(_lost(member, "member", why))


def _header(data: bytes) -> dict[str, Any] | None:
    """A shard's header; None where it cannot be read."""
    try:
        found = json.loads(data) if len(data) <= MOST_HEADER else None
        json.dumps([[found]])  # it must fit into the index, too
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _lost(member: tarfile.TarInfo, reason: str, what: str) -> LostPart:
    return LostPart(printable(member.name[:MOST_TOLD]), reason, what)
