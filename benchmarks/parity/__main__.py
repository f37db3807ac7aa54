"""Do imported checkpoints do in our code what they do in the official one?

    python -m benchmarks.parity --official DIR [--golden FILE]

DIR holds the official CausalFusion code, which is run and of which nothing is kept. Small models of
random weights are saved as it saves them and imported, and both codes are given the same inputs.
Printed, as JSON, are the largest relative errors, max |ours - theirs| / max |theirs|, in fp32 of
the predicted noise under the training mask, of the training loss and its gradients, of the guided
prediction after a cached prefix, and of 250-step sampling fed with the same noise; and the entries
in which the masks of 1,000 random splits differ. Anything above its bar makes it exit with status
1. `--golden` keeps what the official code gave to inputs that do not depend on PyTorch's
generators.
"""

import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import options
from benchmarks.parity.cases import CASES, GOLDEN_CASES, Case
from benchmarks.parity.masks import compare_masks
from benchmarks.parity.noise import PhiloxNoise, TorchNoise
from benchmarks.parity.official import Official, OfficialModel
from benchmarks.parity.ours import load
from benchmarks.parity.results import BARS, GOLDEN_DRAWS, error, recipe, results
from mmfusion import jsonl

Record = dict[str, Any]
DRAWS, SPLITS = 10, 1000


def compare(case: Case, theirs: OfficialModel) -> Record:
    """The largest errors of a case."""
    ours = load(case)
    found: Record = {
        "official parameters": theirs.parameters,
        "imported parameters": sum(p.numel() for p in ours.decoder.parameters()),
    }
    pairs = (results(side, case, TorchNoise(), DRAWS) for side in (ours, theirs))
    for (kind, name, our_array), (_, _, their_array) in zip(*pairs, strict=True):
        key = name if kind == "sampling" else kind
        found[key] = max(found.get(key, 0.0), error(our_array, their_array))
        found["passed"] = found.get("passed", True) and found[key] <= BARS[kind]
    found["passed"] &= found["official parameters"] == found["imported parameters"]
    return found


def golden(official: Official) -> dict[str, np.ndarray]:
    """What the official code gives, by case and name; fp32 numbers alone."""
    kept = {}
    for case in GOLDEN_CASES:
        kept[f"{case.name}/recipe"] = recipe(case)
        made = results(official.model(case), case, PhiloxNoise(case), GOLDEN_DRAWS)
        kept |= {f"{case.name}/{name}": array for _, name, array in made}
    return kept


def main() -> None:
    """Compare, print, keep; exit with status 1 where a bar is missed."""
    parser = options("parity", __doc__)
    parser.add_argument("--official", type=Path, required=True, help="folder of the official code")
    parser.add_argument("--golden", type=Path, help="write what the official code gives here")
    args = parser.parse_args()
    torch.set_num_threads(1)  # these models are small
    start, official = time.monotonic(), Official(args.official)
    masks = compare_masks(official.train, SPLITS)
    masks["passed"] = not masks["differing entries"] and not masks["differing weights"]
    report: Record = {
        "torch, numpy, diffusers": [version(name) for name in ("torch", "numpy", "diffusers")],
        "bars": BARS,
        "cases": {case.name: compare(case, official.model(case)) for case in CASES},
        "masks": masks,
    }
    report["passed"] = masks["passed"] and all(c["passed"] for c in report["cases"].values())
    report["seconds"] = round(time.monotonic() - start, 1)
    print(jsonl.dumps(report, indent=1))
    if args.golden:
        args.golden.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(args.golden, **golden(official))  # type: ignore[arg-type]
    sys.exit(0 if report["passed"] else 1)


if __name__ == "__main__":
    main()
