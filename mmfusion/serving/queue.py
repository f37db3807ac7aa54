"""The requests that a server has accepted: threads that work on them, and who waits for them."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mmfusion.errors import MemoryFull, UserError, first_line, printable
from mmfusion.pipeline import Pipeline
from mmfusion.serving.engine import Cancelled, Engine, Stopped
from mmfusion.serving.refusal import Refusal
from mmfusion.serving.schemas import Limits

log = logging.getLogger("mmfusion.serving")
Emit = Callable[[Any], None]
Work = Callable[[Pipeline, Emit], Any]


class Queue:
    """Requests at work and waiting, no more than the limits say.

    Attributes:
        accepted: how many there are.
    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine, self.limits, self.accepted = engine, limits, 0
        self.threads = ThreadPoolExecutor(limits.concurrency, "request")

    async def answer(
        self, work: Work, gone: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[tuple[bool, Any]]:
        """What work emits, each as (False, it), and what it returns as (True, it).

        `gone` returns when the client has left. The work is cancelled then, at the end of its time,
        and when this iterator is closed.
        """
        limits = self.limits
        if self.accepted >= limits.concurrency + limits.queue:
            raise Refusal(429, "the server is busy; ask again in a moment")
        self.accepted += 1
        loop, cancel = asyncio.get_running_loop(), threading.Event()
        told: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

        def tell(kind: str, what: Any) -> None:
            loop.call_soon_threadsafe(told.put_nowait, (kind, what))

        job = loop.run_in_executor(self.threads, self._do, work, tell, cancel)
        job.add_done_callback(self._done)
        watch = asyncio.ensure_future(gone())
        watch.add_done_callback(lambda _: cancel.set())
        until = loop.time() + limits.seconds
        try:
            while True:
                kind, what = await asyncio.wait_for(told.get(), until - loop.time())
                if kind == "failed":
                    raise what
                yield kind == "made", what
                if kind == "made":
                    return
        except (TimeoutError, asyncio.TimeoutError):
            took = f"not done within {limits.seconds:g} s; ask for less"
            raise Refusal(504, took) from None
        finally:
            cancel.set()
            watch.cancel()

    def _done(self, job: asyncio.Future) -> None:
        self.accepted -= 1
        job.cancelled() or job.exception()

    def _do(self, work: Work, tell: Callable[[str, Any], None], cancel: threading.Event) -> None:
        """The work, in a thread: what comes of it is told."""
        try:
            if cancel.is_set():
                raise Cancelled("cancelled")
            with self.engine.request(cancel) as pipeline:
                tell("made", work(pipeline, lambda what: tell("emitted", what)))
        except Cancelled:
            gone = cancel.is_set()  # else the engine has given up, being told to stop
            tell("failed", Refusal(499 if gone else 503, "cancelled"))
        except Stopped as error:
            tell("failed", Refusal(503, str(error)))
        except MemoryFull:
            tell("failed", Refusal(503, "memory is full; ask later, or for less"))
        except Refusal as error:
            tell("failed", error)
        except UserError as error:
            tell("failed", Refusal(400, str(error)))
        except Exception as error:
            log.error("%s: %s", type(error).__name__, printable(first_line(error))[:500])
            tell("failed", Refusal(500, "the server failed at this request"))
