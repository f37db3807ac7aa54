"""Programs in Java: looked for before they are needed, held to a time limit, never left running.

What runs are the jars that pycocoevalcap brings. They are started here and not by its classes,
which write into their own package, read the machine's locale, and wait for ever for a program that
has died.
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pycocoevalcap

from mmfusion.errors import UserError, printable

SETTINGS = ("-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US")
"""The same answers in every locale."""
LIMIT = 600.0  # seconds after which a program is stopped
A_LINE = 2.0  # seconds more for each line that it is given
JARS = Path(pycocoevalcap.__path__[0])


def lacking() -> str:
    """What is missing to run a program, for a message."""
    return "" if shutil.which("java") else "Java 8 or later, which was not found"


def run(
    what: str,
    arguments: list[str],
    given: Sequence[str],
    names: Sequence[str] = (),
    folder: Path | None = None,
) -> list[str]:
    """The lines that a program writes: one for each line that it is given, or more.

    Args:
        what: the program, for messages.
        arguments: after `java`.
        names: of the given lines, for messages.
        folder: where it runs.
    """
    limit = LIMIT + A_LINE * len(given)
    try:
        done = subprocess.run(
            ["java", *SETTINGS, *arguments], input="".join(f"{line}\n" for line in given).encode(),
            cwd=folder, capture_output=True, timeout=limit,
        )  # fmt: skip
        answer, code = done.stdout, done.returncode
        last = ["", *done.stderr.decode("utf-8", "replace").strip().splitlines()][-1]
        why = f"failed: {printable(last)[:300]}"
    except subprocess.TimeoutExpired as error:
        answer, code, why = error.stdout or b"", 1, f"gave no answer in {limit:g} s and was stopped"
    *lines, _ = answer.decode("utf-8", "replace").split("\n")  # no line ends within a caption
    if code == 0 and len(lines) >= len(given):
        return lines
    at = f", at {names[len(lines)]}; leave it out" if len(lines) < len(names) else ""
    raise UserError(f"{what} {why}{at}")
