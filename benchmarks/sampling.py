"""How fast are images drawn?

    python -m benchmarks.sampling [--against causalfusion=DIR] [--batch 1,16] [--steps 25]

Guided DDPM sampling of a class-to-image model of one size on each side, in raster order, both fed
with the same noise; the sides take turns within one process. Printed, as JSON and as a table, are
seconds an image, the mean and the standard error of it over the repetitions, and the ratio. Time is
the process's CPU time with one thread, and the clock's otherwise. `--against` runs the official
CausalFusion code in DIR, of which nothing is kept.

    python -m benchmarks.sampling --device cuda --width 1280 --depth 32 --batch 1,64 --steps 20

is another measurement, at true size: `benchmarks.sampling_cuda` says of what.
"""

import sys
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks import options
from benchmarks.parity.cases import Case, given
from benchmarks.parity.noise import TorchNoise
from benchmarks.parity.official import Official
from benchmarks.parity.ours import load
from benchmarks.training import timed
from mmfusion import jsonl

ALWAYS = (0.0, 1.0)  # guidance at all noise levels


def main() -> None:
    """Measure and print."""
    parser = options("sampling", __doc__)
    parser.add_argument("--against", help="causalfusion=DIR, the official code")
    parser.add_argument("--batch", default="1,16", help="images side by side")
    parser.add_argument("--steps", type=int, default=25, help="of each AR step")
    parser.add_argument("--ar-steps", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--device", default="cpu", help="cuda: `benchmarks.sampling_cuda`")
    parser.add_argument("--budget", type=float, default=60, help="cuda: seconds in all, about")
    parser.add_argument("--profile", action="store_true", help="cuda: more of one picture")
    args = parser.parse_args()
    if args.device != "cpu":
        from benchmarks.sampling_cuda import measure

        case = Case("speed", args.width, args.depth, args.width // 64, 16, 64, 1000)
        sys.exit(0 if measure(args, case) else "a side did not draw")
    torch.set_num_threads(args.threads)
    case = Case("speed", args.width, args.depth, args.width // 64, 8, 4, 10)
    sides: dict[str, Any] = {"mmfusion": load(case)}
    if args.against:
        sides["causalfusion"] = Official(Path(args.against.partition("=")[2])).model(case)
    sizes = [case.tokens // args.ar_steps] * args.ar_steps
    for rows in map(int, args.batch.split(",")):
        batch = given(case, 0, rows)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(-1, args.repeat):  # the first is not counted
            for name in list(sides)[:: 1 if turn % 2 else -1]:
                draw = partial(sides[name].sampled, batch, TorchNoise(), sizes, ALWAYS, args.steps)
                seconds[name].append(timed(draw, args.threads == 1) / rows)
        found = {name: took[1:] for name, took in seconds.items()}
        line = {
            "batch": rows,
            "steps": args.steps,
            "AR steps": args.ar_steps,
            **{f"{n}, seconds an image": mean(took) for n, took in found.items()},
            **{f"{n}, standard error": stdev(took) / len(took) ** 0.5 for n, took in found.items()},
        }
        if args.against:
            line["theirs over ours"] = mean(found["causalfusion"]) / mean(found["mmfusion"])
        print(jsonl.dumps(line), flush=True)


if __name__ == "__main__":
    main()
