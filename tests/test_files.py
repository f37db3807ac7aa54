"""The user's cache folder, and files that are whole or absent."""

from pathlib import Path

import pytest

from mmfusion.files import cache_folder, write


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MMFUSION_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("MMFUSION_CACHE", "")
    assert cache_folder() == tmp_path / "xdg/mmfusion"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache/mmfusion"


def test_a_file_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new/folder/file"
    write(path, b"old")

    def full(part: Path, data: bytes) -> int:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="no space left"):
            write(path, b"new")
    assert path.read_bytes() == b"old"
    write(path, b"new")
    assert [(p.name, p.read_bytes()) for p in path.parent.iterdir()] == [("file", b"new")]
