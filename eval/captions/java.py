"""Programs in Java: looked for before they are needed, held to a time limit, never left running.

What runs are the jars that pycocoevalcap brings. They are started here and not by its classes,
which write into their own package, read the machine's locale, and wait for ever for a program that
has died.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from threading import Event, Timer

from mmfusion.errors import UserError, printable

LEAST = 8
SETTINGS = ("-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US")
"""The same answers in every locale."""
LIMIT = 600.0
"""Seconds without an answer after which a program is stopped."""

Ask = Callable[..., list[str]]


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
    limit: float | None = None,
) -> bytes:
    """What the program writes when it is given some input.

    Raises:
        UserError: it failed, or took longer than `limit` seconds (default: `LIMIT`).
    """
    limit = limit or LIMIT
    try:
        done = subprocess.run(
            ["java", *SETTINGS, *arguments],
            input=given,
            cwd=folder,
            capture_output=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{what} gave no answer in {limit:g} s and was stopped") from None
    except OSError as error:
        raise UserError(f"{what}: Java does not start ({error.strerror})") from None
    if done.returncode:
        raise UserError(f"{what} failed{_last(done.stderr)}")
    return done.stdout


@contextmanager
def conversation(what: str, arguments: list[str], folder: Path) -> Iterator[Ask]:
    """A program that answers lines with lines: `ask(line, answers=1, about="")`.

    The program is gone when the context is left, however that happens. Asking raises a UserError
    when the program has ended, or does not answer within `LIMIT`.
    """
    with tempfile.TemporaryFile() as errors:  # a pipe that nobody reads would block it
        process = subprocess.Popen(
            ["java", *SETTINGS, *arguments],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        assert process.stdin
        assert process.stdout
        given, answered = process.stdin, process.stdout

        def ask(line: str, answers: int = 1, about: str = "") -> list[str]:
            late = Event()
            timer = Timer(LIMIT, _stop, (process, late))
            timer.daemon = True
            timer.start()
            lines = []
            try:
                with suppress(BrokenPipeError):
                    given.write(line.encode() + b"\n")
                    given.flush()
                    lines = [answered.readline() for _ in range(answers)]
            finally:
                timer.cancel()
            if late.is_set():
                raise UserError(f"{what} gave no answer in {LIMIT:g} s and was stopped{about}")
            if not lines or not all(text.endswith(b"\n") for text in lines):
                process.wait()
                errors.seek(0)
                raise UserError(f"{what} ended without an answer{about}{_last(errors.read())}")
            return [text.decode("utf-8", "replace").strip() for text in lines]

        try:
            yield ask
        finally:
            process.kill()
            process.wait()
            answered.close()
            with suppress(BrokenPipeError):
                given.close()


def _stop(process: subprocess.Popen, late: Event) -> None:
    late.set()
    process.kill()


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
