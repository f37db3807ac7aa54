"""One arm and one seed as a job that any process can do, and that leaves its result in a file."""

import io
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmfusion import files

from . import judge, sampling, training
from .arms import ARMS, Arm, Size, model_config
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
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")  # TF32 where there is any
    name, arm_name, seed = job
    data = read_data(name, size, folder)
    arm: Arm = next(arm for arm in ARMS if arm.name == arm_name)
    tokenizer = output / name / "tokenizer.model"
    seen = judge.trained(data, judge_file(output, name, size), device)
    scores = judge.Scores(seen, data, size.samples)
    started = time.process_time()
    config, model, losses = training.train(arm, seed, size, data, tokenizer, device)
    trained = time.process_time()
    found, shown = sampling.measure(arm, config, model, size, data, tokenizer, scores)
    result = {
        **found,
        "made_of": made_of(arm, size, data),
        "parameters": parameters(model),
        "loss": float(np.mean(losses[-size.steps // 10 :])),
        "train_seconds": trained - started,
        "score_seconds": time.process_time() - trained,
        "device": device,
    }
    path = place(output, job)
    pictures = io.BytesIO()
    np.save(pictures, shown)
    files.write(path.with_suffix(".npy"), pictures.getvalue())
    files.write(path, json.dumps(result).encode())
    return result


def finished(job: Job, size: Size, data: Data, output: Path) -> bool:
    """Whether the job's result is there, of the same size, model and recipe."""
    path = place(output, job)
    if not path.is_file():
        return False
    arm = next(arm for arm in ARMS if arm.name == job[1])
    return json.loads(path.read_text("utf-8")).get("made_of") == made_of(arm, size, data)


def made_of(arm: Arm, size: Size, data: Data) -> dict[str, Any]:
    """All that a result depends on beside the seed and this code."""
    model = model_config(arm, size, data, tokenizer="").model_dump(mode="json")
    return {"kind": arm.kind, "sampled": list(arm.sampled), "size": asdict(size), "model": model}


def judge_file(output: Path, name: str, size: Size) -> Path:
    """Where the judge of a data set at a size of pictures lies."""
    return output / name / f"judge-{size.picture}.safetensors"
