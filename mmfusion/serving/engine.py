"""One decoder for the calls of many threads, whose passes it joins."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from mmfusion.cache import Pool
from mmfusion.errors import UserError
from mmfusion.generation.answers import Answers
from mmfusion.generation.stepper import Guest, Output, Passes, Stepper
from mmfusion.pipeline import Pipeline

T = TypeVar("T")


class Cancelled(UserError):
    """A call whose answer nobody waits for any more."""


class Stopped(UserError):
    """A call that came after the engine was told to stop."""


class Engine:
    """A thread that steps for all who ask, from any thread, through an ordinary `Pipeline`.

    Calls that run at once share decoder passes, whatever they ask for; their answers are those that
    each would get alone. Callbacks are made in the thread that called, and errors are raised there.

        with Engine(Pipeline.from_pretrained("digits")) as engine:
            engine.pipeline.text_to_image("a three")

    Attributes:
        pipeline: the pipeline given, its passes shared.
        stepper: which makes the passes, and counts them.
        pool: where the caches of all lie.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._own, self.stepper = pipeline, Stepper(pipeline.decoder, torch.get_num_threads())
        weight = pipeline.decoder.latent_in.weight
        self.pool = Pool(pipeline.decoder.config, weight.device, weight.dtype)
        self.pipeline = self._shared(_Desk(self, self._accepted))
        self._changed = threading.Condition()
        self._arrivals: list[_Caller] = []
        self._open, self._stopping, self._ended = 0, False, False
        self.given_up = threading.Event()
        self.speaking: _Caller | None = None
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether it steps, or would."""
        return self._thread.is_alive()

    @contextmanager
    def request(self, cancel: threading.Event | None = None) -> Iterator[Pipeline]:
        """A pipeline for one request, which is accepted as a whole.

        Once `cancel` is set its calls end with `Cancelled`, between two passes.
        """
        with self._accepted():
            yield self._shared(_Desk(self, nullcontext, cancel))

    def stop(self, seconds: float | None = None) -> None:
        """Refuse what is new and finish what was accepted; cancel what takes longer than so."""
        with self._changed:
            self._stopping = True
            if not self._changed.wait_for(lambda: not self._open, seconds):
                self.given_up.set()
                self._changed.wait_for(lambda: not self._open, seconds)
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def submit(self, caller: "_Caller") -> None:
        """Have a caller's passes among the others from the next turn on."""
        with self._changed:
            if self._ended:
                raise Stopped("the engine has stopped")
            self._arrivals.append(caller)
            self._changed.notify_all()

    @contextmanager
    def _accepted(self) -> Iterator[None]:
        with self._changed:
            if self._stopping:
                raise Stopped("the engine is stopping; ask again when it is back")
            self._open += 1
        try:
            yield
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def _shared(self, desk: "_Desk") -> Pipeline:
        pipeline = copy(self._own)
        pipeline.answers = Answers(pipeline.decoder, pipeline.read, desk)
        return pipeline

    def _wanted(self) -> bool:
        return bool(self._arrivals or self.stepper.guests or self._ended)

    def _work(self) -> None:
        while not self._ended:
            with self._changed:
                self._changed.wait_for(self._wanted)
                arrivals, self._arrivals = self._arrivals, []
            for caller in arrivals:
                self.stepper.join(caller)
            self.stepper.turn()


class _Caller(Guest[T]):
    """A guest whose result another thread waits for, and makes its calls meanwhile."""

    def __init__(self, engine: Engine, passes: Passes[T], cancel: threading.Event) -> None:
        super().__init__(passes)
        self.engine, self.cancel, self.gone = engine, cancel, False
        self.mail: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def go(self, output: Output | None) -> None:
        if self.gone or self.cancel.is_set() or self.engine.given_up.is_set():
            self.leave(Cancelled("cancelled"))
            return
        self.engine.speaking = self
        super().go(output)
        if self.pending is None:
            self.mail.put(None)

    def leave(self, error: Exception) -> None:
        super().leave(error)
        self.mail.put(None)

    def wait(self) -> T:
        """What its passes come to."""
        try:
            while call := self.mail.get():
                call()
        finally:
            self.gone = True
        return self.result()


class _Desk:
    """Gives passes to the engine: a `Runner`."""

    def __init__(
        self,
        engine: Engine,
        accepted: Callable[[], AbstractContextManager],
        cancel: threading.Event | None = None,
    ) -> None:
        self.engine, self.pool = engine, engine.pool
        self.accepted, self.cancel = accepted, cancel or threading.Event()

    def run(self, passes: Passes[T]) -> T:
        with self.accepted():
            caller = _Caller(self.engine, passes, self.cancel)
            self.engine.submit(caller)
            return caller.wait()

    def tell(self, call: Callable[[], None]) -> None:
        assert self.engine.speaking
        self.engine.speaking.mail.put(call)
