"""Tar shards in the webdataset layout: written whole, read by position.

A sample is the members that share a key: `00012.json`, `00012.png`. Each shard has an index
(data_pipelines/index.py), so any member is one positioned read away, in any order and from any
worker, and a flipped bit is found out. Nothing in a shard is ever run.
"""

import hashlib
import io
import json
import tarfile
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from webdataset import TarWriter

from mmfusion import files
from mmfusion.errors import CorruptSample, UserError

from . import storage
from .index import SUFFIX, Index, may_replace, open_index
from .samples import Sample
from .tar_index import HEADER, LostPart, Member

Members = dict[str, Any]
MOST_OPEN = 64  # indexes held at a time
MOST_BYTES = 1 << 28  # of a member that is read into memory
MOST_BLOCK = 1 << 23  # bytes of neighbours that are read at once; each row slot holds some
SLACK = 1 << 16  # bytes a sample that are read along rather than apart


def write_shards(
    folder: Path, name: str, samples: Iterable[tuple[str, Members]], per_shard: int = 2000
) -> list[Path]:
    """Write samples (key, {extension: bytes or JSON data}) as `name-00000.tar`, ... with indexes.

    Each file appears under its name only when it is complete.
    """
    paths: list[Path] = []
    rest = iter(samples)
    for first in rest:
        path = folder / f"{name}-{len(paths):05d}.tar"
        paths.append(write_shard(path, chain([first], islice(rest, per_shard - 1))))
    return paths


def write_shard(
    path: Path, samples: Iterable[tuple[str, Members]], header: dict[str, Any] | None = None
) -> Path:
    """Write one shard, `x.tar`, and its index; it appears under its name only when it is complete.

    `header` is facts about all of the shard, kept in a member that other tools pass over.
    """
    with files.writing(path) as part:
        # A fixed time and owner: the same data gives the same bytes.
        with (
            part.open("wb") as file,
            TarWriter(file, "mmfusion", "mmfusion", encoder=False, mtime=0) as writer,
        ):
            if header is not None:  # not through `write`, which would give it a key
                data = _bytes(header)
                info = tarfile.TarInfo(HEADER)
                info.size, info.mode = len(data), 0o444
                writer.tarstream.addfile(info, io.BytesIO(data))
            for key, members in samples:
                writer.write({"__key__": key, **{e: _bytes(m) for e, m in members.items()}})
        for index in filter(may_replace, storage.companions(str(path), SUFFIX)):
            files.remove(index)
    open_index(str(path))
    return path


def _bytes(member: Any) -> bytes:
    if isinstance(member, bytes):
        return member
    return json.dumps(member, ensure_ascii=False).encode("utf-8", "replace")


