"""How fast is a training step, and what bounds it?

    python -m benchmarks.training [--against causalfusion=DIR | transfusion] [--splits 50]

One model of one size on each side, both given the same work (`benchmarks.peers` says what is
equal), one split a step: zero gradients, forward, backward, AdamW. The sides take turns within one
process, in an order that changes from split to split. Printed, as JSON and as a table, are the
seconds of a step (mean over the splits, and the standard error of it), image tokens under a loss
in a second, FLOPs in matrix products of linear layers, executed over those that our model needs,
and the share of the machine's speed in one large product. Time is the process's CPU time with one
thread, and the clock's otherwise or on a GPU. `causalfusion=DIR` is a checkout of the official
code, `transfusion` pip's transfusion-pytorch: they are run, and nothing of them is kept.

    python -m benchmarks.training --device cuda --width 1280 --depth 32 [--against causalfusion=DIR]

is another measurement, at true size: `benchmarks.training_cuda` says of what.
"""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks import options
from benchmarks.layout import linear_flops, needed_flops
from benchmarks.parity.cases import Case, Given, given
from benchmarks.peers import Side, peer_of, sides
from mmfusion import jsonl

LR = 1e-4  # AdamW's
SIDE = 8  # tokens along an image's side
COUNTED = 8  # splits whose FLOPs are counted


class Trainer:
    """One side with its optimizer."""

    def __init__(self, side: Side) -> None:
        self.name, self.loss = side.name, side.loss
        self.parameters = [p.requires_grad_() for p in side.module.parameters()]
        self.count = sum(p.numel() for p in self.parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, LR)
        self.seconds: list[float] = []

    def step(self, given: Given) -> None:
        """One step of training."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(given).backward()
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


def alternate(sides: Sequence[Trainer], batches: Sequence[Given], cpu: bool) -> None:
    """A step of each side on each batch; who is first changes from batch to batch."""
    for side in sides:
        side.step(batches[0])  # what is made at the first step is not timed
    for number, batch in enumerate(batches):
        for side in sides if number % 2 else sides[::-1]:
            side.seconds.append(timed(partial(side.step, batch), cpu))


def show(lines: Sequence[dict[str, Any]]) -> None:
    """A table of a column each."""
    for name in lines[0]:
        cells = [line[name] for line in lines]
        told = [f"{cell:.5g}" if isinstance(cell, float) else str(cell) for cell in cells]
        print(f"{name:34}", *(f"{cell:>22}" for cell in told))


def main() -> None:
    """Measure and print."""
    parser = options("training", __doc__)
    parser.add_argument("--against", help="causalfusion=DIR, the official code, or transfusion")
    parser.add_argument("--peer-depth", type=int, help="transfusion's layers; as many as ours")
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=16, help="images a step")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--device", default="cpu", help="cuda: `benchmarks.training_cuda`")
    parser.add_argument("--checkpoint", action="store_true", help="cuda: activations, all blocks")
    parser.add_argument("--budget", type=float, default=90, help="cuda: seconds in all, about")
    parser.add_argument("--profile", type=Path, help="cuda: write a table of kernels here")
    args = parser.parse_args()
    if args.device != "cpu":
        from benchmarks.training_cuda import measure

        case = Case("speed", args.width, args.depth, args.width // 64, 16, 64, 1000)
        sys.exit(0 if measure(args, case) else "a side has failed, or begins with another loss")
    torch.set_num_threads(args.threads)
    cpu = args.threads == 1
    case = Case("speed", args.width, args.depth, args.width // 64, SIDE, 4, 10)
    peer = peer_of(args, case)
    trained = [Trainer(side) for side in sides(peer)]
    batches = [given(case, draw, args.rows) for draw in range(3, 3 + args.splits)]
    counted = batches[:COUNTED]
    least = [needed_flops(peer.config, peer.decoder.vocabulary, peer.batch(b)) for b in counted]
    needed = mean(least)
    executed = {
        side.name: sum(linear_flops(partial(side.loss, b)) for b in counted) for side in trained
    }
    alternate(trained, batches, cpu)
    speed = product_speed(cpu)
    lines: list[dict[str, Any]] = [
        {
            "side": side.name,
            "parameters": side.count,
            "seconds a step": mean(side.seconds),
            "standard error": stdev(side.seconds) / len(side.seconds) ** 0.5,
            "image tokens a second": args.rows * case.tokens / mean(side.seconds),
            "linear FLOPs, executed / needed": executed[side.name] / len(counted) / needed,
            "useful share of one large product": needed / mean(side.seconds) / speed,
        }
        for side in trained
    ]
    report: dict[str, Any] = {"threads": args.threads, "splits": args.splits, "sides": lines}
    if args.against:
        ratios = [b / a for a, b in zip(*(side.seconds for side in trained), strict=True)]
        report["theirs over ours"] = mean(trained[1].seconds) / mean(trained[0].seconds)
        report["of a split, least and most"] = [min(ratios), max(ratios)]
    print(jsonl.dumps(report))
    show(lines)
    if args.against:
        print(
            f"their seconds over ours: {report['theirs over ours']:.3f}; "
            f"{min(ratios):.2f} to {max(ratios):.2f} a split"
        )


if __name__ == "__main__":
    main()
