"""One arm and one seed as a job that any process can do, and that leaves its result in a file."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import judge, sampling, training
from .arms import ARMS, Arm, Size
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
    scores = judge.Scores(
        judge.trained(data, output / name / "judge.safetensors"), data, size.samples
    )
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


def finished(job: Job, size: Size, output: Path) -> bool:
    """Whether the job's result is there, at this size."""
    path = place(output, job)
    return path.is_file() and json.loads(path.read_text("utf-8"))["size"] == asdict(size)
