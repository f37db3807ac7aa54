"""SHA-256 manifests: a folder is whole when every file is as its manifest says.

safetensors finds a malformed header but not a flipped bit; a manifest finds both. It is no
defence against a folder that somebody made on purpose: for that, nothing here unpickles.
"""

import hashlib
import json
import os
from pathlib import Path

from mmfusion.errors import UserError

MANIFEST = "manifest.json"


def sha256(path: Path) -> str:
    """The file's digest."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Make a written file or folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def seal(folder: Path) -> None:
    """Write the manifest of all files in `folder`, and make it all durable."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != MANIFEST]
    made = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    for path in files:
        sync(path)
    (folder / MANIFEST).write_text(json.dumps(made, indent=1), encoding="utf-8")
    sync(folder / MANIFEST)
    sync(folder)


def digests(folder: Path, what: str) -> dict[str, str]:
    """The manifest of a folder: each file's digest.

    Raises:
        UserError: there is none, named with `what` the folder is.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not found:
            raise ValueError
    except (OSError, ValueError):
        raise UserError(f"{what} {folder}: has no readable {MANIFEST}; it is not whole") from None
    return found


def verify(folder: Path, what: str, edited: str | None = None) -> None:
    """Check a folder against its manifest; the file `edited` may differ.

    Raises:
        UserError: a file is missing or differs, named with `what` the folder is.
    """
    for name, digest in digests(folder, what).items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{what} {folder}: {name} is missing; get it anew")
        if name != edited and sha256(path) != digest:
            raise UserError(f"{what} {folder}: {name} is cut short or damaged; get it anew")
