"""Locks that go with their process, however that ends: of a file, or of a run's folder."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmfusion.errors import UserError
from mmfusion.files import remove, writable

log = logging.getLogger("mmfusion")
LOCK = ".lock"
_kept: dict[Path, int] = {}


def keep(folder: Path, what: str) -> None:
    """Keep a folder, made if missing, until this process ends; `what` it does, for the message.

    The lock is the process's, not its children's: a data worker that outlives it holds nothing.
    The lock's file stays: who removes it would let two processes lock two files of one name.
    """
    folder = folder.resolve()
    if folder in _kept:
        return
    with writable(folder / LOCK):
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = os.read(file, 200).decode("utf-8", "replace").strip() or "another process"
        os.close(file)
        raise UserError(
            f"{folder}: {holder} {what} there; wait for its end, or give another folder"
        ) from None
    except OSError as error:
        log.warning(
            "%s: cannot be locked (%s); see to it that nothing else %s there",
            folder, error.strerror, what,
        )  # fmt: skip
    else:
        if os.pread(file, 8, 0) in (b"", b"process "):  # or it is another program's
            os.truncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} of {socket.gethostname()}\n".encode(), 0)
    _kept[folder] = file  # closed, the lock would go


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool | None]:
    """Whether this process holds the lock of a file; None where the file system has no locks.

    The lock goes with its process, however that ends. Its file is removed by who holds it; who
    waited for one that is no longer there tries again, or it would hold beside who made the next.
    """
    name = path.with_name(f".{path.name}.lock")
    held: bool | None = None
    while held is None:
        try:
            name.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(name, os.O_CREAT | os.O_RDWR, 0o644)
        except OSError:
            yield None
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = _is(name, file) or None
        except BlockingIOError:
            held = False
        except OSError:
            break
        finally:
            if held is None:
                os.close(file)
    try:
        yield held
    finally:
        if held and not os.fstat(file).st_size:  # ours hold nothing
            remove(name)
        if held is not None:
            os.close(file)


def _is(name: Path, file: int) -> bool:
    """Whether an open file is the one of that name."""
    try:
        return os.path.samestat(os.stat(name), os.fstat(file))
    except FileNotFoundError:
        return False
