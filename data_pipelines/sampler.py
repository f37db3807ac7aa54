"""In which order samples come: pure functions of the seed, whoever asks.

There are `slots` streams. Each walks through its own share of an epoch, and together the shares are
every sample once. An epoch's list is made of blocks of neighbours in a shard, in random order, and
the samples of a block in random order: random enough where shards were shuffled when they were
written, and few reads. A stream's share is a stretch of that list.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mmfusion.rng import generator

MIXTURE = 100  # documents of a stream among which the mixture holds its weights
GOLDEN = (5**0.5 - 1) / 2


class Place(NamedTuple):
    """A sample: by epoch, shard and number in there; and from where to where its block goes."""

    epoch: int
    shard: int
    number: int
    block: tuple[int, int]


class Order:
    """The order of one source's samples."""

    def __init__(
        self, sizes: np.ndarray, slots: int, block: int, seed: int, name: str | int
    ) -> None:
        """Shards of so many samples; blocks of one sample shuffle without regard to where they lie.

        Sources of other names have other orders.
        """
        self.slots, self.seed, self.name = slots, seed, name
        self.size = int(sizes.sum())
        blocks = -(-sizes // block)
        self._shard = np.repeat(np.arange(len(sizes)), blocks)
        first = np.arange(len(self._shard)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
        self._start = first * block
        self._length = np.minimum(block, sizes[self._shard] - self._start)
        # Two epochs may be under way; of blocks, one a stream.
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)
        self._inside = lru_cache(maxsize=4096)(self._draw_block)

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order = generator(self.seed, "epoch", self.name, epoch).permutation(len(self._shard))
        return order, np.cumsum(self._length[order])

    def _draw_block(self, epoch: int, block: int) -> np.ndarray:
        rng = generator(self.seed, "block", self.name, epoch, block)
        return self._start[block] + rng.permutation(self._length[block])

    def place(self, slot: int, draw: int) -> Place:
        """Where a stream's `draw`-th sample is, from 0."""
        epoch, place = divmod(draw * self.slots + slot, self.size)
        # Within an epoch, `share` is the stream's and `turn` counts: stretch after stretch.
        turn, share = divmod(place, self.slots)
        each, more = divmod(self.size, self.slots)
        place = share * each + min(share, more) + turn
        order, ends = self._epoch(epoch)
        at = int(np.searchsorted(ends, place, "right"))
        block = int(order[at])
        inside = place - int(ends[at] - self._length[block])
        start = int(self._start[block])
        return Place(
            epoch,
            int(self._shard[block]),
            int(self._inside(epoch, block)[inside]),
            (start, start + int(self._length[block])),
        )


@lru_cache(maxsize=4096)
def mixture(seed: int, slots: int, slot: int, block: int, weights: tuple[float, ...]) -> np.ndarray:
    """The sources (MIXTURE,) of a stream's documents in one block of its mixture.

    By systematic sampling each source has its share, rounded down or up. What is rounded evens out
    over blocks and streams, as the offsets follow the golden ratio.
    """
    shares = np.cumsum(weights) / np.sum(weights)
    first = generator(seed, "mixture").random()
    offset = (first + (block * slots + slot) * GOLDEN) % 1.0
    points = (np.arange(MIXTURE) + offset) / MIXTURE
    sources = np.minimum(np.searchsorted(shares, points, "right"), len(weights) - 1)
    return generator(seed, "mixture", slot, block).permutation(sources)
