"""One name for each module, in a checkout, an editable install, an sdist and a wheel, all of it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
FOLDERS = {  # folder of the checkout: its place in the wheel
    "mmfusion": "mmfusion",
    "data_pipelines": "mmfusion/data_pipelines",
    "eval": "mmfusion/eval",
    "configs": "mmfusion/configs",
}
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]

IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys
import mmfusion
root = pathlib.Path(sys.argv[1]).resolve()
names = [m.name for m in pkgutil.walk_packages(mmfusion.__path__, "mmfusion.")]
for name in names:
    if not name.endswith("__main__"):
        module = importlib.import_module(name)
        file = pathlib.Path(module.__file__).resolve()
        assert root in file.parents, f"{name} comes from {file}"
        assert sys.modules[name] is module and module.__name__ == name
for name in ("mmfusion.eval", "mmfusion.data_pipelines"):
    assert name in names, f"no {name}"
from mmfusion.config import find
assert root in find("digits").resolve().parents, find("digits")
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of a copy, where no older build's files are lying about, and of the copy's sdist."""
    source = tmp_path_factory.mktemp("source")
    for folder in FOLDERS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / folder, source / folder, ignore=ignore, symlinks=True)
    for file in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(CHECKOUT / file, source)
    make = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    _run([sys.executable, "-c", make], cwd=source)
    (sdist,) = (source / "dist").glob("*.tar.gz")
    made = []
    for name, what in (("straight", source), ("sdist", sdist)):
        out = tmp_path_factory.mktemp(name)
        options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out)]
        _run([*PIP, "wheel", *options, str(what)], cwd=out)
        made += out.glob("*.whl")
    return made


def test_wheels_hold_the_checkout(wheels: list[Path]) -> None:
    expected = {
        f"{place}/{file.relative_to(CHECKOUT / folder).as_posix()}"
        for folder, place in FOLDERS.items()
        for file in (CHECKOUT / folder).rglob("[!.]*")
        if file.is_file() and file.suffix != ".pyc"
    }
    assert len(wheels) == 2
    for wheel in wheels:
        names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        assert expected - names == set(), "missing: see packages and package-data"
        assert names - expected == set()


def test_wheel_imports_outside_the_checkout(wheels: list[Path], tmp_path: Path) -> None:
    """Every module, with the wheel before an editable install and no checkout on the path."""
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = ["--no-deps", "--no-index", "--no-compile", "--target", str(target)]
    _run([*PIP, "install", *options, str(wheels[-1])], cwd=elsewhere)
    assert (target / "bin" / "mmfusion").exists() or os.name == "nt"
    _run([sys.executable, "-c", IMPORT_ALL, str(target)], cwd=elsewhere, PYTHONPATH=str(target))


def test_a_checkout_is_importable_as_it_is() -> None:
    _run([sys.executable, "-S", "-c", LOOK, sysconfig.get_path("purelib")], cwd=CHECKOUT)


def test_an_editable_install_works_from_the_folder_above_the_clone(tmp_path: Path) -> None:
    """There the clone's own folder, `mmfusion`, is a namespace of that name."""
    clone, site = tmp_path / "mmfusion", tmp_path / "site"
    clone.mkdir()
    for name in (*FOLDERS, "pyproject.toml", "LICENSE", "README.md"):
        (clone / name).symlink_to(CHECKOUT / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    _run([*PIP, "install", *options, "--editable", str(clone)], cwd=tmp_path)
    start = f"import site; site.addsitedir({str(site)!r})\n"
    _run([sys.executable, "-S", "-c", start + LOOK, sysconfig.get_path("purelib")], cwd=tmp_path)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_only_what_needs_them_installs_the_tools_of_development(tmp_path: Path) -> None:
    told = {
        goal: subprocess.run(
            ["make", "-n", goal, f"VENV={tmp_path}/none"],
            cwd=CHECKOUT, capture_output=True, text=True, check=True,
        ).stdout
        for goal in ("demo", "emoji", "test", "check")
    }  # fmt: skip
    assert all("pip install" in lines for lines in told.values())
    assert {goal for goal, lines in told.items() if ".[dev]" in lines} == {"test", "check"}
    assert {goal for goal, lines in told.items() if ".[emoji]" in lines} == {"emoji"}


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_emoji_sets_are_fetched_by_npm_or_asked_for_in_one_line(tmp_path: Path) -> None:
    file = f"{tmp_path}/iconify-json-fluent-emoji-flat-1.2.6.tgz"
    for npm, told, code in (
        ("echo", "pack --silent @iconify-json/fluent-emoji-flat@1.2.6", 0),
        ("no-such-npm", "fluent-emoji-flat-1.2.6.tgz: no npm to fetch it with; put it into", 2),
    ):
        command = ["make", file, f"SETS={tmp_path}", f"NPM={npm}"]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
        assert told in done.stdout + done.stderr
        assert done.returncode == code


# Without site, so that no other install of the project is seen; what it needs is appended.
LOOK = """
import sys; sys.path.append(sys.argv[1])
import mmfusion, mmfusion.eval, mmfusion.data_pipelines, mmfusion.configs
assert mmfusion.Pipeline.__module__ == "mmfusion.pipeline"
from mmfusion.config import find
assert find("digits").is_file() and find("eval/coco").is_file()
"""


def _run(command: list[str], cwd: Path, **environment: str) -> None:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
