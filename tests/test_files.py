"""Files that are whole or absent, what is ours to remove, and locks."""

import errno
import fcntl
import io
import multiprocessing
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from material import limited
from PIL import Image as PILImage
from safetensors.torch import save_file

from mmfusion import files, locks
from mmfusion.errors import UserError, say
from mmfusion.files import write, writing
from mmfusion.locks import locked

fork = multiprocessing.get_context("fork")


def test_a_file_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new/folder/file"
    write(path, b"old")

    def full(part: Path, data: bytes) -> int:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match=r"new/folder/file: .*no space left"):
            write(path, b"new")
    assert path.read_bytes() == b"old"
    write(path, b"new")
    assert [(p.name, p.read_bytes()) for p in path.parent.iterdir()] == [("file", b"new")]


def test_of_many_that_create_a_file_the_first_one_does(tmp_path: Path) -> None:
    assert files.create(tmp_path / "file", b"first")
    assert not files.create(tmp_path / "file", b"second")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"first")]


def savez(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, rows=np.zeros(9000))


def lines(path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"line {number}\n" for number in range(9000))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "bytes": lambda path: path.write_bytes(bytes(9000)),
    "lines": lines,
    "npz": savez,
    "picture": lambda p: PILImage.effect_noise((200, 200), 60).save(p, "png"),
    "safetensors": lambda path: save_file({"weight": torch.zeros(9000)}, path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_no_room_is_one_line_and_the_old_file_stays(tmp_path: Path, name: str) -> None:
    path = tmp_path / "kept.file"
    path.write_bytes(b"old")
    with (
        limited(resource.RLIMIT_FSIZE, 4000),
        pytest.raises(UserError, match=r"kept\.file.*make room"),
        writing(path) as p,
    ):
        WRITERS[name](p)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("kept.file", b"old")]


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    for error in (ValueError("(os error 2)"), OSError(2, "none", "given.txt"), KeyError("x")):
        with pytest.raises(type(error)), writing(tmp_path / "a"):
            raise error
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "x"):
        with pytest.raises(UserError, match=place.name):
            write(place, b"")


def test_a_link_stays_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far/real")
    for data in (b"made through a link to nowhere", b"and replaced"):
        write(tmp_path / "link", data)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "far/real").read_bytes() == data
    os.mkfifo(tmp_path / "pipe")
    heard: list[bytes] = []
    reader = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_bytes()))
    reader.daemon = True
    reader.start()
    write(tmp_path / "pipe", b"into a pipe")
    reader.join(10)
    assert heard == [b"into a pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_only_exactly_our_leftovers_are_removed(tmp_path: Path) -> None:
    host = socket.gethostname()
    ours = [f".a[1].tar.{host}-17.part", f".a[1].tar.{host}-17-140.part"]
    others = [
        f".a[1].tar.{host}-notes.part", f".a[1].tar.{host}-17.part.bak", f".a1.tar.{host}-17.part",
        f".a[1].tar.{host}x-17.part", f"a[1].tar.{host}-17.part", f".a[1].tar.index.{host}-1.part",
        f".a[1].tar.{host}-1-2-3.part", ".a[1].tar.part",
    ]  # fmt: skip
    for name in ours + others:
        (tmp_path / name).touch()
    files.remove_leftovers(tmp_path / "a[1].tar")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(others)


def test_a_folder_behind_a_link_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a").touch()
    (tmp_path / "link").symlink_to("real")
    files.remove_folder(tmp_path / "link")
    files.remove_folder(tmp_path / "absent")
    assert (tmp_path / "link/a").exists()


# Locks


def hold(path: Path, held: Any, release: Any) -> None:
    with locked(path, wait=True) as mine:
        assert mine
        held.set()
        assert release.wait(60)


def test_of_three_processes_one_holds_a_lock(tmp_path: Path) -> None:
    """One holds and one waits; as the second gets it, a third one must not get it, too."""
    path, events = tmp_path / "a.tar", [fork.Event() for _ in range(4)]
    first = fork.Process(target=hold, args=(path, events[0], events[1]))
    first.start()
    assert events[0].wait(60)
    second = fork.Process(target=hold, args=(path, events[2], events[3]))
    second.start()
    while not waits(second):
        assert second.is_alive()
    events[1].set()
    assert events[2].wait(60)
    first.join()
    with locked(path, wait=False) as third:
        assert third is False
    events[3].set()
    second.join()
    with locked(path, wait=False) as third:
        assert third
    assert not list(tmp_path.iterdir())  # nothing is left


def waits(process: Any) -> bool:
    """Whether a process waits for a lock: the system lists who does behind an arrow."""
    table = Path("/proc/locks").read_text("ascii").splitlines()
    return any("->" in line and f" {process.pid} " in line for line in table)


# A folder is one process's for as long as that lives

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
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/\.lock: cannot be written .*another place"):
        locks.keep(tmp_path / "file", "works")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_line_that_nobody_reads_ends_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, name, Gone())
    say("a line", err=name == "stderr")
    with getattr(sys, name) as instead:  # or the exit code would be that of the last flush
        assert instead.name == os.devnull
