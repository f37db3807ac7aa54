"""Tar shards in the webdataset layout, read by position.

A sample is the members that share a key: `00012.json`, `00012.png`. Each shard has an index
(`x.tar.index.json`: offset, size and SHA-256 of each member), so any sample is one positioned read
away, in any order and from any worker, and a flipped bit is found out. Nothing in a shard is ever
run.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable
from glob import glob
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from webdataset import TarWriter

from mmfusion.errors import UserError

from .samples import Sample

Members = dict[str, Any]


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


def write_shard(path: Path, samples: Iterable[tuple[str, Members]]) -> Path:
    """Write one shard and its index; it appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(f"{path}.part")
    try:
        # A fixed time and owner: the same data gives the same bytes.
        with (
            part.open("wb") as file,
            TarWriter(file, "mmfusion", "mmfusion", encoder=False, mtime=0) as writer,
        ):
            for key, members in samples:
                writer.write({"__key__": key, **{e: _bytes(m) for e, m in members.items()}})
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _index_path(path).unlink(missing_ok=True)
    os.replace(part, path)
    index(path)
    return path


def _bytes(member: Any) -> bytes:
    if isinstance(member, bytes):
        return member
    return json.dumps(member, ensure_ascii=False).encode()


def _index_path(shard: Path) -> Path:
    return Path(f"{shard}.index.json")


def index(shard: Path) -> dict[str, dict[str, list]]:
    """{key: {extension: [offset, size, SHA-256]}} of a shard, read or made and saved.

    Raises:
        UserError: the shard is missing, cut short or not a tar file.
    """
    path = _index_path(shard)
    try:
        size = shard.stat().st_size
        if path.is_file():
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["bytes"] == size:
                return saved["samples"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no usable index: make it anew from the shard
    samples: dict[str, dict[str, list]] = {}
    try:
        with tarfile.open(shard, "r:") as tar, shard.open("rb") as raw:
            for member in tar:
                if not member.isfile():
                    continue
                raw.seek(member.offset_data)
                data = raw.read(member.size)
                if len(data) < member.size:
                    raise tarfile.ReadError(f"member {member.name} is cut short")
                head, _, base = member.name.rpartition("/")
                key, _, ext = base.partition(".")
                entry = [member.offset_data, member.size, hashlib.sha256(data).hexdigest()]
                samples.setdefault(f"{head}/{key}" if head else key, {})[ext.lower()] = entry
            raw.seek(-min(size, 1024), os.SEEK_END)
            if any(raw.read()):
                raise tarfile.ReadError("the end mark is missing: it was cut short")
    except FileNotFoundError:
        raise UserError(f"shard {shard}: no such file") from None
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"shard {shard}: not a whole tar file ({error}); make it anew") from None
    try:
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps({"bytes": size, "samples": samples}), encoding="utf-8")
        os.replace(part, path)
    except OSError:
        pass  # a read-only folder: the index is made anew next time
    return samples


class Shards:
    """All samples of some shards, in a fixed order, by number."""

    def __init__(self, pattern: str, remedy: str = "") -> None:
        """Open the shards that a glob names.

        Raises:
            UserError: no shard matches, a shard is broken, or they hold nothing.
        """
        self.paths = [Path(p) for p in sorted(glob(pattern))]
        if not self.paths:
            raise UserError(f"no shards match {pattern}{f'; {remedy}' if remedy else ''}")
        entries = [
            json.dumps([number, key, members]).encode()
            for number, path in enumerate(self.paths)
            for key, members in index(path).items()
        ]
        if not entries:
            raise UserError(f"the shards of {pattern} hold no samples")
        # One block of bytes, not millions of objects: forked workers share it.
        self._block = b"".join(entries)
        self._starts = np.cumsum([0, *map(len, entries)])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> Sample:
        """Sample `number`, each member checked against its SHA-256."""
        return self.sample(number)

    def place(self, number: int) -> tuple[Path, str]:
        """The shard and the key of a sample."""
        shard, key, _ = self._entry(number)
        return self.paths[shard], key

    def sample(self, number: int, only: tuple[str, ...] = ()) -> Sample:
        """Sample `number`, or only its members of some extensions, each checked.

        Raises:
            UserError: the shard is gone, or a member differs from the shard's index.
        """
        shard, key, members = self._entry(number)
        path = self.paths[shard]
        where = f"{path}:{key}"
        data = {}
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"shard {path}: cannot be read ({error.strerror})") from None
        try:
            for ext, (offset, size, digest) in members.items():
                if only and ext not in only:
                    continue
                data[ext] = os.pread(file, size, offset)
                if hashlib.sha256(data[ext]).hexdigest() != digest:
                    raise UserError(
                        f"{where}.{ext}: differs from the shard's index; the shard has changed or "
                        f"is damaged (delete {_index_path(path)} if it was changed on purpose)"
                    )
        finally:
            os.close(file)
        return Sample(data, where)

    def _entry(self, number: int) -> tuple[int, str, dict[str, list]]:
        return json.loads(self._block[self._starts[number] : self._starts[number + 1]])
