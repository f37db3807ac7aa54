"""The user's home and cache folder."""

import getpass
import os
import pwd
import tempfile
from pathlib import Path
from typing import Any

import pytest

from mmfusion.errors import UserError
from mmfusion.home import cache_folder, find_home


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MMFUSION_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("MMFUSION_CACHE", "")
    assert cache_folder() == tmp_path / "xdg/mmfusion"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache/mmfusion"


def as_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable says where home is or who the user is, and the system does not know the user."""
    names = "HOME LOGNAME USER LNAME USERNAME MMFUSION_CACHE XDG_CACHE_HOME"
    for name in names.split():
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_who_has_no_home_gets_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    as_nobody(monkeypatch, tmp_path)
    own = tmp_path / f"mmfusion-{os.getuid()}"
    assert cache_folder() == own
    assert own.stat().st_mode & 0o777 == 0o700
    find_home()
    assert (Path.home(), getpass.getuser()) == (own, str(os.getuid()))
    assert cache_folder() == own / ".cache/mmfusion"


@pytest.mark.parametrize("variable", ["HOME", "MMFUSION_CACHE", "XDG_CACHE_HOME"])
def test_a_cache_where_one_may_not_write(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, variable: str
) -> None:
    as_nobody(monkeypatch, tmp_path)
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: "closed" not in str(path))
    monkeypatch.setenv(variable, str(tmp_path / "closed/folder"))
    assert cache_folder() == cache_folder() == tmp_path / f"mmfusion-{os.getuid()}"
    assert caplog.text.count("cannot be written") == 1


def test_a_home_into_which_one_may_not_even_look(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As /root, which an image sets for whatever user it is started as, and /dev/null."""
    as_nobody(monkeypatch, tmp_path)
    look = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        if "closed/" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path, **options)

    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(os, "access", lambda path, mode: "closed" not in str(path))
    for home in (str(tmp_path / "closed"), "/dev/null"):
        monkeypatch.setenv("HOME", home)
        own = tmp_path / f"mmfusion-{os.getuid()}"
        assert cache_folder() == own
        find_home()  # for libraries
        assert Path.home() == own


def test_a_folder_of_somebody_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    as_nobody(monkeypatch, tmp_path)
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"mmfusion-{os.getuid()}").symlink_to(tmp_path / "theirs")
    monkeypatch.setenv("MMFUSION_CACHE", str(tmp_path / "closed"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="MMFUSION_CACHE"):
        cache_folder()
