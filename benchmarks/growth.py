"""How does the cost of a training step grow?

    python -m benchmarks.growth [--repeat 3]

CPU seconds of a step on one thread, forward and backward, of class-to-image models around one of
width 256, depth 4, 64 image tokens and 8 pictures, where one of these changes: tokens of a
picture, depth, AR steps, pictures a batch. The settings take turns. Printed, as JSON and as a
table, are the least seconds of each, and over those of the first of its kind. "bytes" is a floor of
any step: how long a copy, as fast as measured, moves weights, gradients and AdamW's moments once.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks import options
from benchmarks.parity.cases import Case, Given, given
from benchmarks.peers import CausalFusion, sides
from benchmarks.training import Trainer, product_speed, timed
from mmfusion import jsonl

BASE = {"side": 8, "depth": 4, "AR steps": 4, "pictures": 8}
SWEEPS = {"side": (4, 8, 16), "depth": (2, 4, 8), "AR steps": (1, 4, 16), "pictures": (2, 8, 32)}
MOVED = 7 * 4  # bytes a parameter: AdamW reads four numbers and writes three


def work(at: dict[str, int]) -> tuple[Trainer, Given]:
    """The trainer and the batch of one setting."""
    case = Case("growth", 256, at["depth"], 4, at["side"], 4, 10)
    drawn = given(case, 1, at["pictures"])
    sizes = [len(part) for part in np.array_split(np.arange(case.tokens), at["AR steps"])]
    (side,) = sides(CausalFusion(case, None))
    return Trainer(side), replace(drawn, sizes=sizes)


def copy_speed(numbers: int = 1 << 24) -> float:
    """Bytes a second that are read and written by a copy too large for caches."""
    a, b = torch.zeros(2, numbers)
    return 8 * numbers / min(timed(lambda: b.copy_(a), cpu=True) for _ in range(5))


def main() -> None:
    """Measure and print."""
    parser = options("growth", __doc__)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = [(name, value) for name, values in SWEEPS.items() for value in values]
    made = [work(BASE | {name: value}) for name, value in settings]
    for _ in range(args.repeat + 1):  # the first is not counted
        for trainer, batch in made:
            trainer.seconds.append(timed(lambda t=trainer, b=batch: t.step(b), cpu=True))  # type: ignore[misc]
    least = {at: min(made[i][0].seconds[1:]) for i, at in enumerate(settings)}
    bandwidth = copy_speed()
    lines: list[dict[str, Any]] = [
        {
            name: value,
            "seconds": least[name, value],
            "over the first": least[name, value] / least[name, SWEEPS[name][0]],
            "bytes": MOVED * trainer.count / bandwidth,
        }
        for (name, value), (trainer, _) in zip(settings, made, strict=True)
    ]
    print(jsonl.dumps({"product": product_speed(cpu=True), "copy": bandwidth, "lines": lines}))
    for (name, value), line in zip(settings, lines, strict=True):
        numbers = (line["seconds"], line["over the first"], line["bytes"])
        print(f"{name:10} {value:4}", *(f"{number:10.4f}" for number in numbers))


if __name__ == "__main__":
    main()
