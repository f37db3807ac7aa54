"""`python -m benchmarks.ablations`: train the arms, score them, print the tables.

A run that was stopped goes on where it was: each arm and seed leaves a file. On the CPU every core
trains an arm of its own; on a GPU some share it, since each is small and waits for its data.
"""

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from tqdm import tqdm

from mmfusion.data_pipelines.tokenizer import train_tokenizer
from mmfusion.training.image_grid import grid

from .arms import ARMS, SIZES, Size
from .data import Data, corpus, read_data
from .models import Scores, trained
from .report import markdown
from .run import finished, judge_file, place, run


def main() -> None:
    """Train what is missing, then print the tables."""
    parser = argparse.ArgumentParser(prog="benchmarks.ablations", description=__doc__)
    parser.add_argument("--fashion", type=Path, default=Path("../shared/data/fashion-mnist"),
                        help="folder of Fashion-MNIST's four files")  # fmt: skip
    parser.add_argument("--data", nargs="+", choices=["fashion", "digits"],
                        default=["fashion", "digits"])  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=[*ARMS], default=[*ARMS], metavar="ARM",
                        help="only these, as the tables name them")  # fmt: skip
    parser.add_argument("--steps", type=int, help="training steps, instead of the size's")
    parser.add_argument("--inference-steps", type=int, help="denoising steps, likewise")
    parser.add_argument(
        "--workers", type=int, default=None, help="default: one a core; on a GPU 8 at most"
    )
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = "gpu" if device == "cuda" else "cpu"
    asked = {"steps": arguments.steps, "inference_steps": arguments.inference_steps}
    changes = {key: value for key, value in asked.items() if value}
    sizes = {name: replace(SIZES[name, kind], **changes) for name in arguments.data}
    data = {name: prepare(name, size, arguments, device) for name, size in sizes.items()}
    arms = [arm for arm in ARMS if arm in arguments.arms]
    # Seed by seed, so that a stopped run has whole tables of fewer seeds.
    jobs = [(name, arm, seed) for seed in range(arguments.seeds) for name in sizes for arm in arms]
    missing = [j for j in jobs if not finished(j, sizes[j[0]], data[j[0]], arguments.output)]
    cores = os.cpu_count() or 1
    workers = arguments.workers or (cores if device == "cpu" else min(8, cores))
    started = time.monotonic()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        tasks = [
            pool.submit(run, job, sizes[job[0]], arguments.fashion, arguments.output, device)
            for job in missing
        ]
        for task in tqdm(as_completed(tasks), total=len(tasks), desc="arms", smoothing=0):
            task.result()
    report(arms, sizes, arguments, time.monotonic() - started if missing else None)


def prepare(name: str, size: Size, arguments: argparse.Namespace, device: str) -> Data:
    """The data, and the judge and the tokenizer before the arms that share them."""
    data = read_data(name, size.picture, arguments.fashion)
    folder = arguments.output / name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer.model").is_file():
        train_tokenizer(corpus(data), folder / "tokenizer.model", 512)
    judge = trained(data, judge_file(arguments.output, name, size), device)
    facts = Scores(judge, data, size.samples).facts
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    return data


def report(
    arms: list[str], sizes: dict[str, Size], arguments: argparse.Namespace, seconds: float | None
) -> None:
    """Print the tables and write them, with a sheet of pictures, to the output folder."""
    text = []
    for name, size in sizes.items():
        results: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in arms}
        for arm, seed in product(arms, range(arguments.seeds)):
            path = place(arguments.output, (name, arm, seed))
            results[arm][seed] = json.loads(path.read_text("utf-8"))
        facts = json.loads((arguments.output / name / "facts.json").read_text("utf-8"))
        text.append(markdown(name, size, results, facts))
        rows = [
            np.load(place(arguments.output, (name, arm, 0)).with_suffix(".npy"), allow_pickle=False)
            for arm in arms
        ]
        pictures = [PILImage.fromarray(pixels) for row in rows for pixels in row]
        grid(pictures, len(rows[0])).save(arguments.output / f"{name}.png")
        each = [
            r["train_seconds"] + r["score_seconds"] for f in results.values() for r in f.values()
        ]
        text.append(f"{len(each)} arms and seeds took {sum(each) / 60:.0f} core minutes.\n")
    if seconds is not None:
        text.append(f"This run took {seconds / 60:.1f} minutes.\n")
    (arguments.output / "tables.md").write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
