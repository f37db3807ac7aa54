"""What only a GPU can show; elsewhere all of it is skipped.

python -m pytest tests/test_cuda.py -rP
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import STYLES, model_config, random_decoder, random_document
from PIL import Image as PILImage
from safetensors.torch import load_file
from torch import Tensor

from mmfusion import ImageSlot, Pipeline, TextSlot, jsonl
from mmfusion.attention import ByDocument, ByRow
from mmfusion.decoder import Decoder
from mmfusion.generation.stepper import Stepper
from mmfusion.losses import sums, total
from mmfusion.packing import Batch, collate
from mmfusion.sequence import Counts, Row, count
from mmfusion.serving.engine import Engine
from mmfusion.training.engine import compile_blocks

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # a compiler's
]
FP32, BF16 = torch.float32, torch.bfloat16
ROOT = Path(__file__).parents[1]
VOCABULARY, LENGTH, ROWS = 400, 256, 4
CAPACITY = Counts(LENGTH, text=120, label=32, image=240, noisy=192, predict=80)


# The same documents, three ways to attend


def packed() -> list[Row]:
    """Rows of random documents, one of padding alone."""
    rng, config = np.random.default_rng(0), model_config(row_length=LENGTH)
    rows = [Row.of(config, LENGTH) for _ in range(ROWS)]
    for row in rows[:-1]:
        used = Counts()
        while used.plus(size := count(document := random_document(rng), 2)).fits(CAPACITY):
            row.document(document)
            used = used.plus(size)
    return rows


def slope(decoder: Decoder, batch: Batch, attend: Any) -> tuple[float, dict[str, Tensor]]:
    """The loss, and its gradient by each parameter."""
    part = sums(*decoder(batch, attend), batch)
    loss = total(part, part.noisy, part.targets, text_weight=0.5)
    loss.backward()
    return loss.item(), {n: p.grad.double().cpu() for n, p in decoder.named_parameters()}


WAYS = [("dense", FP32), ("flex", FP32), ("flex", BF16), ("compiled", BF16)]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("way", "dtype"), WAYS)
def test_rows_on_a_gpu_learn_what_documents_on_the_cpu_do(
    way: str, dtype: torch.dtype, style: str
) -> None:
    shape = {"width": 64, "depth": 3, **STYLES[style]}  # heads of 16, the least for FlexAttention
    config = model_config(shape, row_length=LENGTH)
    batch = collate(packed())
    want, wanted = slope(random_decoder(config, VOCABULARY), batch, ByDocument(batch))
    decoder = random_decoder(config, VOCABULARY).to("cuda", dtype)
    if way == "compiled":
        compile_blocks(decoder, dynamic=False, fullgraph=True)
    batch = collate(packed(), padded=True, capacity=CAPACITY).to("cuda")
    loss, found = slope(decoder, batch, ByRow(batch, flex=way != "dense"))
    norm = torch.cat([w.flatten() for w in wanted.values()]).norm()
    errors = {name: float((found[name] - w).norm() / norm) for name, w in wanted.items()}
    print(f"loss off by {abs(loss / want - 1):.1e}, gradients by {max(errors.values()):.1e}")
    bar = 1e-4 if dtype == FP32 else 3e-2
    assert loss == pytest.approx(want, rel=bar)
    assert max(errors.values()) < bar, errors


# The shipped models


class Shipped(NamedTuple):
    """A shipped model on the CPU and on the GPU in fp32, what to ask of it, and its pictures."""

    name: str
    cpu: Pipeline
    gpu: Pipeline
    prompts: list[str]
    pictures: list[PILImage.Image]


PROMPTS = {
    "digits": ["a handwritten seven", "the digit 3", "two, drawn by hand"],
    "emoji": ["a red apple, twemoji style", "an owl, noto style"],
}


@pytest.fixture(scope="module", params=PROMPTS)
def shipped(request: pytest.FixtureRequest) -> Shipped:
    name = request.param
    cpu = Pipeline.from_pretrained(name, device="cpu")
    gpu = Pipeline.from_pretrained(name, device="cuda", dtype="float32")
    prompts = PROMPTS[name]
    return Shipped(name, cpu, gpu, prompts, cpu.text_to_image(prompts, seed=7))


TASKS: dict[str, Callable[[Pipeline, Shipped], Any]] = {
    "text_to_image": lambda p, s: p.text_to_image(s.prompts, seed=1),
    "in AR steps": lambda p, s: p.text_to_image(s.prompts, seed=2, ar_steps=3, order="random"),
    "edit": lambda p, s: p.edit(s.pictures, "left", prompt=s.prompts, seed=3),
    "image_to_text": lambda p, s: p.image_to_text(s.pictures),
    "beams": lambda p, s: p.image_to_text(s.pictures, beams=3),
    "interleaved": lambda p, s: p.generate([s.pictures[0], TextSlot(), ImageSlot()], seed=4),
    "likelihood": lambda p, s: p.log_likelihood(s.pictures, s.prompts),
}


def far(found: Any, wanted: Any) -> float:
    """How far answers are from those wanted: of pictures the most of 255, of likelihoods nats."""
    if isinstance(wanted, list):
        return max(map(far, found, wanted))
    if isinstance(wanted, PILImage.Image):
        return float(np.abs(np.subtract(found, wanted, dtype=np.int16)).max())
    if isinstance(wanted, str):
        assert found == wanted
        return 0.0
    return abs(found.log_probability - wanted.log_probability)


@pytest.mark.parametrize("task", TASKS)
def test_a_gpu_answers_as_the_cpu_does(shipped: Shipped, task: str) -> None:
    off = far(TASKS[task](shipped.gpu, shipped), TASKS[task](shipped.cpu, shipped))
    print(f"{task}: off by {off:.2g}")
    assert off <= (0.01 if task == "likelihood" else 3)


def test_calls_share_passes_on_a_gpu(shipped: Shipped, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tasks at once, from threads of their own; no shared pass fails and is taken apart."""
    plain, failed = Stepper._pass, []

    def told(self: Stepper, passes: Any) -> Any:
        try:
            return plain(self, passes)
        except Exception as error:
            failed.append(error)
            raise

    monkeypatch.setattr(Stepper, "_pass", told)
    alone = {task: ask(shipped.gpu, shipped) for task, ask in TASKS.items()}
    with Engine(shipped.gpu) as engine, ThreadPoolExecutor(len(TASKS)) as threads:
        calls = {task: threads.submit(ask, engine.pipeline, shipped) for task, ask in TASKS.items()}
        off = {task: far(call.result(100), alone[task]) for task, call in calls.items()}
    print(off)
    assert not failed
    assert all(o <= (0.01 if task == "likelihood" else 3) for task, o in off.items()), off


