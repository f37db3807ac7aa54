"""mm_xl.yaml as it is, but small: from raw pictures to all five methods of the trained model.

Overridden are width, depth, heads, picture size, row length, capacities, rows, paths and precision
alone. So two CPU ranks train with 64 label tokens, latents of an autoencoder with 16 channels,
sentencepiece, all four tasks packed into rows, activation checkpoints, loader workers and EMA.
"""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from material import jsonl, make_vae, run
from PIL import Image as PILImage
from ranks import deepspeed, launch

from mmfusion import ImageSlot, Pipeline, TextSlot
from mmfusion.config import load
from mmfusion.training.checkpoint import EMA, WEIGHT, Checkpoint

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220)}
SIDE, ROWS = 64, 8
pytestmark = pytest.mark.timeout(600)  # whichever comes first waits for all runs


def paint(colour: str, seed: int) -> PILImage.Image:
    """A noisy picture of one colour, not square."""
    noise = np.random.default_rng(seed).integers(0, 30, (72, 90, 3))
    return PILImage.fromarray((np.array(COLOURS[colour]) + noise).astype(np.uint8))


def write_raw(folder: Path) -> None:
    """A folder of class folders, captioned pictures, and documents of both."""
    captions, documents = [], []
    for number in range(12):
        colour = list(COLOURS)[number % 3]
        path = folder / "classes" / colour / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        paint(colour, number).save(path)
        image = f"classes/{colour}/{number}.png"
        captions.append({"image": image, "captions": [f"a {colour} wall", f"all in {colour}"]})
        content = [
            {"image": image},
            {"text": "and once more"},
            {"answer": f"in {colour}"},
            {"image": image, "target": True},
            {"answer": "that was it"},
        ]
        documents.append({"content": content})
    jsonl(folder / "captions.jsonl", *captions)
    jsonl(folder / "documents.jsonl", *documents)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of mm_xl.yaml, with data made by the commands that its error message names."""
    raw, data = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("data")
    write_raw(raw)
    make_vae(data / "vae", levels=5, channels=16)
    shards = ["imagenet", "imagenet", "captions", "captions", "interleaved"]
    paths = [
        f"image.vae={data}/vae",
        f"text.tokenizer={data}/tokenizer.model",
        f"classes_file={data}/imagenet/classes.json",
        "class_count=3",
        *(f"data.sources.{i}.shards={data}/{n}-latents/*.tar" for i, n in enumerate(shards)),
    ]
    overrides = [*paths, f"image.size={SIDE}"]
    commands = {"imagenet": "classes", "captions": "captions.jsonl"}
    commands |= {"interleaved": "documents.jsonl"}
    for name, given in commands.items():
        assert run("data", name, raw / given, "-o", data / name) == 0
        flip = ["--flip"] if name == "imagenet" else []
        latents = ["data", "latents", f"{data}/{name}/*.tar", "--config", "mm_xl", *flip]
        assert run(*latents, "-o", data / f"{name}-latents", *overrides) == 0
    texts = [option for name in commands for option in ("--shards", f"{data}/{name}/*.tar")]
    tokenizer = ("-o", data / "tokenizer.model", "--vocabulary", 400)
    assert run("data", "tokenizer", *texts, *tokenizer) == 0
    capacity = "{text: 128, label: 192, image: 192, noisy: 64, predict: 64}"
    return [
        *overrides,
        "decoder.width=32",
        "decoder.depth=2",
        "decoder.heads=2",
        "row_length=256",
        f"data.capacity={capacity}",
        f"data.rows={ROWS}",
        "train.precision=fp32",
    ]


@pytest.fixture(scope="module")
def runs(config: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[int, SimpleNamespace]:
    """Ten steps at stage 2 and at stage 3, each stopped after six; the launcher begins one."""
    outputs = {stage: tmp_path_factory.mktemp(f"stage-{stage}") / "run" for stage in (2, 3)}

    def command(stage: int, until: int) -> list[str]:
        options = [*config, f"train.output={outputs[stage]}", f"train.zero_stage={stage}"]
        return ["--config", "mm_xl.yaml", *options, "--until", str(until)]

    launch(deepspeed("train.py", *command(2, 6)))
    others = [command(2, 10), command(3, 6), command(3, 10)]
    said = launch([sys.executable, "-c", TRAIN, json.dumps(others)], ranks=2)
    assert said.count("going on") == 2
    done = {}
    for stage, output in outputs.items():
        lines = (output / "metrics.jsonl").read_text("utf-8").splitlines()
        done[stage] = SimpleNamespace(output=output, metrics=[json.loads(line) for line in lines])
    return done


TRAIN = """if True:
    import json, sys
    from mmfusion.cli import main
    for arguments in json.loads(sys.argv[1]):
        try:
            main(["train", *arguments])
        except SystemExit as stop:
            assert not stop.code
