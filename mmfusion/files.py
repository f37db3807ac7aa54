"""Files that are whole or absent, and where those lie that can be had again."""

import os
import socket
from pathlib import Path


def cache_folder() -> Path:
    """What can be had again: `$MMFUSION_CACHE`, `$XDG_CACHE_HOME/mmfusion`, `~/.cache/mmfusion`.

    The first whose variable is set; it need not exist yet.
    """
    own, shared = os.environ.get("MMFUSION_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(shared or Path.home() / ".cache") / "mmfusion"


def write(path: Path, data: bytes) -> None:
    """Write a file that appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