class Shards:
    """All samples of some shards, in a fixed order, by number."""

    def __init__(self, pattern: str | list[str], remedy: str = "") -> None:
        """Open the shards that a pattern names (globs, braces or URLs), or those of a list.

        A shard of which nothing can be read is passed over; `lost` says so.
        """
        self.pattern = pattern if isinstance(pattern, str) else "".join(pattern[:1])
        self.lost: list[tuple[str, LostPart]] = []
        """What cannot be used, with the shard's path."""
        found = storage.shard_paths(pattern, remedy) if isinstance(pattern, str) else pattern
        indexes: list[Index] = []
        for path in tqdm(found, f"opening {self.pattern}", leave=False, delay=2):
            try:
                indexes.append(open_index(path))
            except CorruptSample as error:
                self.lost.append((path, LostPart("", error.reason, str(error))))
        headed = [index for index in indexes if index.header][:1]
        self.header: dict[str, Any] = headed[0].header if headed else {}
        """Of the shards, where they have one; that of the first."""
        for index in list(indexes):
            self.lost += [(index.shard, lost) for lost in index.lost]
            if index.header == self.header:
                continue
            if index.header or not index.lost:
                raise UserError(
                    f"{self.pattern}: {index.shard} and {headed[0].shard} were made with different "
                    "settings; keep one kind in a folder"
                )
            gone = LostPart("", "shard", "its header is lost; make it anew")
            self.lost.append((index.shard, gone))
            indexes.remove(index)
        self.paths = [index.shard for index in indexes]
        digests = [(index.shard.rpartition("/")[2], index.digest) for index in indexes]
        self.digest = hashlib.sha256(repr(digests).encode()).hexdigest()
        """Of the shards' names and contents."""
        self.sizes = np.array([len(index) for index in indexes], np.int64)
        """Samples of each shard."""
        if not self.sizes.sum():
            why = f" ({self.lost[0][1].what})" if self.lost else ""
            raise UserError(f"the shards of {self.pattern} hold no samples{why}")
        self._ends = np.cumsum(self.sizes)
        self._open: OrderedDict[int, Index] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> Sample:
        """Sample `number`, each member checked against its SHA-256.

        CorruptSample: the shard is gone, or a member is very large or not that of the index.
        """
        return self.sample(number)

    def __iter__(self) -> Iterator[Sample]:
        return map(self.sample, range(len(self)))

    def locate(self, number: int) -> tuple[int, int]:
        """The shard of a sample, and its number in there."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        shard = int(np.searchsorted(self._ends, number, "right"))
        return shard, number - int(self._ends[shard] - self.sizes[shard])

    def number(self, shard: int, inner: int) -> int:
        """The inverse of `locate`."""
        return int(self._ends[shard] - self.sizes[shard]) + inner

    def place(self, number: int) -> tuple[str, str]:
        """The path of the shard and the key of a sample."""
        shard, inner = self.locate(number)
        return self.paths[shard], self._index(shard).sample(inner)[0]

    def extensions(self, number: int) -> list[str]:
        """Which members a sample has; nothing of the shard is read."""
        shard, inner = self.locate(number)
        return [member.ext for member in self._index(shard).sample(inner)[1]]

    def tally(self) -> dict[str, tuple[int, int]]:
        """How many members there are of each extension, and their bytes; no shard is read."""
        total: dict[str, tuple[int, int]] = {}
        for shard in range(len(self.paths)):
            for ext, (count, size) in self._index(shard).tally().items():
                before = total.get(ext, (0, 0))
                total[ext] = before[0] + count, before[1] + size
        return total

    def sample(self, number: int, only: Container[str] | None = None) -> Sample:
        """Sample `number`, or only its members of some extensions, each checked."""
        return self.read(*self.locate(number), only)

    def read(
        self,
        shard: int,
        inner: int,
        only: Container[str] | None = None,
        block: "Block | None" = None,
    ) -> Sample:
        """A sample by shard and number in there; out of `block` if that is at hand."""
        path = self.paths[shard]
        at_hand = block.entries[inner - block.first] if block else None
        key, members = at_hand or self._index(shard).sample(inner)
        data = {}
        for member in members:
            if only is not None and member.ext not in only:
                continue
            where = f"{path}:{key}.{member.ext}"
            if member.size > MOST_BYTES:
                what = f"{member.size:,} bytes are more than {MOST_BYTES:,}"
                raise CorruptSample("member", f"{where}: {what}")
            data[member.ext] = _fetch(path, member, block)
            if hashlib.sha256(data[member.ext]).digest() != member.digest:
                raise CorruptSample(
                    "member",
                    f"{where}: differs from the shard's index; the shard has changed or is damaged "
                    "(if on purpose, make its index anew: `mmfusion data verify --reindex`)",
                )
        return Sample(data, f"{path}:{key}", key, [member.ext for member in members])

    def block(self, shard: int, first: int, end: int) -> "Block":
        """Samples `first` to `end` of a shard, to be read soon."""
        return Block(self._index(shard), first, end)

    def _index(self, shard: int) -> Index:
        found = self._open.get(shard)
        if found is None:
            found = open_index(self.paths[shard], whole=True)
            if len(found) != self.sizes[shard]:
                what = f"shard {self.paths[shard]}: has changed while it was read"
                raise CorruptSample("shard", what)
            self._open[shard] = found
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        return found


class Block:
    """Neighbouring samples of a shard: read at once where they lie together and are not large."""

    def __init__(self, index: Index, first: int, end: int) -> None:
        self.start, stop, size = index.span(first, end)
        self.first, self.entries = first, [index.sample(number) for number in range(first, end)]
        together = stop - self.start <= min(MOST_BLOCK, 2 * size + SLACK * (end - first))
        self.data = storage.read(index.shard, self.start, stop) if together else b""


def _fetch(path: str, member: Member, block: Block | None) -> bytes:
    if block and block.data:
        start = member.offset - block.start
        return block.data[start : start + member.size]
    return storage.read(path, member.offset, member.offset + member.size)
