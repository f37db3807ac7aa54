"""The one exception that means "the user can mend this": shown as a line, never as a traceback."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

REASONS = (
    "shard",  # the file is missing, cut short or no tar
    "member",  # a part of it has changed, is there twice, or is no plain file
    "json",
    "label",
    "caption",
    "content",
    "picture",
    "latents",
    "length",  # no row holds it
)
MOST_SHOWN = 1000  # characters of a message about an item
MOST_OF_VALUE = 80
MOST_OF_ERROR = 400


def printable(text: str) -> str:
    """Text for one line of a terminal or log: control characters and the like are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def shown(value: Any) -> str:
    """A value for one line of a message, whatever it is."""
    try:
        return _cut(" ".join(repr(value).split()), MOST_OF_VALUE)
    except Exception:  # whole numbers of more than 4,300 digits, and others' classes
        return f"a {type(value).__name__}"


class UserError(Exception):
    """A mistake in a config, prompt, picture, shard, caption or checkpoint.

    The message names the file or key, what is wrong with it, and the remedy.
    The command line prints it and exits with code 2.
    """


class Elsewhere(UserError):
    """What ends this rank because it ends another, which says it; the command line is silent."""


class MemoryFull(UserError):
    """The memory of a GPU or of the machine is full; less may be asked of it, or later."""


class CorruptSample(UserError):
    """What is wrong with one item of a corpus: the item is left out, counted and listed.

    The message is one printable line of bounded length, whatever the item holds.

    Attributes:
        reason: one of `REASONS`.
    """

    def __init__(self, reason: str, message: str) -> None:
        if reason not in REASONS:
            raise ValueError(f"no reason {reason}")
        super().__init__(_cut(printable(message), MOST_SHOWN))
        self.reason = reason

    def at(self, where: str) -> "CorruptSample":
        """The same with the place, where the message does not begin with it."""
        if str(self).startswith(printable(where)):
            return self
        return CorruptSample(self.reason, f"{where}: {self}")

    def __reduce__(self) -> tuple:  # it comes back from workers
        return CorruptSample, (self.reason, str(self))


def first_line(error: Exception) -> str:
    """What an exception says, in one line of bounded length."""
    told = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return _cut(str(told).splitlines()[0], MOST_OF_ERROR)


@contextmanager
def user_error(what: str, *kinds: type[Exception]) -> Iterator[None]:
    """Errors of these kinds as a `UserError`: `what`, and what the error itself says."""
    try:
        yield
    except kinds as error:
        raise UserError(f"{what} ({first_line(error)})") from None


@contextmanager
def enough_memory(remedy: str) -> Iterator[None]:
    """One line where the memory of a GPU or of the machine is full; also a decorator."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        told = "allocate memory", "out of memory", "ALLOC_FAILED"
        torchs = type(error).__name__ == "OutOfMemoryError"  # torch is not loaded for its name
        full = torchs or any(words in str(error) for words in told)
        if not (full or isinstance(error, MemoryError)):
            raise
        raise MemoryFull(f"memory is full ({first_line(error)}); {remedy}") from None


@contextmanager
def resumable(kept: str) -> Iterator[None]:
    """Work of which something is `kept` when Ctrl-C ends it, which is said. Also a decorator."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"\n{kept} stay; the same command goes on", err=True)
        raise


def say(line: str, err: bool = False) -> None:
    """Print a line, if anybody is still there to read it and there is room for it."""
    try:
        print(line, file=sys.stderr if err else sys.stdout, flush=True)
    except OSError:  # what is left of it would be tried again at the end, and change the exit code
        nowhere = open(os.devnull, "w")  # noqa: SIM115
        if err:
            sys.stderr = nowhere
        else:
            sys.stdout = nowhere
