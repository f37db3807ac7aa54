"""How a run ends on all of its ranks alike: an error of one of them, or a signal to any.

A rank that ends by itself leaves the others waiting in a collective for as long as the backend
has patience. So what can fail on one rank is done `together`, and a signal is only noted: ranks
look at it between two steps, in numbers that they exchange there anyway.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from torch import distributed

from mmfusion.errors import Elsewhere, UserError, first_line
from mmfusion.launcher import endings

ECHO = 1.0
"""Seconds in which a signal is one with the last: launchers repeat what a terminal sends to all."""


@contextmanager
def together() -> Iterator[None]:
    """A part that all ranks go through; nobody leaves it before everybody has done it.

    Raises:
        Elsewhere: it failed on another rank, which raises what it failed with.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    everyone: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, failure and first_line(failure))
    first = next((rank for rank, said in enumerate(everyone) if said is not None), None)
    if first is None:
        return
    if failure is not None and first == distributed.get_rank():
        raise failure
    raise Elsewhere(f"rank {first}: {everyone[first]}") from failure


@contextmanager
def in_contact() -> Iterator[None]:
    """One line where a collective fails because another rank has ended without a word."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        told = first_line(error)
        raise UserError(f"another rank has ended or is gone; see what it says ({told})") from None


def tell(line: str) -> None:
    """Write a line to stderr, if anybody is still there to read it; also inside of a print."""
    with suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="backslashreplace"))


class Stop:
    """SIGINT, SIGTERM and SIGHUP, noted while a run goes on: it ends after the step it is at.

    A second signal, unless it is the launcher's repetition of the first, ends the process at once.
    """

    def __init__(self, said: bool) -> None:
        """`said`: whether this rank tells that it was heard."""
        self.signal, self._said, self._heard, self._process = 0, said, 0.0, os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            self._before = {n: signal.signal(n, self._note) for n in endings()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if os.getpid() != self._process:
            return  # a data worker, which its parent ends
        if not self.signal:
            self.signal, self._heard = number, now
            name = signal.Signals(number).name
            self._tell(f"{name}: saves after this step (again: ends at once)")
        elif now - self._heard > ECHO:
            self._tell("stopped at once; the next start goes on from the newest checkpoint")
            os._exit(128 + number)

    def _tell(self, line: str) -> None:
        if self._said:
            tell(f"\n{line}")

    def agreed(self) -> int:
        """The signal that ends the run, the same on all ranks: the highest of theirs; or 0."""
        everyone: list[Any] = [0] * distributed.get_world_size()
        distributed.all_gather_object(everyone, self.signal)
        return max(everyone)
