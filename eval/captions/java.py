"""Programs in Java: looked for before they are needed, held to a time limit, never left running.

What runs are the jars that pycocoevalcap brings. They are started here and not by its classes,
which write into their own package, read the machine's locale, and wait for ever for a program that
has died.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from mmfusion.errors import UserError, printable

LEAST = 8
SETTINGS = ("-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US")
"""The same answers in every locale."""
LIMIT = 600.0
"""Seconds after which a program is stopped."""
A_PICTURE = 2.0
"""Seconds more for each picture to score."""


def package(part: str) -> Path:
    """The folder of a part of pycocoevalcap, with its jars."""
    import pycocoevalcap

    return Path(pycocoevalcap.__path__[0]) / part


def lacking(*files: Path) -> str | None:
    """What is missing to run a program of these files, for a message; None when all is there."""
    path = shutil.which("java")
    if path is None:
        return f"Java {LEAST} or later, which was not found"
    found = _version(path)
    if found < LEAST:
        return f"Java {LEAST} or later; {path} " + (f"is Java {found}" if found else "does not run")
    missing = [file for file in files if not file.is_file()]
    if missing:
        return f"{' and '.join(file.name for file in missing)} in {missing[0].parent}"
    return None


def run(
    what: str,
    arguments: list[str],
    given: bytes = b"",
    folder: Path | None = None,
    names: Sequence[str] = (),
) -> bytes:
    """What the program writes when it is given some input.

    Args:
        what: the program, for messages.
        arguments: after `java`.
        given: its input.
        folder: where it runs.
        names: of pictures to score. Input is answered by a line for each, and a message names the
            picture that has none.

    Raises:
        UserError: it failed, did not answer for each picture, or took longer than `LIMIT` seconds
            and `A_PICTURE` for each.
    """
    limit, code, written = LIMIT + A_PICTURE * len(names), None, b""
    try:
        done = subprocess.run(
            ["java", *SETTINGS, *arguments],
            input=given,
            cwd=folder,
            capture_output=True,
            timeout=limit,
        )
        code, written, why = done.returncode, done.stdout, f"failed{_last(done.stderr)}"
    except subprocess.TimeoutExpired as error:
        written, why = error.stdout or b"", f"gave no answer in {limit:g} s and was stopped"
    except OSError as error:
        why = f"Java does not start ({error.strerror})"
    lines = written.count(b"\n")
    short = bool(given) and lines < len(names)
    if code == 0 and not short:
        return written
    raise UserError(
        f"{what} {why}" + (f", at picture {names[lines]}; leave it out" if short else "")
    )


@lru_cache
def _version(path: str) -> int:
    """Java's number, such as 8 or 17; 0 if it does not run."""
    try:
        done = subprocess.run([path, "-version"], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    said = re.search(rb'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    return int(said.group(1)) if said and done.returncode == 0 else 0


def _last(said: bytes) -> str:
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return f": {printable(lines[-1])[:300]}" if lines else ""
