"""A call's partial answers as they come, for whoever shows them."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

Report = Callable[[Any], None]


class Left(Exception):
    """Nobody waits for the answer any more."""


def live(work: Callable[[Report], Any]) -> Iterator[tuple[bool, Any]]:
    """Run `work(report)` in a thread; yields (False, a report) and, last, (True, the answer).

    A reader that is slower than the reports gets the newest one. What `work` raises is raised here.
    Closing the iterator makes the next report raise `Left` inside of `work`, which so ends early.
    """
    news: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    left = threading.Event()

    def report(value: Any) -> None:
        if left.is_set():
            raise Left
        news.put(("partial", value))

    def run() -> None:
        try:
            news.put(("answer", work(report)))
        except Exception as error:  # it is raised where somebody reads it
            news.put(("error", error))

    threading.Thread(target=run, daemon=True).start()
    try:
        kind = "partial"
        while kind == "partial":
            kind, value = news.get()
            while kind == "partial" and not news.empty():
                kind, value = news.get()
            if kind == "error":
                raise value
            yield kind == "answer", value
    finally:
        left.set()
