"""Tar shards in the webdataset layout, read by position.

A sample is the members that share a key: `00012.json`, `00012.png`. Its JSON may hold `label`,
`captions` and, for interleaved samples, `content`. Each shard has an index (`x.tar.index.json`:
offset, size and SHA-256 of each member), so any sample is one positioned read away, in any order
and from any worker, and a flipped bit is found out. Nothing in a shard is ever run.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable
from glob import glob
from pathlib import Path
from typing import Any

from PIL import Image as Picture
from webdataset import TarWriter

from mmfusion.errors import UserError

PICTURES = ("png", "jpg", "jpeg", "webp")


class Sample(dict[str, bytes]):
    """Members of one sample by extension, with the place it came from for error messages."""

    def __init__(self, members: dict[str, bytes], where: str) -> None:
        super().__init__(members)
        self.where = where

    def json(self) -> dict[str, Any]:
        """The sample's facts; empty without a JSON member."""
        try:
            facts = json.loads(self.get("json", b"{}"))
        except ValueError as error:
            raise UserError(f"{self.where}.json: not valid JSON ({error})") from None
        if not isinstance(facts, dict):
            raise UserError(f"{self.where}.json: expected an object of facts")
        return facts

    def picture(self, name: str | None = None) -> Picture.Image:
        """The picture under an extension such as `png` or `0.png`; default: the sample's own."""
        name = name or next((e for e in PICTURES if e in self), "png")
        if name not in self:
            raise UserError(f"{self.where}: no picture {name} in this sample")
        return open_picture(self[name], f"{self.where}.{name}")


def open_picture(data: bytes, where: str) -> Picture.Image:
    """Decode a picture.

    Raises:
        UserError: it is not a picture, is cut short, or is unreasonably large.
    """
    try:
        picture = Picture.open(io.BytesIO(data))
        picture.load()
    except (OSError, SyntaxError, ValueError, Picture.DecompressionBombError) as error:
        raise UserError(f"{where}: not a readable picture ({error})") from None
    return picture


def write_shards(
    folder: Path, name: str, samples: Iterable[tuple[str, dict[str, Any]]], per_shard: int = 2000
) -> list[Path]:
    """Write samples (key, {extension: bytes or JSON data}) as `name-00000.tar`, ... with indexes.

    Each file appears under its name only when it is complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    writer = None
    for number, (key, members) in enumerate(samples):
        if number % per_shard == 0:
            _finish(writer, paths)
            paths.append(folder / f"{name}-{len(paths):05d}.tar")
            # A fixed time and owner: the same data gives the same bytes.
            writer = TarWriter(f"{paths[-1]}.part", mtime=0, user="mmfusion", group="mmfusion")
        assert writer is not None
        as_bytes = {
            ext: data if isinstance(data, bytes) else json.dumps(data, ensure_ascii=False).encode()
            for ext, data in members.items()
        }
        writer.write({"__key__": key, **as_bytes})
    _finish(writer, paths)
    return paths


def _finish(writer: Any, paths: list[Path]) -> None:
    if writer is not None:
        writer.close()
        os.replace(f"{paths[-1]}.part", paths[-1])
        _index_path(paths[-1]).unlink(missing_ok=True)
        index(paths[-1])


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
            if saved.get("bytes") == size:
                return saved["samples"]
    except (OSError, ValueError):
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
        self._entries: list[tuple[int, str, dict[str, list]]] = []
        for number, path in enumerate(self.paths):
            self._entries += [(number, key, members) for key, members in index(path).items()]
        if not self._entries:
            raise UserError(f"the shards of {pattern} hold no samples")
        self._files: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, number: int) -> Sample:
        """Sample `number`, each member checked against its SHA-256."""
        shard, key, members = self._entries[number]
        where = f"{self.paths[shard]}:{key}"
        data = {}
        for ext, (offset, size, digest) in members.items():
            data[ext] = os.pread(self._file(shard), size, offset)
            if hashlib.sha256(data[ext]).hexdigest() != digest:
                raise UserError(
                    f"{where}.{ext}: differs from the shard's index: changed or damaged "
                    f"(delete {_index_path(self.paths[shard])} if it was changed on purpose)"
                )
        return Sample(data, where)

    def _file(self, shard: int) -> int:
        # Keyed by process: a forked worker opens its own.
        name = (os.getpid(), shard)
        if name not in self._files:
            self._files[name] = os.open(self.paths[shard], os.O_RDONLY)
        return self._files[name]
