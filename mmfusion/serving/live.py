"""A call's partial answers as they come, for whoever shows them."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

Report = Callable[[Any], None]


def live(work: Callable[[Report, threading.Event], Any]) -> Iterator[tuple[bool, Any]]:
    """Run `work(report, left)` in a thread; yields (False, a report) and, last, (True, the answer).

    A reader that is slower than the reports gets the newest one. What `work` raises is raised here.
    `left` is set when the iterator is closed: nobody waits for the answer any more.
    """
    news: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    left = threading.Event()

    def run() -> None:
        try:
            news.put(("answer", work(lambda value: news.put(("partial", value)), left)))
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
