"""Pictures of a model of true size on a GPU: `python -m benchmarks.sampling --device cuda`.

Guided DDPM of 256 tokens in raster order. Ours is in bf16 and draws its noise on the CPU, as it
always does; the official sampler is taken as its script has it, fp32 weights with TF32 products,
and once more under bf16 autocast; it draws its noise on the GPU. The sides take turns. Weights are
random: times do not depend on them. `--profile` says of a batch of one how long the GPU is at work.
"""

import traceback
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from benchmarks import cuda
from benchmarks.parity.cases import Case, given
from benchmarks.parity.noise import TorchNoise
from benchmarks.parity.ours import Ours
from mmfusion import jsonl

ALWAYS = (0.0, 1.0)  # guidance at all noise levels
Draw = Callable[[list[int], int, int], Any]  # sizes of AR steps, steps of each, pictures


def draws(args: Namespace, case: Case) -> dict[str, Draw]:
    """The sides."""
    folder = Path(args.against.partition("=")[2]) if args.against else None
    tokens = case.label_tokens + 2 * case.tokens
    config, decoder, theirs = cuda.models(case, folder, args.device, tokens)
    ours = Ours(config, decoder.to(torch.bfloat16).eval())
    inputs = {rows: given(case, 0, rows) for rows in map(int, args.batch.split(","))}

    def own(sizes: list[int], steps: int, rows: int) -> Any:
        return ours.sampled(inputs[rows], TorchNoise(), sizes, ALWAYS, steps)

    def official(autocast: bool, sizes: list[int], steps: int, rows: int) -> Any:
        assert theirs
        with torch.autocast(args.device, torch.bfloat16, enabled=autocast):
            return theirs.sampled(inputs[rows], None, sizes, ALWAYS, steps)

    sides: dict[str, Draw] = {"mmfusion, bf16": own}
    if theirs:
        sides["official, TF32"] = partial(official, False)
        sides["official, bf16 autocast"] = partial(official, True)
    return sides


def measure(args: Namespace, case: Case) -> bool:
    """Measure and print; whether everything ran."""
    until, sides, lines, ran = perf_counter() + args.budget, draws(args, case), [], True
    settings = [(b, s) for b in map(int, args.batch.split(",")) for s in (1, args.ar_steps)]
    for rows, parts in settings:
        sizes = [case.tokens // parts] * parts
        took: dict[str, list[float]] = {name: [] for name in sides}
        line: dict[str, Any] = {"batch": rows, "AR steps": parts, "steps": args.steps}
        try:
            for draw in sides.values():
                draw(sizes, 2, rows)
            for turn in range(args.repeat):
                if perf_counter() > until:
                    break
                for name in list(sides)[:: 1 if turn % 2 else -1]:
                    seconds = cuda.seconds(partial(sides[name], sizes, args.steps, rows))
                    took[name].append(seconds)
        except Exception as error:
            traceback.print_exc()
            line["error"], ran = repr(error)[:60], False
        line |= {f"{n}, ms": 1e3 * median(t) for n, t in took.items() if t}
        print(jsonl.dumps(line), flush=True)
        lines.append(line)
    profiled = {}
    if args.profile:
        for name, draw in sides.items():
            seen = cuda.busy(partial(draw, [case.tokens], args.steps, 1), lines=15)
            profiled[name] = seen._asdict() | {"table": None}
            print(
                f"{name}: the GPU is at work {100 * seen.kernels / seen.seconds:.0f}% of the time"
            )
            print(seen.table)
    if args.long:
        for name, draw in sides.items():
            if perf_counter() < until:
                seconds = cuda.seconds(partial(draw, [case.tokens], 250, 1))
                lines.append(
                    {"batch": 1, "AR steps": 1, "steps": 250, f"{name}, ms": 1e3 * seconds}
                )
    cuda.show(lines)
    print(jsonl.dumps({"settings": lines, "profiled, batch 1": profiled}))
    return ran
