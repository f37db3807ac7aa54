"""`python -m benchmarks.ablations`: train the arms, score them, print the tables.

A run that was stopped goes on where it was: each arm and seed leaves a file. On the CPU every core
trains an arm of its own; on a GPU they come one after another.
"""

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmfusion.data_pipelines.tokenizer import train_tokenizer
from tqdm import tqdm

from . import judge, sampling, tables, training
from .arms import ARMS, HEADLINE, SIZES, Arm, Size, corpus
from .data import Data, digits, fashion
from .dit import parameters

Job = tuple[str, str, int]
"""Data set, arm, seed."""


def read_data(name: str, size: Size, folder: Path) -> Data:
    """A data set at the size's pictures."""
    return fashion(folder, size.picture) if name == "fashion" else digits()


def place(output: Path, job: Job) -> Path:
    """Where a job's result lies."""
    name, arm, seed = job
    plain = "".join(c if c.isalnum() or c in ".-" else "_" for c in arm)
    return output / name / f"{plain}-{seed}.json"


def run(job: Job, size: Size, folder: Path, output: Path, device: str) -> dict[str, Any]:
    """Train and score one arm with one seed, and leave the result in its file."""
    if device == "cpu":
        torch.set_num_threads(1)
    name, arm_name, seed = job
    data = read_data(name, size, folder)
    arm: Arm = next(arm for arm in ARMS if arm.name == arm_name)
    tokenizer = output / name / "tokenizer.model"
    scores = judge.Scores(judge.trained(data, output / name / "judge.safetensors"), data)
    started = time.process_time()
    config, model, losses = training.train(arm, seed, size, data, tokenizer, device)
    trained = time.process_time()
    found, shown = sampling.measure(arm, config, model, size, data, tokenizer, scores)
    result = {
        **found,
        "size": asdict(size),
        "parameters": parameters(model),
        "loss": float(np.mean(losses[-size.steps // 10 :])),
        "train_seconds": trained - started,
        "score_seconds": time.process_time() - trained,
        "device": device,
    }
    path = place(output, job)
    np.save(path.with_suffix(".npy"), shown)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result), encoding="utf-8")
    os.replace(part, path)
    return result


def main() -> None:
    """Train what is missing, then print the tables."""
    parser = argparse.ArgumentParser(prog="benchmarks.ablations", description=__doc__)
    parser.add_argument("--fashion", type=Path, default=Path("../shared/data/fashion-mnist"),
                        help="folder of Fashion-MNIST's four files")  # fmt: skip
    parser.add_argument("--data", nargs="+", choices=["fashion", "digits"],
                        default=["fashion", "digits"])  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--headline", action="store_true", help="only the arms of S")
    parser.add_argument("--workers", type=int, default=None, help="default: one a core, or 1")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = "gpu" if device == "cuda" else "cpu"
    sizes = {name: SIZES[name, kind] for name in arguments.data}
    for name, size in sizes.items():
        prepare(name, size, arguments)
    arms = HEADLINE if arguments.headline else ARMS
    # Seed by seed, so that a stopped run has whole tables of fewer seeds.
    jobs = [(name, arm.name, seed) for seed in range(arguments.seeds)
            for name in sizes for arm in arms]  # fmt: skip
    missing = [job for job in jobs if not finished(job, sizes[job[0]], arguments.output)]
    workers = arguments.workers or ((os.cpu_count() or 1) if device == "cpu" else 1)
    started = time.monotonic()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        tasks = [
            pool.submit(run, job, sizes[job[0]], arguments.fashion, arguments.output, device)
            for job in missing
        ]
        for task in tqdm(as_completed(tasks), total=len(tasks), desc="arms", smoothing=0):
            task.result()
    report(arms, sizes, arguments, time.monotonic() - started if missing else None)


def prepare(name: str, size: Size, arguments: argparse.Namespace) -> None:
    """The judge and the tokenizer, before the arms that share them."""
    data = read_data(name, size, arguments.fashion)
    folder = arguments.output / name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer.model").is_file():
        train_tokenizer(corpus(data), folder / "tokenizer.model", 512)
    facts = judge.Scores(judge.trained(data, folder / "judge.safetensors"), data).facts
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def finished(job: Job, size: Size, output: Path) -> bool:
    """Whether the job's result is there, at this size."""
    path = place(output, job)
    return path.is_file() and json.loads(path.read_text("utf-8"))["size"] == asdict(size)


def report(
    arms: list[Arm], sizes: dict[str, Size], arguments: argparse.Namespace, seconds: float | None
) -> None:
    """Print the tables and write them, with a sheet of pictures, to the output folder."""
    text = []
    for name, size in sizes.items():
        results: dict[str, dict[int, dict[str, Any]]] = {}
        rows = []
        for arm in arms:
            for seed in range(arguments.seeds):
                path = place(arguments.output, (name, arm.name, seed))
                results.setdefault(arm.name, {})[seed] = json.loads(path.read_text("utf-8"))
            rows.append(np.load(place(arguments.output, (name, arm.name, 0)).with_suffix(".npy"),
                                allow_pickle=False))  # fmt: skip
        facts = json.loads((arguments.output / name / "facts.json").read_text("utf-8"))
        text.append(tables.markdown(name, size, results, facts))
        tables.sheet(rows).save(arguments.output / f"{name}.png")
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
