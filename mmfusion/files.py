"""The one place that replaces, renames or removes files and folders.

A file appears under its name only when it is whole. What is removed is what we wrote: a name that
the caller has made, a leftover whose name is exactly one of ours, what a manifest lists.
"""

import errno
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmfusion.errors import UserError, first_line

FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
PART = ".mmfusion.part"  # in a folder: what is about to be put there


# No room


def no_room(error: BaseException | None) -> str | None:
    """What the system said, where an error comes of a full disk, a quota or a limit on files.

    safetensors raises errors of its own that quote the system's number; others chain them.
    """
    while error is not None:
        quoted = re.search(r"\(os error (\d+)\)", str(error))
        number = getattr(error, "errno", None) or (int(quoted[1]) if quoted else 0)
        if number in FULL:
            return os.strerror(number)
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def room(path: Path, remedy: str = "") -> Iterator[None]:
    """While `path` is written: where there is no room, one line, whatever library writes."""
    try:
        yield
    except Exception as error:
        why = None if isinstance(error, UserError) else no_room(error)
        if why is None:
            raise
        told = remedy or "make room and start again"
        raise UserError(f"{path}: cannot be written ({why}); {told}") from None


@contextmanager
def writable(path: Path, remedy: str = "") -> Iterator[None]:
    """While nothing but `path` is written: one line for whatever the system refuses."""
    try:
        with room(path, remedy):
            yield
    except OSError as error:
        told = remedy or "give another place"
        raise UserError(f"{path}: cannot be written ({first_line(error)}); {told}") from None


# Files


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name beside `path`, this thread's own; what is left under it at the end is removed."""
    process = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    part = path.with_name(f".{path.name}.{process}.part")
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    try:
        yield part
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A file to be written, which then takes the place of `path`; after an error, none is left.

    A link stays: what it points to is replaced. A pipe or a device is written to itself.
    """
    with room(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            yield path
            return
        real = Path(os.path.realpath(path))
        with _beside(real) as part:
            yield part
            with writable(path):
                os.replace(part, real)


def write(path: Path, data: bytes, remedy: str = "") -> None:
    """Write a file that appears under its name only when it is complete.

    `remedy` ends the message, where there is a better one than another place or more room.
    """
    with writing(path) as part, writable(path, remedy):
        part.write_bytes(data)


def create(path: Path, data: bytes) -> bool:
    """As `write`, where there is no file yet: whether of many processes this one was the first."""
    with _beside(path) as part, writable(path):
        part.write_bytes(data)
        try:
            os.link(part, path)  # fails where another process was faster
        except OSError:
            if os.path.lexists(path):
                return False
            os.replace(part, path)  # a file system without links
        return True


def check_free(path: Path, ours: bool = False) -> None:
    """Make sure that a file whose name the user did not give may be written: it is not theirs."""
    if os.path.lexists(path) and not ours:
        raise UserError(
            f"{path}: is there and not of this program; move it away, or give another output"
        )


def append(path: Path, text: str) -> None:
    """Add text to a file's end."""
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)


def remove(path: Path) -> None:
    """Remove a file of ours, if it is there."""
    path.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes of this host have left of a file; hold its lock meanwhile.

    Where locks hold on one host alone, another host may be at work on the same file: that is twice
    the work, but nothing is taken from it.
    """
    name, host = re.escape(path.name), re.escape(socket.gethostname())
    ours = re.compile(rf"\.{name}\.{host}-\d+(-\d+)?\.part")
    for left in path.parent.iterdir():
        if ours.fullmatch(left.name):
            remove(left)


# Folders


def move(path: Path, place: Path) -> None:
    """Put a file in the place of another, or a folder where there is none or an empty one.

    A file that is not there has been moved before.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        os.replace(path, place)


def remove_folder(folder: Path) -> None:
    """Remove a folder of ours with all that is in it, if it is there; a link is not followed."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)


def remove_empty(folder: Path) -> None:
    """Remove a folder that holds nothing."""
    with suppress(OSError):  # it holds something
        folder.rmdir()


def is_free(folder: Path) -> bool:
    """Whether a folder is absent or empty, but for what a killed process has begun there."""
    return not os.path.lexists(folder) or (folder.is_dir() and {*os.listdir(folder)} <= {PART})


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """An empty folder inside of `folder`, to write into; after an error all is as before."""
    there, part = folder.exists(), folder / PART
    with writable(folder):
        remove_folder(part)
        part.mkdir(parents=True)
    try:
        with room(folder):
            yield part
    except BaseException:
        remove_folder(part)
        if not there:
            remove_empty(folder)
        raise
