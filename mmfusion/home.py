"""The user's home and cache, also for a user who has none."""

import errno
import getpass
import logging
import os
import stat
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from mmfusion.errors import UserError, first_line

log = logging.getLogger("mmfusion")


def cache_folder() -> Path:
    """What can be had again: `$MMFUSION_CACHE`, `$XDG_CACHE_HOME/mmfusion`, `~/.cache/mmfusion`.

    The first whose variable is set; it need not exist yet. Where one may not write there, it
    is a folder of the user's own below the temporary one.
    """
    own, shared = os.environ.get("MMFUSION_CACHE"), os.environ.get("XDG_CACHE_HOME")
    folder = Path(own) if own else Path(shared or os.path.expanduser("~/.cache")) / "mmfusion"
    if (folder.parts[0] != "~" and _may_write(folder)) or os.path.isfile(folder):  # told when used
        return folder
    _warn(f"{folder}: cannot be written; the cache is in {_temporary()}")
    return _temporary()


_warn = lru_cache(log.warning)  # once of each


def _may_write(folder: Path) -> bool:
    """Whether one may write into a folder, or make it."""
    # os.path: a `Path` raises where one may not even look, as of another user's home.
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


def _temporary() -> Path:
    """A folder of this user alone below the temporary one."""
    try:
        path = Path(tempfile.gettempdir()) / f"mmfusion-{os.getuid()}"
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
            raise PermissionError(errno.EPERM, "it is somebody else's", str(path))
    except OSError as error:
        where, why = error.filename or "the temporary folder", first_line(error)
        raise UserError(f"{where}: cannot be used ({why}); set MMFUSION_CACHE") from None
    return path


def find_home() -> None:
    """Give a user who has none a home and a name, as in a container that runs under a number.

    Libraries ask for them when they are imported, and stop, or write to a folder named `~`. A home
    that can be read alone may hold what they look for; one that is closed, or is not there and
    cannot be made, is none.
    """
    home = Path(os.path.expanduser("~"))
    opened = os.access(home, os.X_OK) if os.path.isdir(home) else _may_write(home)
    if not (home.is_absolute() and opened):
        with suppress(UserError):
            os.environ["HOME"] = str(_temporary())
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())
