"""Models of true size on a GPU, without a file between the two codes, and how time is taken there.

Shapes: W width.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.parity.cases import Case
from benchmarks.parity.official import Official, OfficialModel
from mmfusion.config import ModelConfig
from mmfusion.decoder import Decoder
from mmfusion.importers.causalfusion import converted

GIB = 2**30
CUDA = torch.cuda.is_available()


def sync() -> None:
    """Wait for the GPU."""
    if CUDA:
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """Seconds of the clock until the GPU is done."""
    sync()
    started = perf_counter()
    work()
    sync()
    return perf_counter() - started


def held() -> int:
    """Bytes of GPU memory that tensors take now."""
    return torch.cuda.memory_allocated() if CUDA else 0


def peak(work: Callable[[], object]) -> int:
    """Bytes that work takes at most beside those held before."""
    before = held()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - before if CUDA else 0


def product_speed(device: str, size: int = 8192) -> float:
    """FLOP/s of one large product of random bf16 numbers, the best of several."""
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    a @ b
    return 2 * size**3 / min(seconds(lambda: a @ b) for _ in range(10))


class Busy(NamedTuple):
    """Work as the profiler saw it: seconds of the clock, of kernels, their number, and a table."""

    seconds: float
    kernels: float
    launches: int
    table: str


def busy(work: Callable[[], object], lines: int = 30) -> Busy:
    """Profile work; the clock is read without the profiler, which slows the host."""
    clock = seconds(work)
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * CUDA]) as seen:
        work()
        sync()
    found = [e for e in seen.key_averages() if e.device_type == DeviceType.CUDA]
    found.sort(key=lambda e: -e.self_device_time_total)
    total = sum(e.self_device_time_total for e in found) / 1e6 or float("nan")
    rows = [
        f"{e.self_device_time_total / 1e3:9.3f} {e.self_device_time_total / 1e4 / total:6.1f} "
        f"{e.count:6}  {e.key[:110]}"
        for e in found[:lines]
    ]
    table = "\n".join(["       ms      %  calls  kernel", *rows])
    return Busy(clock, total, sum(e.count for e in found), table)


def models(
    case: Case, official: Path | None, device: str, row_length: int
) -> tuple[ModelConfig, Decoder, OfficialModel | None]:
    """Ours in fp32 and, given a folder, theirs with the same weights; made where they run.

    The last layer, zero at first, is random: else nothing but it would learn.
    """
    config = ModelConfig.model_validate(
        {
            "row_length": row_length,
            "image": {"codec": "vae", "vae": "unused", "size": case.side * 16, "patch": case.patch}
            | {"latent_channels": case.channels, "downsampling": 16},
            "classes": [str(number) for number in range(case.classes)],
            "decoder": {"width": case.width, "depth": case.depth, "heads": case.heads}
            | {"time_term": False, "label_tokens": case.label_tokens},
        }
    )
    torch.manual_seed(0)
    with torch.device(device):
        decoder = Decoder(config, 0)
    torch.nn.init.normal_(decoder.latent_out.weight, std=0.02)
    if official is None:
        return config, decoder, None
    theirs = Official(official).random(case, device)
    decoder.load_state_dict(converted(theirs.net.state_dict(), case.sizes, case.classes))
    return config, decoder, theirs


def show(lines: Sequence[dict[str, Any]]) -> None:
    """A table with a column for each."""
    for name in dict.fromkeys(name for line in lines for name in line):
        cells = [line.get(name, "") for line in lines]
        told = [f"{cell:.5g}" if isinstance(cell, float) else str(cell) for cell in cells]
        print(f"{name:36}", *(f"{cell:>24}" for cell in told))
