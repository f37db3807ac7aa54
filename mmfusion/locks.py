"""A folder that one process alone may write to, for as long as it lives."""

import fcntl
import logging
import os
import socket
from pathlib import Path

from mmfusion.errors import UserError

log = logging.getLogger("mmfusion")
LOCK = ".lock"
_kept: dict[Path, int] = {}


def keep(folder: Path, what: str) -> None:
    """Keep a folder, made if missing, until this process ends, however it ends.

    The lock is the process's, not its children's: a data worker that outlives it holds nothing.
    The lock's file stays: who removes it would let two processes lock two files of one name.

    Args:
        what: is done there, for the message.

    Raises:
        UserError: another process keeps it.
    """
    folder = folder.resolve()
    if folder in _kept:
        return
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
        os.truncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} of {socket.gethostname()}\n".encode(), 0)
    _kept[folder] = file  # closed, the lock would go
