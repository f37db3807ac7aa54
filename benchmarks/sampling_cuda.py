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
from mmfusion.config import Sampling
from mmfusion.generation.session import sampler

ALWAYS = (0.0, 1.0)  # guidance at all noise levels
LONG = 250  # the paper's steps
Draw = Callable[[list[int], int, int], Any]  # sizes of AR steps, steps of each, pictures


def draws(args: Namespace, case: Case) -> dict[str, Draw]:
    """The sides."""
    folder = Path(args.against.partition("=")[2]) if args.against else None
    tokens = case.label_tokens + 2 * case.tokens
    config, decoder, theirs = cuda.models(case, folder, args.device, tokens)
    ours = Ours(config, decoder.to(torch.bfloat16).eval())
    sampler(config, Sampling(scheduler="ddpm", num_inference_steps=LONG))  # made once, and kept
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


def alone(args: Namespace, case: Case, sides: dict[str, Draw]) -> dict[str, Any]:
    """One picture: how long the GPU is at work, and the time of many steps."""
    found: dict[str, Any] = {}
    for name, draw in sides.items():
        draw([case.tokens], 2, 1)
        seen = cuda.busy(partial(draw, [case.tokens], args.steps, 1), lines=15)
        found[name] = seen._asdict() | {"table": None, "at work": seen.kernels / seen.seconds}
        found[name][f"{LONG} steps, s"] = cuda.seconds(partial(draw, [case.tokens], LONG, 1))
        print(f"{name}, one picture: {jsonl.dumps(found[name])}\n{seen.table}", flush=True)
    return found


def turns(args: Namespace, sides: dict[str, Draw], sizes: list[int], rows: int) -> dict[str, Any]:
    """Milliseconds of each side; at least one turn, and no other once time is out."""
    took: dict[str, list[float]] = {name: [] for name in sides}
    for draw in sides.values():
        draw(sizes, 2, rows)
    for turn in range(args.repeat):
        if turn and perf_counter() > args.until:
            break
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            took[name].append(cuda.seconds(partial(sides[name], sizes, args.steps, rows)))
    return {f"{name}, ms": 1e3 * median(each) for name, each in took.items()}


def measure(args: Namespace, case: Case) -> bool:
    """Measure and print; whether everything ran."""
    args.until, sides, lines = perf_counter() + args.budget, draws(args, case), []
    found: dict[str, Any] = {}
    for rows in map(int, args.batch.split(",")):
        for steps in (1, args.ar_steps):
            line: dict[str, Any] = {"batch": rows, "AR steps": steps, "steps": args.steps}
            try:
                if not lines and args.profile:
                    found = alone(args, case, sides)
                line |= turns(args, sides, [case.tokens // steps] * steps, rows)
            except Exception as error:
                traceback.print_exc()
                line["error"] = repr(error)[:60]
            print(jsonl.dumps(line), flush=True)
            lines.append(line)
    cuda.show(lines)
    print(jsonl.dumps({"settings": lines, "one picture": found}))
    return not any("error" in line for line in lines)
