"""SHA-256 manifests: a folder is whole when every file is as its manifest says.

safetensors finds a malformed header but not a flipped bit; a manifest finds both. It is no
defence against a folder that somebody made on purpose: for that, nothing here unpickles.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path, PurePosixPath
from typing import TypeVar

from mmfusion import files, locks
from mmfusion.errors import UserError, user_error

T = TypeVar("T")
MANIFEST = "manifest.json"
PATIENCE, PAUSE = 20, 0.25  # tries and seconds between them, while a folder is replaced


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


def secure(path: Path) -> str:
    """Make a written file durable; its digest."""
    sync(path)
    return sha256(path)


def seal(folder: Path, sealed: dict[str, str] | None = None) -> None:
    """Write the manifest of all files in `folder`, and make it all durable.

    `sealed`: digests of files there that are `secure` already.
    """
    made = dict(sealed or {})
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST and name not in made:
            made[name] = secure(path)
    (folder / MANIFEST).write_text(json.dumps(made, indent=1), encoding="utf-8")
    for path in (folder / MANIFEST, folder):
        sync(path)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def listed(folder: Path) -> dict[str, str]:
    """The manifest of a folder: each file's digest; nothing where it has none that can be read.

    A manifest may come from anywhere: one that names files outside of its folder is none.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    sound = isinstance(found, dict) and all(
        isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) and _inside(name)
        for name, digest in found.items()
    )
    return found if sound else {}


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    plain = path.as_posix() == name and "\0" not in name and name not in (".", MANIFEST)
    return plain and not path.is_absolute() and ".." not in path.parts


def digests(folder: Path, what: str) -> dict[str, str]:
    """The manifest of a folder: each file's digest."""
    if found := listed(folder):
        return found
    raise UserError(f"{what} {folder}: has no readable {MANIFEST}; it is not whole")


def edited(folder: Path, name: str) -> bool:
    """Whether a user has written or changed a file: it is there, not as the manifest says."""
    path = folder / name
    return os.path.lexists(path) and not (
        path.is_file() and sha256(path) == listed(folder).get(name)
    )


def verify(folder: Path, what: str, free: Collection[str] = ()) -> None:
    """Check a folder against its manifest; the files `free` may be edited or gone."""
    _heal(folder)
    for name, digest in digests(folder, what).items():
        path = folder / name
        if name in free:
            continue
        if not path.is_file():
            raise UserError(f"{what} {folder}: {name} is missing; get it anew")
        if sha256(path) != digest:
            raise UserError(f"{what} {folder}: {name} is cut short or damaged; get it anew")


def _above(folder: Path, name: str) -> list[Path]:
    return [folder / parent for parent in PurePosixPath(name).parents if parent.name]


def _linked(folder: Path, name: str) -> bool:
    return any(parent.is_symlink() for parent in _above(folder, name))


# Folders that are replaced: file by file, the folder is not renamed. So it may be a link, a disk or
# where the user stands, and what the user has put into it is never touched. The new files are made
# in `files.PART`; once that is sealed, `finish` moves them. It goes on where a killed process
# stopped, and whoever writes or reads there next calls it: nobody finds the folder absent, or half
# of it of another model.


def check(folder: Path, what: str, mark: str) -> None:
    """Make sure that files may be put into a folder: it is absent, empty, or one of ours.

    If it is ours it is a `what`, holds the file `mark`, and its manifest lists that. What a killed
    process has left there is finished.
    """
    _heal(folder)
    real = Path(os.path.realpath(folder))
    with user_error(f"{folder}: cannot be read", OSError):
        if files.is_free(real) or _is_ours(real, mark):
            return
    raise UserError(f"{folder}: is there and is no {what}; give another folder")


def _is_ours(folder: Path, mark: str) -> bool:
    """Whether the manifest is of what lies there: it says so of a file beside `mark`, if any is."""
    found = listed(folder)
    if mark not in found or not (folder / mark).is_file():
        return False
    others = [name for name in found if name != mark and (folder / name).is_file()]
    others.sort(key=lambda name: (folder / name).stat().st_size)
    return not others or any(found[name] == sha256(folder / name) for name in others)


@contextmanager
def replacing(folder: Path, what: str, mark: str) -> Iterator[Path]:
    """An empty folder to write into, whose files then take the place of those that are ours.

    Ours is what the manifest lists; what else lies in `folder` stays. After an error, all is as
    before. `mark` must be among the files that are written.
    """
    check(folder, what, mark)
    real = Path(os.path.realpath(folder))
    with locks.locked(real, wait=True), files.room(folder):
        finish(real)  # of another process that was killed meanwhile
        check(folder, what, mark)
        with files.staging(real) as part:
            yield part
            _check_free(real, part)
            seal(part)
        finish(real)


def _check_free(folder: Path, part: Path) -> None:
    """Make sure that nothing of the user's stands where a new file is to go."""
    old = listed(folder)
    for path in _files(part):
        name = path.relative_to(part).as_posix()
        above = _above(folder, name)
        wrong = [p for p in above if p.is_symlink() or (p.exists() and not p.is_dir())]
        if (name not in old and os.path.lexists(folder / name)) or (folder / name).is_dir():
            wrong.append(folder / name)
        if wrong:
            raise UserError(f"{wrong[0]}: is in the way, and not ours; move it away")


def finish(folder: Path) -> None:
    """Put the sealed files of a folder's `files.PART` in their places; the manifest last."""
    part = folder / files.PART
    new = listed(part)
    # We make no links in there: with one, somebody else has made it, and it leads elsewhere.
    if not new or part.is_symlink() or any(_linked(f, n) for f in (folder, part) for n in new):
        return
    for name in new:
        files.move(part / name, folder / name)
    for name, digest in listed(folder).items():
        path = folder / name
        if name in new or _linked(folder, name) or not path.is_file() or sha256(path) != digest:
            continue
        files.remove(path)
        for parent in _above(folder, name):
            files.remove_empty(parent)
    files.move(part / MANIFEST, folder / MANIFEST)
    sync(folder)
    files.remove_folder(part)


def _heal(folder: Path) -> None:
    """Finish what a killed process has left; while one that lives is at it, leave it alone."""
    if (folder / files.PART / MANIFEST).is_file():
        real = Path(os.path.realpath(folder))
        with suppress(OSError), locks.locked(real, wait=False) as held:  # one may not write there
            if held is not False:
                finish(real)


def settled(load: Callable[[Path], T]) -> Callable[[Path], T]:
    """`load`, again if the folder was replaced while it was read, so that it is of one model."""

    def state(folder: Path) -> tuple[bool, dict[str, str]]:
        return (folder / files.PART / MANIFEST).is_file(), listed(folder)

    @wraps(load)
    def again(folder: Path) -> T:
        for _ in range(PATIENCE):
            before = state(folder)
            try:
                found = load(folder)
                if state(folder) == before:
                    return found
            except (UserError, OSError):
                if state(folder) == before and not before[0]:
                    raise
            time.sleep(PAUSE)
        raise UserError(f"{folder}: is being replaced, or that was stopped; export the model again")

    return again
