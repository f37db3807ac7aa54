"""One decoder for many: guests join and leave at any pass, and share those in between.

A guest is a generator of passes (`generation.session` makes them): it yields a batch with the rows
of a cache that it reads, and is sent what the decoder made of it. At each turn the passes that wait
are joined to one. Text tokens and denoising steps need not be told apart.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from mmfusion.cache import Pool, Reading, Seat
from mmfusion.decoder import Decoder
from mmfusion.packing import Batch, join, noisy_first

SMALL = 300_000_000
"""Products of a pass below which one thread does it: several would wait for each other, and beside
a busy process a hundred times as long as they work."""
MOST_TOKENS = 4096
"""Of a turn; guests beyond them take the next. A pass costs by its tokens long before."""
T = TypeVar("T")
Output = tuple[Tensor, Tensor | None]
Passes = Generator[tuple[Batch, Seat], Output, T]


class Runner(Protocol):
    """Who gives passes to a decoder.

    Attributes:
        pool: where their caches lie; None where each has its own.
    """

    @property
    def pool(self) -> Pool | None: ...

    def run(self, passes: Passes[T]) -> T:
        """What passes come to."""

    def tell(self, call: Callable[[], None]) -> None:
        """From within passes: make a call of their caller's, whose errors end them."""


class Guest(Generic[T]):
    """Passes at a stepper.

    Attributes:
        pending: what it wants next; None when it is done.
    """

    def __init__(self, passes: Passes[T]) -> None:
        self.passes = passes
        self.pending: tuple[Batch, Seat] | None = None
        self.error: BaseException | None = None
        self.value: Any = None

    def go(self, output: Output | None) -> None:
        """Take what the decoder has made; want something else, or be done."""
        try:
            self.pending = self.passes.send(output)  # type: ignore[arg-type]
        except StopIteration as end:
            self.pending, self.value = None, end.value
        except BaseException as error:
            self.pending, self.error = None, error

    def leave(self, error: Exception) -> None:
        """Be done, by this error."""
        self.passes.close()
        self.pending, self.error = None, error

    def result(self) -> T:
        """What its passes have come to; their error is raised."""
        if self.error:
            raise self.error
        return self.value


class Stepper:
    """Turns of guests at one decoder; for one thread.

    Attributes:
        passes, tokens: how many passes the decoder has made, and tokens in them.
    """

    def __init__(self, decoder: Decoder, threads: int | None = None) -> None:
        self.decoder, self.device = decoder, decoder.latent_in.weight.device
        self.size = sum(p.numel() for p in decoder.parameters())
        self.threads = threads or torch.get_num_threads()
        self.guests: list[Guest] = []
        self.passes = self.tokens = 0
        self._seats: Sequence[Seat] = ()
        self._batch: Batch | None = None
        self._reading: Reading | None = None

    @torch.inference_mode()
    def join(self, guest: Guest) -> None:
        """Have a guest from the next turn on, unless it is done without."""
        guest.go(None)
        if guest.pending:
            self.guests.append(guest)

    @torch.inference_mode()
    def turn(self) -> None:
        """One pass of those who have waited longest, as many as there is room for."""
        if not self.guests:
            return
        tokens = accumulate(len(guest.pending[0].doc) for guest in self.guests)  # type: ignore[index]
        chosen = max(1, sum(total <= MOST_TOKENS for total in tokens))
        served, waiting = self.guests[:chosen], self.guests[chosen:]
        for guest, output in zip(served, self._outputs(served), strict=True):
            if isinstance(output, Exception):
                guest.leave(output)
            else:
                guest.go(output)
        self.guests = waiting + [guest for guest in served if guest.pending]
        if not self.guests:  # a cache that nobody reads is let go
            self._seats, self._reading = (), None

    def _outputs(self, guests: list[Guest]) -> list[Output | Exception]:
        """What the decoder makes of their passes; where that fails, of one after another."""
        passes = [guest.pending for guest in guests if guest.pending]
        try:
            return list(self._pass(passes))
        except Exception as error:
            self._seats = ()
            if len(guests) == 1:
                return [error]
            return [self._outputs([guest])[0] for guest in guests]

    def _pass(self, passes: list[tuple[Batch, Seat]]) -> Sequence[Output]:
        """What the decoder makes of these, in one pass."""
        given, seats = zip(*passes, strict=True)
        batches = [
            replace(b, latent=b.latent.to(self.device), timestep=b.timestep.to(self.device))
            for b in given  # the lists that a denoising pass has there already
        ]
        if list(map(id, seats)) == list(map(id, self._seats)):  # a step like the one before
            assert self._batch
            timestep = torch.cat([batch.timestep for batch in batches])
            latent = noisy_first(batches, "latent")
            batch = replace(self._batch, latent=latent, timestep=timestep)
        else:
            batch = join(batches)
            self._reading = Reading(batch, *seats)
            self._batch = batch = batch.to(self.device)
            self._seats = seats
        assert self._reading
        torch.set_num_threads(1 if len(batch.doc) * self.size < SMALL else self.threads)
        latents, logits = self.decoder(batch, self._reading)
        self.passes, self.tokens = self.passes + 1, self.tokens + len(batch.doc)
        made = latents.split([len(b.noisy_at) for b in batches])
        said: Sequence[Tensor | None] = [None] * len(batches)
        if logits is not None:
            said = logits.split([len(b.predict_at) for b in batches])
        return list(zip(made, said, strict=True))


def run(decoder: Decoder, passes: Passes[T]) -> T:
    """Give passes to the decoder one after another, in this thread; what they come to."""
    guest, stepper, threads = Guest(passes), Stepper(decoder), torch.get_num_threads()
    try:
        stepper.join(guest)
        while guest.pending:
            stepper.turn()
    finally:
        torch.set_num_threads(threads)
    return guest.result()


class Alone:
    """Runs passes at once, each for itself."""

    pool = None

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def run(self, passes: Passes[T]) -> T:
        return run(self.decoder, passes)

    def tell(self, call: Callable[[], None]) -> None:
        call()
