"""Arithmetic that can be repeated: on any number of cores, and on a GPU without TF32."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, torch's and NumPy's, so that a launcher changes no digit.

    Also a decorator, `@one_thread()`.
    """
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(cores)


def exact(device: str) -> AbstractContextManager:
    """On a GPU not TF32, which cudnn takes unasked and which is off in the third digit."""
    if device == "cpu":
        return nullcontext()
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
