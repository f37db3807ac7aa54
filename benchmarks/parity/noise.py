"""The noise that both sides sample with: PyTorch's generators, or numbers independent of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from unittest.mock import patch as patched

import numpy as np
import torch
from torch import Tensor

from benchmarks.parity.cases import Case
from mmfusion.rng import generator

Stream = Callable[[tuple[int, ...]], Tensor]
"""From a shape to the next noise of that shape."""


class NoiseSource(Protocol):
    """The same noise twice: as streams to draw from, and as generators for `torch.randn`."""

    def streams(self, rows: int) -> list[Stream]:
        """A stream for each row."""

    def generators(self, rows: int) -> Any:
        """A context in which `torch.randn` draws the same from the generators that it gives."""


class TorchNoise:
    """Row r draws from a `torch.Generator` of seed r, as in real use."""

    def streams(self, rows: int) -> list[Stream]:
        return [lambda shape, g=g: torch.randn(shape, generator=g) for g in self._seeded(rows)]  # type: ignore[misc]

    @contextmanager
    def generators(self, rows: int) -> Iterator[list[torch.Generator]]:
        yield self._seeded(rows)

    def _seeded(self, rows: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(row) for row in range(rows)]


class PhiloxNoise:
    """A function of the case and the row alone, on any version of PyTorch."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def streams(self, rows: int) -> list[Stream]:
        return [self._stream(row) for row in range(rows)]

    @contextmanager
    def generators(self, rows: int) -> Iterator[list[torch.Generator]]:
        generators = [torch.Generator() for _ in range(rows)]
        streams = dict(zip(map(id, generators), self.streams(rows), strict=True))

        usual = torch.randn

        def randn(*shape: Any, generator: torch.Generator, **options: Any) -> Tensor:
            if id(generator) not in streams:  # where a sampler's numbers are read off
                return usual(*shape, generator=generator, **options)
            wanted = shape if isinstance(shape[0], int) else shape[0]
            return streams[id(generator)](tuple(wanted))

        with patched.object(torch, "randn", randn):
            yield generators

    def _stream(self, row: int) -> Stream:
        rng = generator("parity", self.case.name, "sampling", row)
        return lambda shape: torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
