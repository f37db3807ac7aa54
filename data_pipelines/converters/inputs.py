"""What shards are made of, as one short value for their settings."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from mmfusion.errors import UserError

from .. import storage


def digest(files: Iterable[str | Path | None], listing: Iterable[bytes] = ()) -> str:
    """16 hex digits that change when a file's name, size or time, or what is listed, changes.

    Nothing is read of the files. Of a folder, all files in it count; of a URL, only its size.
    """
    told = hashlib.sha256()
    for given in files:
        for path in _files(str(given)) if given is not None else ("",):
            told.update(f"{path}\0{_state(path)}\0".encode("utf-8", "surrogateescape"))
    for entry in listing:
        told.update(b"%d\0%b" % (len(entry), entry))
    return told.hexdigest()[:16]


def _files(path: str) -> list[str]:
    if storage.is_remote(path) or not os.path.isdir(path):
        return [path]
    return sorted(
        os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names
    )


def _state(path: str) -> str:
    if not path:
        return ""
    if storage.is_remote(path):
        return str(storage.size(path))
    try:
        found = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return f"{found.st_size} {found.st_mtime_ns}"
