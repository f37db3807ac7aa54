"""Where shards lie: on a disk, or anywhere that fsspec reaches (`s3://`, `gs://`, `https://`).

Only this file knows the difference. What cannot be read is a CorruptSample; what cannot be looked
up, or a process that may open no more files, is a UserError. Nothing is ever run: `pipe:` names,
which webdataset hands to a shell, are refused.
"""

import difflib
import errno
import glob
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from braceexpand import braceexpand

from mmfusion.errors import CorruptSample, UserError, first_line, printable, user_error
from mmfusion.home import cache_folder

LOST = "lost"  # the folder of what was left out
SHORTAGE = errno.EMFILE, errno.ENFILE, errno.ENOMEM
BESIDE = (".index", ".settings.json", ".part", ".lock")  # endings of what stands beside shards
MOST_NAMED = 5  # files that a message names
PAUSES = (1.0, 4.0, 16.0)  # seconds between attempts to read from afar


def is_remote(path: str) -> bool:
    """Whether it is a URL, and not a name of what is there."""
    marked = "://" in path or "::" in path
    return marked and any(mark in _there(path)[1] for mark in ("://", "::"))


def _filesystem(url: str) -> tuple[Any, str]:
    # Asked for anew each time: fsspec keeps one a process, and none survives a fork.
    import fsspec

    with user_error(f"{url}: cannot be reached", ImportError, ValueError):
        return fsspec.core.url_to_fs(url)


def expand(pattern: str, beside: bool = False) -> list[str]:
    """The files that a pattern names: globs, `{00..31}` braces, both, or one name.

    What is there is meant by its name, whatever characters that has: a file, and the folders in
    which a pattern begins. `**` is any number of folders. Numbers in names are in the order of
    their values: `a-2` before `a-10`. What stands `beside` shards is passed over, if not asked for.
    """
    if pattern.strip().startswith("pipe:"):
        raise UserError(f"{pattern}: commands are not run to read data; give files or a URL")
    pattern = pattern.removeprefix("file://")
    folder, rest = _there(pattern)
    try:
        parts = [folder + part for part in braceexpand(rest)]
    except ValueError as error:  # unbalanced
        raise UserError(f"{pattern}: {error}") from None
    found = {part: _remote(part) if is_remote(part) else _local(part, beside) for part in parts}
    gaps = [part for part in parts if not found[part]]
    if 0 < len(gaps) < len(parts):
        raise UserError(f"{pattern}: nothing matches {gaps[0]} ({len(gaps)} of {len(parts)} parts)")
    return sorted({path for paths in found.values() for path in paths}, key=_natural)


def _local(pattern: str, beside: bool) -> list[str]:
    folder, rest = _there(pattern)
    if not rest:
        return [folder]
    found = glob.iglob(glob.escape(folder) + rest, recursive=True)
    return [path for path in found if beside or _is_shard(path)]


def _remote(url: str) -> list[str]:
    filesystem, path = _filesystem(url)
    with user_error(f"{url}: cannot be listed", Exception):  # each kind of storage has its own
        named = not glob.has_magic(path) or filesystem.exists(path)
        paths = [path] if named else filesystem.glob(path)
    caches = "".join(f"{name}::" for name in url.split("::")[:-1])
    return [caches + filesystem.unstrip_protocol(path) for path in paths]


def shard_paths(pattern: str, remedy: str = "") -> list[str]:
    """The shards that a pattern names; `remedy` is told where there are none."""
    found = expand(pattern)
    if not found:
        message = [pattern, remedy, beside(pattern)]
        raise UserError(f"no shards match {'; '.join(filter(None, message))}")
    if os.path.isdir(pattern):
        raise UserError(f"{pattern}: is a folder; give its shards, {pattern.rstrip('/')}/*.tar")
    return found


def _there(pattern: str) -> tuple[str, str]:
    """A pattern as the longest beginning that is there, up to a slash or as a whole, and the rest.

    Of a URL, nothing is looked up.
    """
    if os.path.exists(pattern):
        return pattern, ""
    end = len(pattern)
    while (end := pattern.rfind("/", 0, end)) >= 0:
        if os.path.isdir(pattern[: end + 1]):
            break
    return pattern[: end + 1], pattern[end + 1 :]


def _is_shard(path: str) -> bool:
    return not path.endswith(BESIDE) and path.rpartition("/")[2] != LOST


def _natural(path: str) -> tuple[list[str | int], str]:
    """A key by which numbers in names are compared as numbers."""
    parts = re.split("([0-9]+)", path)
    return [int(part) if n % 2 else part for n, part in enumerate(parts)], path


def beside(pattern: str, alike: bool = False) -> str:
    """For a message on a pattern that nothing matches: what lies where it was looked for.

    With `alike` nothing is said unless something there has nearly that name.
    """
    if is_remote(pattern):
        return ""
    folder, rest = _there(pattern)
    try:
        names = [name for name in os.listdir(folder or ".") if not name.startswith(".")]
    except OSError:
        return ""
    sought = rest.partition("/")[0]
    near = difflib.get_close_matches(sought, names, MOST_NAMED)
    if alike and not near:
        return ""
    near = near or sorted(names, key=_natural)
    shown = ", ".join(printable(name) for name in near[:MOST_NAMED]) or "nothing"
    shown += ", ..." if len(names) > MOST_NAMED else ""
    return f"{os.path.abspath(folder)} has {shown}"


def refuse_shortage(error: Exception) -> None:
    """Stop where it is this process that lacks something, and not the data that are damaged."""
    if isinstance(error, OSError) and error.errno in SHORTAGE:
        raise UserError(
            f"{first_line(error)}: raise the limit (ulimit -n), or lower data.workers"
        ) from None


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Each kind of storage has errors of its own: all of them mean that a shard is damaged."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        refuse_shortage(error)
        what = f"shard {path}: cannot be read ({first_line(error)})"
        raise CorruptSample("shard", what) from None


def size(path: str) -> int:
    """Bytes of a file."""
    with _readable(path):
        if not is_remote(path):
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode):  # reading a pipe would not end
                raise OSError("no plain file")
            return found.st_size
        filesystem, inner = _filesystem(path)
        return int(filesystem.size(inner))


def read(path: str, start: int, end: int) -> bytes:
    """Bytes `start` to `end` of a file; fewer where it ends before."""
    with _readable(path):
        if is_remote(path):
            return _read_remote(path, start, end)
        with open(path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), end - start, start)


def _read_remote(url: str, start: int, end: int) -> bytes:
    """Networks have hiccups; a sample is not to be lost for one."""
    filesystem, inner = _filesystem(url)
    for pause in PAUSES:
        try:
            return filesystem.cat_file(inner, start=start, end=end)
        except (FileNotFoundError, PermissionError):
            raise
        except Exception:
            time.sleep(pause)
    return filesystem.cat_file(inner, start=start, end=end)


def open_file(path: str) -> BinaryIO:
    """A seekable file of bytes."""
    if not is_remote(path):
        return open(path, "rb")
    filesystem, inner = _filesystem(path)
    return filesystem.open(inner, "rb")


def companions(path: str, suffix: str) -> list[Path]:
    """Where a file that goes with another one may be kept: beside it, or else in the cache.

    The user's cache serves what is remote, and folders in which one may not write.
    """
    whole = path if is_remote(path) else os.path.abspath(path)
    name = f"{hashlib.sha256(os.fsencode(whole)).hexdigest()}{suffix}"
    if is_remote(path):
        return [cache_folder() / name]
    beside = Path(f"{path}{suffix}")
    try:
        return [beside, cache_folder() / name]
    except UserError:  # no folder at all may be written but that one
        return [beside]
