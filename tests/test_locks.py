"""A folder is one process's for as long as that lives."""

import errno
import fcntl
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmfusion import locks
from mmfusion.errors import UserError

HOLD = """if True:
    import sys, time
    from pathlib import Path
    from mmfusion import locks
    locks.keep(Path(sys.argv[1]), "works")
    print("has it", flush=True)
    time.sleep(100)
"""


def test_it_goes_with_its_process_however_that_ends(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout
    assert holder.stdout.readline() == "has it\n"
    (tmp_path / "link").symlink_to(folder)
    for name in (folder, tmp_path / "link", folder / ".." / "run"):
        with pytest.raises(UserError, match=f"{folder}: process {holder.pid} of .* works there"):
            locks.keep(name, "works")
    locks.keep(tmp_path / "new", "works")  # another folder
    holder.kill()
    holder.wait()
    locks.keep(folder, "works")
    locks.keep(folder, "works")  # ours already


def test_children_that_live_on_do_not_hold_it(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    reader, writer = fork.Pipe()

    def parent() -> None:
        locks.keep(tmp_path, "works")
        child = fork.Process(target=time.sleep, args=(100,))
        child.start()
        writer.send(child.pid)
        os._exit(0)

    process = fork.Process(target=parent)
    process.start()
    child = reader.recv()
    process.join()
    try:
        locks.keep(tmp_path, "works")
    finally:
        os.kill(child, 9)


def test_where_nothing_can_be_locked_it_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", no)
    locks.keep(tmp_path, "works")
    assert str(tmp_path) in caplog.text