"""


@pytest.mark.parametrize("stage", [2, 3])
def test_ten_steps_with_a_pause(runs: dict[int, SimpleNamespace], stage: int) -> None:
    run = runs[stage]
    assert [line["step"] for line in run.metrics] == [6, 10]
    for line in run.metrics:
        assert all(math.isfinite(value) for value in line.values())
        assert line["image_loss"] > 0.5
        assert line["text_loss"] > 3  # of some 400 pieces
        assert line["grad_norm"] > 0
    facts = json.loads((run.output / "training.json").read_text("utf-8"))
    expected = {"steps": 10, "ranks": 2, "zero_stage": stage, "complete": False}
    assert expected.items() <= facts.items()
    used = load(str(run.output / "config.yaml"))
    assert used.train.zero_stage == stage
    assert used.classes == ["blue", "green", "red"]
    assert len(list((run.output / "samples").iterdir())) == 2


@pytest.mark.parametrize("stage", [2, 3])
def test_all_tasks_were_packed_and_taught_all_parameters(
    runs: dict[int, SimpleNamespace], stage: int
) -> None:
    found = Checkpoint(runs[stage].output / "checkpoints/step-00000010")
    slots, layout = found.state.slots, found.state.layout
    assert slots is not None
    assert layout is not None
    assert sorted(slots) == list(range(ROWS))
    sums = (sum(counts) for counts in zip(*slots.values(), strict=True))
    total = dict(zip(layout["columns"], sums, strict=True))
    assert total["documents"] > 1.5 * 10 * ROWS  # several a row
    assert total["length"] == 0
    assert all(total[task] > 10 for task in ("imagenet", "recaption", "draw", "caption"))
    assert total["interleaved"] > 10
    model = Pipeline.from_pretrained(runs[stage].output).decoder
    for name, moment in found.weights("exp_avg", model).items():
        assert moment.any(), f"{name} was never learned"
    assert model.label.weight.shape == (4 * 64, 32)


def test_both_stages_agree(runs: dict[int, SimpleNamespace]) -> None:
    a, b = (Checkpoint(runs[s].output / "checkpoints/step-00000010") for s in (2, 3))
    assert a.state.slots == b.state.slots
    for ours, theirs in zip(runs[2].metrics, runs[3].metrics, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    model = Pipeline.from_pretrained(runs[2].output).decoder
    for kind in (WEIGHT, EMA, "exp_avg"):
        ours, theirs = a.weights(kind, model), b.weights(kind, model)
        for name in ours:
            close = torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-5)
            assert close, f"{kind} of {name}"


@pytest.mark.parametrize("stage", [2, 3])
def test_all_five_methods_run_on_the_export(runs: dict[int, SimpleNamespace], stage: int) -> None:
    output = runs[stage].output
    pipeline = Pipeline.from_pretrained(output / "model")
    average = Checkpoint(output / "checkpoints/step-00000010").weights(EMA, pipeline.decoder)
    assert all(torch.equal(w, average[n]) for n, w in pipeline.decoder.state_dict().items())
    assert Path(str(pipeline.config.image.vae)).is_relative_to(output)
    quick = {"num_inference_steps": 2, "max_new_tokens": 4}
    given = paint("red", 5)
    made = [
        pipeline.class_to_image("green", **quick),
        pipeline.text_to_image("a blue wall", guidance=4.0, ar_steps=3, **quick),
        pipeline.edit(given, "left", label="red", **quick),
    ]
    assert isinstance(pipeline.image_to_text(given, **quick), str)
    prompt = [given, "and once more", TextSlot(), ImageSlot()]
    same, words, text, picture = pipeline.generate(prompt, **quick)
    assert (same, words, isinstance(text, str)) == (given, "and once more", True)
    for image in (*made, picture):
        assert (image.size, image.mode) == ((SIDE, SIDE), "RGB")
