"""How fast is a training step, and what bounds it?

    python -m benchmarks.training [--against causalfusion=DIR] [--splits 50] [--threads 1]

One class-to-image model of one size on each side, both given the same latents, noise, timesteps,
orders and splits, one split a step: zero gradients, forward, backward, AdamW. The sides take turns
within one process, in an order that changes from split to split. Printed, as a table and as JSON,
are the seconds of a step (mean over the splits, and the standard error of it), image tokens under
a loss in a second, FLOPs in matrix products of linear layers, executed over needed, and the share
of the machine's speed in one large product. Time is the process's CPU time with one thread, and
the clock's otherwise or on a GPU. `--against` runs the official CausalFusion code in DIR, of which
nothing is kept.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.parity.cases import Case, Given, given
from benchmarks.parity.official import Official
from benchmarks.parity.ours import Ours, load
from mmfusion import jsonl

LR = 1e-4  # AdamW's
SIDE = 8  # tokens along an image's side
COUNTED = 8  # splits whose FLOPs are counted


class Side:
    """One implementation: its loss, its parameters, its optimizer."""

    def __init__(self, name: str, module: torch.nn.Module, loss: Callable[[Given], Tensor]) -> None:
        self.name, self.loss = name, loss
        self.parameters = [p.requires_grad_() for p in module.parameters()]
        self.count = sum(p.numel() for p in self.parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, LR)
        self.seconds: list[float] = []

    def step(self, batch: Given) -> None:
        """One step of training."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(batch).backward()
        self.optimizer.step()


def timed(work: Callable[[], object], cpu: bool) -> float:
    """Seconds of work: of the process on one CPU thread, else of the clock."""
    clock = time.process_time if cpu else time.perf_counter
    started = clock()
    work()
    return clock() - started


def product_speed(cpu: bool, size: int = 1536) -> float:
    """FLOP/s of one large matrix product, the best of several."""
    a, b = torch.randn(2, size, size)
    return 2 * size**3 / min(timed(lambda: a @ b, cpu) for _ in range(5))


def linear_flops(side: Side, batch: Given) -> int:
    """FLOPs of a step in linear layers: matrix products that are not of attention."""
    with FlopCounterMode(display=False) as counter:
        side.loss(batch).backward()
    counts = counter.get_flop_counts()["Global"]
    return sum(flops for op, flops in counts.items() if "mm" in str(op) and "bmm" not in str(op))


def needed_flops(case: Case, batch: Given) -> int:
    """FLOPs of a step that no implementation can do without, attention apart.

    Labels and clean tokens of all AR steps but the last, and the noisy ones, through every block;
    in the last block queries, output and MLP of noisy tokens alone. Forward once, backward twice.
    """
    c, rows = case, len(batch.labels)
    noisy = rows * c.tokens
    tokens = rows * (c.label_tokens + c.tokens - batch.sizes[-1]) + noisy
    mlp = 2 * c.mlp_ratio
    whole = tokens * (4 + mlp) * (c.depth - 1)
    last = 2 * tokens + noisy * (2 + mlp)
    blocks = (whole + last) * c.width**2
    ends = (tokens - rows * c.label_tokens + noisy) * c.width * c.token_dim
    times = rows * (256 + c.width) * c.width  # an image's timestep
    return int(3 * 2 * (blocks + ends + times))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--against", help="causalfusion=DIR, the official code")
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=16, help="images a step")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cpu = args.threads == 1
    case = Case("speed", args.width, args.depth, args.width // 64, SIDE, 4, 10)
    ours: Ours = load(case)
    sides = [Side("mmfusion", ours.decoder, lambda batch: ours._trained(batch)[1])]
    if args.against:
        official = Official(Path(args.against.partition("=")[2])).model(case)
        sides.append(Side("causalfusion", official.net, lambda b: official._trained(b)[1]))
    batches = [given(case, draw, args.rows) for draw in range(3, 3 + args.splits)]
    counted = batches[:COUNTED]
    needed = sum(needed_flops(case, batch) for batch in counted) / len(counted)
    executed = {side.name: sum(linear_flops(side, b) for b in counted) for side in sides}
    for side in sides:
        side.step(batches[0])  # what is made at the first step is not timed
    for number, batch in enumerate(batches):
        for side in sides if number % 2 else sides[::-1]:
            side.seconds.append(timed(partial(side.step, batch), cpu))
    speed = product_speed(cpu)
    lines = [
        {
            "side": side.name,
            "parameters": side.count,
            "seconds a step": mean(side.seconds),
            "standard error": stdev(side.seconds) / len(side.seconds) ** 0.5,
            "image tokens a second": args.rows * case.tokens / mean(side.seconds),
            "linear FLOPs, executed / needed": executed[side.name] / len(counted) / needed,
            "useful share of one large product": needed / mean(side.seconds) / speed,
        }
        for side in sides
    ]
    print(jsonl.dumps({"threads": args.threads, "splits": args.splits, "sides": lines}))
    for name in lines[0]:
        print(
            f"{name:34}",
            *(f"{line[name]:>14.5g}" if name != "side" else f"{line[name]:>14}" for line in lines),
        )
    if args.against:
        ratios = [b / a for a, b in zip(*(side.seconds for side in sides), strict=True)]
        whole = mean(sides[1].seconds) / mean(sides[0].seconds)
        print(
            f"their seconds over ours: {whole:.3f}; {min(ratios):.2f} to {max(ratios):.2f} a split"
        )


if __name__ == "__main__":
    main()
