"""Where shards lie: on a disk, or anywhere that fsspec reaches (`s3://`, `gs://`, `https://`).

Only this file knows the difference. Nothing is ever run: `pipe:` names, which webdataset hands to a
shell, are refused.
"""

import glob
import hashlib
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from braceexpand import braceexpand

from mmfusion.errors import Damage, UserError, first_line


def is_remote(path: str) -> bool:
    """Whether it is a URL."""
    return "://" in path or "::" in path


def _filesystem(url: str) -> tuple[Any, str]:
    # Asked for anew each time: fsspec keeps one a process, and none survives a fork.
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url}: cannot be reached ({error})") from None


def expand(pattern: str) -> list[str]:
    """The files that a pattern names, sorted: globs, `{00..31}` braces, both, or one name.

    Raises:
        UserError: the pattern is a `pipe:`, cannot be parsed, or its storage does not answer.
    """
    if pattern.strip().startswith("pipe:"):
        raise UserError(f"{pattern}: commands are not run to read data; give files or a URL")
    try:
        parts = list(braceexpand(pattern))
    except ValueError as error:  # unbalanced
        raise UserError(f"{pattern}: {error}") from None
    found: set[str] = set()
    for part in parts:
        if not is_remote(part):
            found.update(glob.glob(part))
            continue
        filesystem, path = _filesystem(part)
        try:
            paths = filesystem.glob(path) if glob.has_magic(path) else [path]
        except Exception as error:  # each kind of storage has errors of its own
            raise UserError(f"{part}: cannot be listed ({first_line(error)})") from None
        found.update(filesystem.unstrip_protocol(p) for p in paths)
    return sorted(found)


def size(path: str) -> int:
    """Bytes of a file.

    Raises:
        Damage: it is not there, or no plain file.
    """
    try:
        if not is_remote(path):
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode):  # reading a pipe would not end
                raise OSError("no plain file")
            return found.st_size
        filesystem, inner = _filesystem(path)
        return int(filesystem.size(inner))
    except UserError:
        raise
    except Exception as error:
        raise Damage("shard", f"shard {path}: cannot be read ({first_line(error)})") from None


def read(path: str, start: int, end: int) -> bytes:
    """Bytes `start` to `end` of a file; fewer where it ends before.

    Raises:
        Damage: it cannot be read.
    """
    try:
        if is_remote(path):
            filesystem, inner = _filesystem(path)
            return filesystem.cat_file(inner, start=start, end=end)
        file = os.open(path, os.O_RDONLY)
        try:
            return os.pread(file, end - start, start)
        finally:
            os.close(file)
    except UserError:
        raise
    except Exception as error:
        raise Damage("shard", f"shard {path}: cannot be read ({first_line(error)})") from None


def advise(path: str, start: int, end: int) -> None:
    """Tell the system that these bytes of a local file will be wanted soon."""
    if hasattr(os, "posix_fadvise") and not is_remote(path):
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError:
            return  # whoever reads it says so
        try:
            os.posix_fadvise(file, start, end - start, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)


def open_file(path: str) -> BinaryIO:
    """A seekable file of bytes."""
    if not is_remote(path):
        return open(path, "rb")
    filesystem, inner = _filesystem(path)
    return filesystem.open(inner, "rb")


def companion(path: str, suffix: str) -> Path:
    """Where a file that goes with another one is kept: beside it, or in the cache if it is remote.

    The cache is `$MMFUSION_CACHE`, by default `~/.cache/mmfusion`.
    """
    if not is_remote(path):
        return Path(f"{path}{suffix}")
    cache = os.environ.get("MMFUSION_CACHE") or Path.home() / ".cache" / "mmfusion"
    return Path(cache) / f"{hashlib.sha256(path.encode()).hexdigest()}{suffix}"