def test_a_gpu_computes_in_half_the_bits_unless_asked(shipped: Shipped) -> None:
    """In bf16, or in fp16 what is saved so."""
    pipe = Pipeline.from_pretrained(shipped.cpu.source)
    saved = {"digits": BF16, "emoji": torch.float16}
    assert (pipe.device.type, pipe.dtype) == ("cuda", saved[shipped.name])
    drawn = pipe.text_to_image(shipped.prompts, seed=1)
    exact = shipped.gpu.text_to_image(shipped.prompts, seed=1)
    mean = [float(np.abs(np.subtract(d, e, dtype=np.int16)).mean()) for d, e in zip(drawn, exact)]  # noqa: B905
    print(f"mean distance of {pipe.dtype} pictures: {mean} of 255")
    assert max(mean) < 20


# Runs


@pytest.fixture
def train(tmp_path: Path, digits_data: Path) -> Iterator[Callable[..., list[float]]]:
    """`mmfusion train --config tiny` in rows of 128: the losses of all steps so far."""
    (tmp_path / "runs/digits").mkdir(parents=True)
    (tmp_path / "runs/digits/data").symlink_to(digits_data)
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env = {k: v for k, v in os.environ.items() if k != "DS_ACCELERATOR"} | {"PYTHONPATH": path}

    def run(name: str, *options: str) -> list[float]:
        told = ["train", "--config", "tiny", *options[:-1], "--", f"train.output={name}"]
        told += ["row_length=128", "train.log_every=1", "train.compile=true", *options[-1].split()]
        command = [sys.executable, "-m", "mmfusion", *told]
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=140
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        assert json.loads((tmp_path / name / "training.json").read_bytes())["device"] == "cuda"
        return [line["loss"] for line in jsonl.objects(tmp_path / name / "metrics.jsonl")]

    return run


def test_a_compiled_run_in_bf16_learns(train: Callable[..., list[float]], tmp_path: Path) -> None:
    """Lists as long as they come from workers, ZeRO 2, half of the blocks done again."""
    options = "train.steps=60 train.save_every=60 train.lr=3e-3 train.zero_stage=2 data.workers=4"
    losses = train("learns", f"{options} train.checkpoint_activations=0.5")
    print(losses)
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert (tmp_path / "learns/samples/step-00000060.png").is_file()  # drawn while it trains
    picture = Pipeline.from_pretrained(tmp_path / "learns").class_to_image(3)
    assert picture.size == (8, 8)


def test_a_resumed_run_goes_on_as_the_whole_one(
    train: Callable[..., list[float]], tmp_path: Path
) -> None:
    """At fixed shapes; a whole run is done twice, to tell what repeats at all."""
    capacity = ["text=96", "label=16", "image=128", "noisy=96", "predict=64"]
    options = "train.steps=24 train.save_every=12 train.lr=3e-3 train.ema=0.5 "
    options += " ".join(f"data.capacity.{one}" for one in capacity)

    def resumed() -> list[float]:
        assert len(train("resumed", "--until", "12", options)) == 12
        return train("resumed", options)

    with ThreadPoolExecutor(3) as threads:
        runs = [threads.submit(train, name, options) for name in ("whole", "again")]
        runs.append(threads.submit(resumed))
        losses = [np.array(run.result()) for run in runs]
    names = "whole", "again", "resumed"
    weights = [load_file(tmp_path / name / "model/model.safetensors") for name in names]
    off = []
    for other, held in zip(losses[1:], weights[1:], strict=True):
        apart = max(float((held[n] - w).abs().max()) for n, w in weights[0].items())
        off.append((float(np.abs(other / losses[0] - 1).max()), apart))
    print("most of (loss, weight): the same run again, resumed:", off)
    assert all(len(one) == 24 for one in losses)
    assert max(off[1]) <= 1e-2
