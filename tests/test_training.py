"""Training: gradients against plain PyTorch, and runs against the same runs done another way.

`tests/ranks.py` trains under one rank and under two; what it leaves is compared here.
"""

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from conftest import Command
from material import limited
from ranks import CHECKOUT, deepspeed, environment, launch, overrides
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmfusion import Pipeline, losses
from mmfusion.config import Config, TrainConfig, load
from mmfusion.config.section import keys
from mmfusion.decoder import Decoder
from mmfusion.errors import Elsewhere, UserError
from mmfusion.training import checkpoint, loop, resume
from mmfusion.training.checkpoint import EMA, WEIGHT, Checkpoint
from mmfusion.training.engine import flex
from mmfusion.training.health import PATIENCE, Health
from mmfusion.training.metrics import Metrics, SkippedLog
from mmfusion.training.schedule import learning_rate, progress

GO_ON = ["go-on-0", "go-on-2", "go-on-3"]  # the stage; 0 with one rank, 2 and 3 with two
KINDS = (WEIGHT, "exp_avg", "exp_avg_sq", EMA)
pytestmark = pytest.mark.timeout(600)  # whichever comes first waits for all runs


def metrics(run: Path) -> list[dict]:
    """Each line, which has no NaN: JSON does not have it."""
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def step(run: Path, number: int) -> Checkpoint:
    return Checkpoint(run / f"checkpoints/step-{number:08d}")


def fresh(config: Config, data: Path) -> Decoder:
    """The decoder as training begins with it."""
    from mmfusion.codecs.text import Tokenizer

    torch.manual_seed(config.seed)
    return Decoder(config, len(Tokenizer(data / "tokenizer.model")))


def assert_same_state(a: Checkpoint, b: Checkpoint, model: Decoder) -> None:
    for kind in KINDS:
        ours, theirs = a.weights(kind, model), b.weights(kind, model)
        for name in ours:
            assert torch.equal(ours[name], theirs[name]), f"{kind} of {name} differs"


@pytest.fixture(scope="module")
def runs(digits_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tests/ranks.py leaves: one rank first, for two go on from what it began."""
    folder = tmp_path_factory.mktemp("runs")
    job = ["tests/ranks.py", str(digits_data), str(folder)]
    for ranks, start in ((1, [sys.executable, *job]), (2, deepspeed(*job))):
        said = launch(start)
        (folder / f"ranks-{ranks}/said.txt").write_text(said, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def reference(runs: Path) -> dict[str, Tensor]:
    return load_file(runs / "reference.safetensors")


@pytest.fixture(scope="module")
def tiny(digits_data: Path) -> Config:
    return load("tiny", [f"text.tokenizer={digits_data}/tokenizer.model"])


@pytest.fixture(scope="module")
def model(tiny: Config, digits_data: Path) -> Decoder:
    return fresh(tiny, digits_data)


# Starting from weights


def test_a_run_from_raw_weights_goes_on_at_their_loss(runs: Path) -> None:
    first, (begun,) = metrics(runs / "start/first"), metrics(runs / "start/next")
    for key in ("loss", "image_loss", "text_loss"):
        assert begun[key] == pytest.approx(first[3][key], rel=1e-6)
        assert begun[key] != pytest.approx(first[2][key], rel=1e-4)


def test_a_run_from_a_model_warms_up_and_goes_on_without_it(runs: Path, model: Decoder) -> None:
    straight, halves = runs / "start/straight", runs / "start/halves"
    assert_same_state(step(straight, 2), step(halves, 2), model)
    assert [line["lr"] for line in metrics(straight)] == pytest.approx([5e-4, 1e-3])
    source = Decoder(load(str(straight / "config.yaml")), model.vocabulary)
    source.load_state_dict(load_file(runs / "start/gone/model.safetensors"))
    weights, average = (step(straight, 1).weights(kind, model) for kind in (WEIGHT, EMA))
    for name, before in source.named_parameters():
        assert (weights[name] - before).abs().max() <= 5.1e-4  # one step of Adam
        between = torch.lerp(before, weights[name], 1 - 2 / 11)  # the decay warms up, too
        torch.testing.assert_close(average[name], between, atol=1e-6, rtol=1e-5)


# Any number of ranks, micro-batches and any ZeRO stage: the same step


@pytest.mark.parametrize(
    ("name", "stage"),
    [("whole", 0), ("accumulated-0", 0), ("accumulated-2", 2)]
    + [(f"ranks-{stage}", stage) for stage in range(4)]
    + [("uneven-2", 2), ("uneven-3", 3)],
)
def test_a_step_equals_plain_pytorch(
    runs: Path, reference: dict[str, Tensor], model: Decoder, name: str, stage: int
) -> None:
    """One rank has text alone, the other pictures alone; uneven: both, in two micro-batches."""
    (line,) = metrics(runs / name)
    image, text = float(reference["image_loss"]), float(reference["text_loss"])
    assert line["image_loss"] == pytest.approx(image, rel=1e-5)
    assert line["text_loss"] == pytest.approx(text, rel=1e-5)
    assert line["loss"] == pytest.approx(image + 0.7 * text, rel=1e-5)
    norm = float(reference["norm"])
    assert norm > 0.5  # so that clipping to 0.5 does something
    assert ("grad_norm" in line) == (stage > 0)
    assert line.get("grad_norm", norm) == pytest.approx(norm, rel=1e-5)

    found = step(runs / name, 1)
    gradient, weight = found.weights("exp_avg", model), found.weights(WEIGHT, model)
    for key in weight:
        before = reference[f"before/{key}"]
        wanted = reference[f"gradient/{key}"] * min(1, 0.5 / norm)
        error = (gradient[key] / (1 - 0.9) - wanted).norm()
        assert error <= 1e-5 * wanted.norm() + 1e-8, f"gradient of {key}"
        update = reference[f"weight/{key}"] - before
        error = (weight[key] - before - update).norm()
        assert error <= 1e-5 * update.norm() + 1e-6, f"update of {key}"


def test_every_kind_of_parameter_had_a_gradient(reference: dict[str, Tensor]) -> None:
    """Or the comparison above would say little."""
    still = {k for k, g in reference.items() if k.startswith("gradient/") and not g.any()}
    assert not still


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_micro_batches_in_bf16_are_summed_in_fp32(runs: Path, model: Decoder, stage: int) -> None:
    """64 of them; a sum in bf16 is far from it."""
    sums = load_file(runs / "summed.safetensors")
    found = step(runs / f"summed-{stage}", 1).weights("exp_avg", model)
    for name, gradient in found.items():
        exact, rounded = sums[f"exact/{name}"], sums[f"rounded/{name}"]
        assert (gradient / (1 - 0.9) - exact).norm() <= 1e-5 * exact.norm(), name
        assert (rounded - exact).norm() > 1e-3 * exact.norm(), name
    assert (runs / f"summed-{stage}" / "said").read_text("utf-8") == ""  # by DeepSpeed, say


# Going on


@pytest.mark.parametrize("name", GO_ON)
def test_two_steps_and_two_more_are_four(runs: Path, model: Decoder, name: str) -> None:
    straight, halves = runs / name / "straight", runs / name / "halves"
    a, b = step(straight, 4), step(halves, 4)
    assert_same_state(a, b, model)
    assert_same_state(step(straight, 2), step(halves, 2), model)
    assert a.state.slots == b.state.slots
    assert a.state.slots is not None
    assert sorted(a.state.slots) == [0, 1, 2, 3]
    figures = ("step", "loss", "image_loss", "text_loss", "lr")
    ours, theirs = (
        [{f: line[f] for f in figures} for line in metrics(run)] for run in (straight, halves)
    )
    assert ours == theirs
    assert [line["step"] for line in theirs] == [1, 2, 3, 4]
    assert not torch.equal(*(step(straight, n).whole(WEIGHT, "latent_in.weight") for n in (2, 4)))


def test_one_trainer_stopped_twice_is_one_that_was_not(runs: Path, model: Decoder) -> None:
    straight, halves = runs / "paused/straight", runs / "paused/halves"
    assert_same_state(step(straight, 3), step(halves, 3), model)
    assert step(straight, 3).state.slots == step(halves, 3).state.slots
    assert [line["step"] for line in metrics(halves)] == [1, 2, 3]


def test_ranks_and_stages_read_the_same_data(runs: Path) -> None:
    one, *others = [runs / name / "straight" for name in GO_ON]
    losses = [line["loss"] for line in metrics(one)]
    for other in others:
        assert step(other, 4).state.slots == step(one, 4).state.slots
        # AdamW at its usual eps makes much of rounding errors in gradients near zero.
        assert [line["loss"] for line in metrics(other)] == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize("theirs", [{"seed": 0, "digest": "other"}, {"seed": 0}])
def test_ranks_that_see_different_data_stop(monkeypatch: pytest.MonkeyPatch, theirs: dict) -> None:
    mine = {"seed": 0, "digest": "mine"}

    def gather(found: list, layout: dict) -> None:
        assert layout == mine
        found[:] = [mine, mine, theirs]

    monkeypatch.setattr(loop.distributed, "all_gather_object", gather)
    trainer = loop.Trainer.__new__(loop.Trainer)
    trainer.world, trainer.rows = 3, SimpleNamespace(layout=lambda: mine)  # type: ignore[assignment]
    with pytest.raises(UserError, match="rank 2 finds other samples in the shards than rank 0"):
        trainer._same_data()
    theirs |= mine
    trainer._same_data()


def test_one_ranks_run_is_finished_by_two_at_another_stage(runs: Path, model: Decoder) -> None:
    alone, grown = step(runs / "alone", 4), step(runs / "grown", 4)
    assert len(list(alone.path.glob("rank-*"))) == 1
    assert len(list(grown.path.glob("rank-*"))) == 2
    assert alone.state.slots == grown.state.slots
    for kind in (WEIGHT, EMA):
        ours, theirs = alone.weights(kind, model), grown.weights(kind, model)
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6)
    assert [line["step"] for line in metrics(runs / "grown")] == [3, 4]
    assert metrics(runs / "grown")[-1]["loss"] == pytest.approx(
        metrics(runs / "alone")[-1]["loss"], rel=1e-5
    )


def test_until_a_step_that_is_reached_does_nothing(runs: Path) -> None:
    assert json.loads((runs / "until.json").read_text("utf-8")) == 2


# What is written


@pytest.mark.parametrize("name", GO_ON)
def test_ema_is_what_a_hand_computes(runs: Path, model: Decoder, name: str) -> None:
    run = runs / name / "straight"
    by_hand = {key: value.double() for key, value in model.state_dict().items()}
    for number in (1, 2, 3, 4):
        decay = min(0.9, (1 + number) / (10 + number))
        for key, weight in step(run, number).weights(WEIGHT, model).items():
            by_hand[key] = decay * by_hand[key] + (1 - decay) * weight.double()
    for key, average in step(run, 4).weights(EMA, model).items():
        torch.testing.assert_close(average.double(), by_hand[key], rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["go-on-0", "go-on-3"])
def test_the_exported_model_is_the_ema(runs: Path, model: Decoder, name: str) -> None:
    run = runs / name / "halves"
    pipeline = Pipeline.from_pretrained(run)
    average = step(run, 4).weights(EMA, model)
    exported = pipeline.decoder.state_dict()
    assert exported.keys() == average.keys()
    assert all(torch.equal(exported[key], average[key]) for key in average)
    options = {"num_inference_steps": 2, "seed": 3}
    again = Pipeline.from_pretrained(str(run / "model"))
    assert (
        pipeline.class_to_image(3, **options).tobytes()
        == again.class_to_image(3, **options).tobytes()
    )


def test_a_run_leaves_what_it_promises(runs: Path) -> None:
    run = runs / "go-on-2/halves"
    facts = json.loads((run / "training.json").read_text("utf-8"))
    expected = {"complete": True, "steps": 4, "ranks": 2, "zero_stage": 2, "device": "cpu"}
    assert expected.items() <= facts.items()
    assert load(str(run / "config.yaml")).train.zero_stage == 2
    assert sorted(p.name for p in (run / "samples").iterdir()) == [
        "step-00000002.png", "step-00000004.png",
    ]  # fmt: skip
    assert list((run / "tensorboard").glob("events*"))
    assert not list(run.rglob("*.part"))


def test_only_the_newest_checkpoints_are_kept(runs: Path) -> None:
    kept = [p.name for p in checkpoint.all_checkpoints(runs / "minutes/checkpoints")]
    steps = metrics(runs / "minutes")[-1]["step"]
    assert kept == [f"step-{steps:08d}"]


def test_the_learning_rate_follows_the_schedule(runs: Path, tiny: Config) -> None:
    lr = tiny.train.lr  # warm-up over 3 steps, decay over the last half of 4
    expected = [lr / 3, lr * 2 / 3, lr, lr * 0.5]
    for name in GO_ON:
        found = [line["lr"] for line in metrics(runs / name / "halves")]
        assert found == pytest.approx(expected, rel=1e-12)


def test_a_time_limit_ends_the_run_with_its_learning_rate(runs: Path, tiny: Config) -> None:
    run, limit = runs / "minutes", 0.02 * 60
    lines = metrics(run)
    seconds, rates = [line["seconds"] for line in lines], [line["lr"] for line in lines]
    facts = json.loads((run / "training.json").read_text("utf-8"))
    assert facts["complete"]
    assert facts["steps"] == lines[-1]["step"] < 10**6
    assert limit <= seconds[-1]
    # Each step begins within the limit, and its rate is what the time before it says.
    assert all(s < limit for s in seconds[:-1])
    shares = [0, *(s / limit for s in seconds[:-1])]
    expected = [tiny.train.lr * min(1, (1 - share) / 0.5) for share in shares]
    assert rates == pytest.approx(expected, rel=1e-9)
    # A second start says so and changes nothing.
    said = (runs / "again.txt").read_text("utf-8")
    assert f"already trained: {run} has a checkpoint at step {lines[-1]['step']}" in said
    assert str(run / "model") in said


def schedule(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"output": "x", "steps": 100, "lr": 1.0, **changes})


def test_schedule_by_hand() -> None:
    assert [progress(schedule(), s, 1e9) for s in (0, 50, 100, 200)] == [0, 0.5, 1, 1]
    timed = schedule(max_minutes=2.0)
    assert progress(timed, 10, 30) == 0.25  # time is further on
    assert progress(timed, 50, 30) == 0.5  # steps are
    assert progress(timed, 1, 500) == 1
    plain = schedule()
    assert [learning_rate(plain, s, s / 100) for s in (0, 99)] == [1, 1]
    train = schedule(warmup=10, decay=0.2)
    assert learning_rate(train, 0, 0) == pytest.approx(0.1)
    assert learning_rate(train, 9, 0.09) == learning_rate(train, 79, 0.79) == 1
    assert learning_rate(train, 90, 0.9) == pytest.approx(0.5)
    assert learning_rate(train, 100, 1) == 0
    assert learning_rate(train, 4, 0.9) == pytest.approx(0.25)  # both at once


def recording(tiny: Config, folder: Path, step: int) -> Metrics:
    train = tiny.train.model_copy(update={"output": str(folder)})
    return Metrics(tiny.model_copy(update={"train": train}), step, active=True)


def test_metrics_drop_what_lies_past_the_checkpoint(tmp_path: Path, tiny: Config) -> None:
    """Also a last line that was cut off, as by a kill. What is written is JSON for any reader.

    What is not finite is null; U+2028 in a string ends no line, a byte order mark begins one.
    """
    path = tmp_path / "metrics.jsonl"
    first, second = '{"step": 1, "note": "a\u2028b"}', '{"step": 2, "loss": NaN}'
    past = '[3]\n{"step": 3, "loss": 1.5}\n{"step": 5, "lo'
    path.write_text(f"\ufeff{first}\n{second}\n{past}", "utf-8")
    records = recording(tiny, tmp_path, 2)
    records.log(3, {"loss": math.nan, "grad_norm": math.inf})
    records.close()
    assert [json.loads(line, parse_constant=pytest.fail) for line in path.open("rb")] == [
        {"step": 1, "note": "a\u2028b"},
        {"step": 2, "loss": None},
        {"step": 3, "loss": None, "grad_norm": None},
    ]


def test_the_bar_says_its_figures_once_there_are_some(
    tmp_path: Path, tiny: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    records = recording(tiny, tmp_path, 0)
    assert capsys.readouterr().err.endswith(" left")
    records.log(3, {"loss": 0.5})
    records.close()
    assert "left, step 3, loss 0.5000" in capsys.readouterr().err


# Checkpoints that were damaged, or never finished


@pytest.fixture
def saved(runs: Path, tmp_path: Path) -> Path:
    """A folder of two checkpoints, steps 2 and 4, of two ranks."""
    return Path(shutil.copytree(runs / "go-on-2/halves/checkpoints", tmp_path / "saved"))


def test_a_rank_reads_its_own_numbers_alone(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a checkpoint of two ranks, wherever its piece begins and ends."""
    found, read = Checkpoint(saved / "step-00000004"), []
    plain = Checkpoint._file

    def file(self: Checkpoint, path: Path) -> Any:
        def get_slice(name: str) -> Any:
            kept = plain(self, path).get_slice(name)

            def numbers(_: Any, at: slice) -> Tensor:
                read.append(kept[at])
                return read[-1]

            return type("Kept", (), {"__getitem__": numbers})()

        return SimpleNamespace(get_slice=get_slice)

    for name, places in found._where.items():
        whole = found.whole(EMA, name)
        cuts = {0, 1, len(whole) // 3, *(start for start, _ in places), len(whole)}
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "_file", file)
            for start, end in combinations(sorted(cuts), 2):
                read.clear()
                assert torch.equal(found.part(EMA, name, start, end), whole[start:end])
                assert sum(map(len, read)) == end - start
    assert any(len(places) == 2 for places in found._where.values())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 0x10
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut rank-00001.safetensors": lambda p: cut(p / "rank-00001.safetensors"),
    "flip rank-00000.safetensors": lambda p: flip(p / "rank-00000.safetensors"),
    "missing rank-00001.safetensors": lambda p: (p / "rank-00001.safetensors").unlink(),
    "flip state.json": lambda p: flip(p / "state.json"),
    "empty config.yaml": lambda p: (p / "config.yaml").write_bytes(b""),
    "missing manifest.json": lambda p: (p / "manifest.json").unlink(),
    "cut manifest.json": lambda p: cut(p / "manifest.json"),
    "odd manifest.json": lambda p: (p / "manifest.json").write_text("[]"),
    "empty manifest.json": lambda p: (p / "manifest.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(
    saved: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert checkpoint.newest(saved) == saved / "step-00000004"
    assert not caplog.records
    DAMAGE[damage](saved / "step-00000004")
    assert checkpoint.newest(saved) == saved / "step-00000002"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(saved / "step-00000004") in record.getMessage()
    assert damage.split()[1] in record.getMessage()


def test_no_whole_checkpoint_is_an_error_and_none_at_all_is_not(saved: Path) -> None:
    for path in saved.iterdir():
        cut(path / "rank-00000.safetensors")
    with pytest.raises(UserError, match="no whole checkpoint") as caught:
        checkpoint.newest(saved)
    assert all(f"step-0000000{n}" in str(caught.value) for n in (2, 4))
    assert checkpoint.newest(saved / "elsewhere") is None


def test_a_checkpoint_killed_half_way_does_not_count(saved: Path) -> None:
    os.rename(saved / "step-00000004", saved / ".step-00000004.part")
    assert checkpoint.all_checkpoints(saved) == [saved / "step-00000002"]
    assert checkpoint.newest(saved) == saved / "step-00000002"


def test_another_decoder_is_refused(saved: Path, tiny: Config, digits_data: Path) -> None:
    found = Checkpoint(saved / "step-00000004")
    changes = ({"depth": 3}, r"blocks\.2"), ({"width": 64}, "numbers"), ({"depth": 1}, r"blocks\.1")
    for change, message in changes:
        decoder = tiny.decoder.model_copy(update=change)
        other = fresh(tiny.model_copy(update={"decoder": decoder}), digits_data)
        with pytest.raises(UserError, match=message):
            found.weights(WEIGHT, other)


class Stopped:
    """Rows that say of which checkpoint they go on."""

    def __init__(self) -> None:
        self.state: dict | None = None

    def resume(self, layout: dict, state: dict) -> None:
        self.state = state


def change(saved: Path, edit: Callable[[dict], object]) -> Checkpoint:
    """The newest checkpoint as if its config had been another."""
    path = saved / "step-00000004/config.yaml"
    before = yaml.safe_load(path.read_text("utf-8"))
    edit(before)
    path.write_text(yaml.safe_dump(before), "utf-8")
    return Checkpoint(path.parent)


OTHER_MODELS = {
    "diffusion.prediction": "sample", "diffusion.timestep_law": "logit_normal",
    "diffusion.weight_start": 1.0, "diffusion.noisy_copies": 2, "diffusion.path": "flow",
    "decoder.depth": 1, "decoder.position": "rotary", "decoder.norm": "rms", "image.patch": 4,
    "image.channels": 3, "row_length": 128, "train.text_weight": 0.1, "classes": ["a"],
    "text": None,
}  # fmt: skip
SAME_MODELS = {
    "train.lr": 1.0, "train.steps": 9, "train.weight_decay": 0.5, "train.output": "elsewhere",
    "train.precision": "bf16", "train.zero_stage": 3, "train.ema": 0.5, "train.keep": 7,
    "train.sheet_prompts": ["x"], "generation.edit.guidance": 3.0, "evaluation": None,
    "data.micro_rows": 1, "data.workers": 3, "data.most_lost": 0.5, "text.tokenizer": "moved.model",
    "image.vae": "moved", "image.linear": "moved", "train.start_from": "digits",
}  # fmt: skip


@pytest.mark.parametrize("key", OTHER_MODELS)
def test_a_run_does_not_go_on_as_another_model(saved: Path, key: str) -> None:
    config, rows = load(str(saved / "step-00000004/config.yaml")), Stopped()

    def edit(before: dict) -> None:
        *sections, last = key.split(".")
        for section in sections:
            before = before[section]
        before[last] = OTHER_MODELS[key]

    with pytest.raises(UserError, match=rf"step-00000004: (?s:.*)\n  {key}: was ") as caught:
        resume.go_on(change(saved, edit), config, rows.resume)
    assert "train.output" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


def test_all_that_differs_is_named_with_what_the_data_say(saved: Path) -> None:
    config = load(str(saved / "step-00000004/config.yaml"))
    before = change(saved, lambda c: (c["decoder"].update(width=64), c.update(row_length=9)))

    class Other(Stopped):
        def resume(self, layout: dict, state: dict) -> None:
            raise UserError("seed: was 1\ndata source x: was y")

    with pytest.raises(UserError) as caught:
        resume.go_on(before, config, Other().resume)
    lines = [line.strip().split(":")[0] for line in str(caught.value).splitlines()[1:]]
    assert lines == ["row_length", "decoder.width", "seed", "data source x"]


def test_a_run_goes_on_with_all_else_changed(saved: Path) -> None:
    """Also from a version that did not know some keys, and knew one that is gone."""
    path, rows = saved / "step-00000004/config.yaml", Stopped()
    options = [f"{key}={json.dumps(value)}" if not isinstance(value, str) else f"{key}={value}"
               for key, value in SAME_MODELS.items()]  # fmt: skip
    now, other = load(str(path), options), load(str(path), ["diffusion.noisy_copies=2"])

    def older(before: dict) -> None:
        del before["diffusion"]["noisy_copies"], before["train"]["text_weight"]
        del before["generation"], before["image"]["latent_scale"]
        before["decoder"]["was_there_once"] = 3

    saved_before = change(saved, older)
    resume.go_on(saved_before, now, rows.resume)
    assert rows.state == saved_before.state.slots
    with pytest.raises(UserError, match=r"diffusion\.noisy_copies: was 1, is now 2"):
        resume.go_on(saved_before, other, rows.resume)


def test_what_may_differ_is_there() -> None:
    known = {tuple(str(part) for part in key) for key in keys(Config)}
    assert known >= resume.FREE | resume.FIXED


def test_a_refused_start_touches_nothing(runs: Path) -> None:
    def kept(run: Path) -> dict[Path, bytes]:  # but for the lock, which says who held it last
        return {p.relative_to(run): p.read_bytes() for p in run.rglob("[!.]*") if p.is_file()}

    said = (runs / "refused.txt").read_text("utf-8")
    assert all(key in said for key in ("decoder.depth", "diffusion.prediction", "\n  seed"))
    assert kept(runs / "refused") == kept(runs / "go-on-0/halves")


def test_flex_attention_on_a_cpu_is_refused(tiny: Config) -> None:
    train = tiny.train.model_copy(update={"attention": "flex"})
    with pytest.raises(UserError, match=r"train\.attention: flex needs .*dense"):
        flex(tiny.model_copy(update={"train": train}))


Write = Callable[..., Path]


@pytest.fixture
def write(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a checkpoint of a step under a folder, as the only rank; its weights are zeros."""
    alone = SimpleNamespace(
        get_rank=lambda: 0,
        get_world_size=lambda: 1,
        barrier=lambda: None,
        all_gather_object=lambda out, value: out.__setitem__(0, value),
    )
    monkeypatch.setattr(checkpoint, "distributed", alone)
    monkeypatch.setattr("mmfusion.training.together.distributed", alone)
    zeros = {"weight": torch.zeros(5000)}
    monkeypatch.setattr(checkpoint, "_write_pieces", lambda path, *_: save_file(zeros, path))

    def call(root: Path, step: int, keep: int = 1) -> Path:
        config = tiny.model_copy(update={"train": tiny.train.model_copy(update={"keep": keep})})
        state = checkpoint.State(step, 1.0, {0: {}})
        return checkpoint.write(root, config, state, [], SimpleNamespace(shards=[]), None)  # type: ignore[arg-type]

    return call


def test_fallen_back_a_run_keeps_its_new_checkpoints(saved: Path, write: Write) -> None:
    """A damaged newer checkpoint does not count among those that `train.keep` keeps."""
    cut(saved / "step-00000004" / "rank-00000.safetensors")
    written = write(saved, 3)
    assert checkpoint.newest(saved) == written == saved / "step-00000003"


NOT_OURS = [
    "step-00000009-best", "step-00000009.bak", "step-9", "step-0", "step-000000009", "step-",
    "step-00000009 (copy)", "Step-00000009", "xstep-00000009", "step-٠٠٠٠٠٠٠٩", "step-00000009\n",
    ".step-00000009.part2", ".step-9.part", ".step-00000009-best.part", "step-00000009.part",
]  # fmt: skip


def test_only_exactly_our_names_are_removed_or_resumed_from(tmp_path: Path, write: Write) -> None:
    shutil.copytree(write(tmp_path / "other", 9), made := tmp_path / "made")
    root = tmp_path / "checkpoints"
    for name in NOT_OURS:
        shutil.copytree(made, root / name)
    (root / "step-00000008").write_text("a file of the user's")
    (root / "step-00000007").mkdir()  # an empty folder
    (root / "step-00000006").symlink_to(made)
    (root / ".step-00000005.part").mkdir()  # a killed run's
    (root / ".step-00000005.part/state.json").touch()
    before = {*os.listdir(root)} - {".step-00000005.part"}
    assert checkpoint.newest(root) == root / "step-00000006"
    for step in (1, 2, 10):
        write(root, step)
        assert {*os.listdir(root)} == before | {f"step-{step:08d}"}
        assert checkpoint.newest(root) == root / f"step-{max(step, 6):08d}"
    assert made.is_dir()


def test_steps_of_more_than_eight_digits_are_in_their_order(tmp_path: Path, write: Write) -> None:
    for step in (99_999_998, 99_999_999, 100_000_000):
        newest = write(tmp_path, step, keep=2)
        assert checkpoint.newest(tmp_path) == newest
    assert sorted(os.listdir(tmp_path)) == ["step-100000000", "step-99999999"]


def test_what_a_user_put_into_a_checkpoint_stays(tmp_path: Path, write: Write) -> None:
    (write(tmp_path, 1) / "notes.txt").write_text("mine")
    for step in (2, 3):
        write(tmp_path, step)
    assert [p.name for p in (tmp_path / "step-00000001").iterdir()] == ["notes.txt"]
    assert [p.name for p in checkpoint.all_checkpoints(tmp_path)] == ["step-00000003"]


def test_a_damaged_checkpoint_of_this_step_is_replaced(tmp_path: Path, write: Write) -> None:
    write(tmp_path, 1, keep=2)
    for damage in (lambda p: cut(p / "manifest.json"), lambda p: (p / "state.json").unlink()):
        damage(write(tmp_path, 2, keep=2))
        assert checkpoint.newest(tmp_path) == tmp_path / "step-00000001"
        assert checkpoint.newest(tmp_path) != write(tmp_path, 2, keep=2)
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000002"
    (tmp_path / "step-00000003").write_text("a file of the user's")
    with pytest.raises(UserError, match="step-00000003"):
        write(tmp_path, 3, keep=2)
    assert {*os.listdir(tmp_path)} == {f"step-{n:08d}" for n in (1, 2, 3)}


@pytest.mark.parametrize("most", [9000, 1000, 0])
def test_without_room_the_old_checkpoint_stays(tmp_path: Path, write: Write, most: int) -> None:
    old = write(tmp_path, 1)
    refused = pytest.raises(UserError, match=r"step-00000002.*make room")
    with limited(resource.RLIMIT_FSIZE, most), refused:
        write(tmp_path, 2)
    assert [*tmp_path.iterdir()] == [old]
    assert checkpoint.newest(tmp_path) == old


def test_what_another_rank_cannot_write_stops_this_one(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 has no room for its pieces; rank 0 would wait for it, or commit without them."""
    old, calls = write(tmp_path, 1), []

    def gather(out: list, value: object) -> None:
        calls.append(value)
        out[:] = [value, "rank-00001.safetensors: no room" if len(calls) == 2 else None]

    two = {"get_world_size": lambda: 2, "get_rank": lambda: 0}
    monkeypatch.setattr(
        "mmfusion.training.together.distributed", SimpleNamespace(**two, all_gather_object=gather)
    )
    with pytest.raises(Elsewhere, match="rank-00001"):
        write(tmp_path, 2)
    assert [*tmp_path.iterdir()] == [old]


def test_figures_without_room_are_one_line_and_none_is_lost(tmp_path: Path, tiny: Config) -> None:
    kept = "".join(f'{{"step": {n}, "loss": 1.0}}\n' for n in range(1, 300))
    (tmp_path / "metrics.jsonl").write_text(kept)
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost/rank-00000.jsonl").write_text('{"step": 1}\n{"step": 500}\n')
    (tmp_path / "lost/rank-copy.jsonl").write_text("mine\n")
    SkippedLog(tmp_path, 299, 0)
    assert (tmp_path / "lost/rank-00000.jsonl").read_text() == '{"step": 1}\n'
    assert (tmp_path / "lost/rank-copy.jsonl").read_text() == "mine\n"
    refused = pytest.raises(UserError, match=r"metrics\.jsonl.*make room")
    with limited(resource.RLIMIT_FSIZE, 500), refused:
        recording(tiny, tmp_path, 299)
    assert (tmp_path / "metrics.jsonl").read_text() == kept


# The commands


@pytest.fixture(scope="module")
def commands(runs: Path, digits_data: Path) -> SimpleNamespace:
    """Two ranks by the launcher at stage 2 until step 2; after an accident, one rank goes on."""
    run = runs / "command"
    first = metrics(run)
    made = run / "checkpoints/step-00000002"
    ranks = sorted(p.name for p in made.glob("rank-*"))
    shutil.copytree(made, run / "checkpoints/step-00000003")
    flip(run / "checkpoints/step-00000003/rank-00001.safetensors")
    shutil.copytree(made, run / "checkpoints/.step-00000004.part")
    shutil.copytree(made, run / "checkpoints/step-00000009-mine")
    (run / "model/README.md").write_text("mine")
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "loss": 0.5}\n')
    tiny = ["train.py", "--config", "tiny", *overrides(digits_data, run, eps=1e-3, zero_stage=0)]
    said = launch([sys.executable, *tiny])
    return SimpleNamespace(run=run, first=first, ranks=ranks, said=said)


def test_going_on_leaves_alone_what_a_user_added(commands: SimpleNamespace) -> None:
    assert (commands.run / "model/README.md").read_text() == "mine"
    assert (commands.run / "checkpoints/step-00000009-mine/manifest.json").is_file()
    assert not list(commands.run.glob("checkpoints/.*"))
    Pipeline.from_pretrained(commands.run / "model", "cpu")


def test_the_launcher_trains_two_ranks(commands: SimpleNamespace) -> None:
    assert commands.ranks == ["rank-00000.safetensors", "rank-00001.safetensors"]
    assert [line["step"] for line in commands.first] == [1, 2]
    assert all(math.isfinite(line["loss"]) for line in commands.first)


def test_plain_python_goes_on_where_two_ranks_were(
    commands: SimpleNamespace, runs: Path, model: Decoder
) -> None:
    assert "going on" in commands.said
    assert "at step 2" in commands.said
    warning = next(line for line in commands.said.splitlines() if line.startswith("WARNING"))
    assert "step-00000003" in warning
    assert "rank-00001.safetensors is cut short or damaged" in warning
    assert [line["step"] for line in metrics(commands.run)] == [1, 2, 3, 4]
    whole, alone = step(commands.run, 4), step(runs / "alone", 4)
    assert whole.state.slots == alone.state.slots
    ours, theirs = whole.weights(WEIGHT, model), alone.weights(WEIGHT, model)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6)
    assert checkpoint.newest(commands.run / "checkpoints") == whole.path


def test_a_second_run_is_refused_and_ctrl_c_saves_the_first(
    digits_data: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    tiny = ["--config", "tiny", *overrides(digits_data, run, steps=10000, save_every=10000)]
    first = subprocess.Popen(
        [sys.executable, "train.py", *tiny],
        cwd=CHECKOUT, env=environment(DS_ACCELERATOR=""), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (run / "metrics.jsonl").exists():
        assert first.poll() is None
        time.sleep(0.1)
    code, _, said = command("train", *tiny)
    assert code == 2
    (said,) = said.splitlines()
    assert str(run) in said
    for _ in range(2):  # `timeout` and launchers send it twice
        os.kill(first.pid, signal.SIGINT)
    _, said = first.communicate(timeout=200)
    assert first.returncode == 130
    assert "Traceback" not in said
    (number,) = steps(run)
    newest = checkpoint.newest(run / "checkpoints")
    assert newest == run / f"checkpoints/step-{number:08d}"
    assert said.splitlines()[-1].endswith(str(newest))
    assert [line["step"] for line in metrics(run)] == [*range(1, number + 1)]


def test_a_second_signal_ends_at_once_unless_it_is_an_echo() -> None:
    """A terminal's end is such a signal; under nohup it is none."""
    script = """if True:
        import os, signal, time
        from mmfusion.training import together
        together.ECHO = 0.2
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with together.Stop(said=True) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.signal
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with together.Stop(said=True) as stop:
            for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
            print("goes on with", stop.signal, flush=True)
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)
            print("still here")
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "goes on with 1\n")
    assert "Traceback" not in done.stderr


# Runs that do not come to their end: all ranks end alike, with nothing lost

RANKS = ["ranks-1", "ranks-2"]  # at ZeRO stages 0 and 2


def steps(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").iterdir())


def ended(run: Path) -> list[list[str]]:
    return [json.loads(path.read_text("utf-8")) for path in sorted(run.glob("ended-*.json"))]


def complete(run: Path) -> bool:
    return json.loads((run / "training.json").read_text("utf-8"))["complete"]


@pytest.mark.parametrize("ranks", RANKS)
def test_one_step_that_is_not_finite_changes_nothing(runs: Path, ranks: str) -> None:
    run = runs / ranks / "once"
    assert all(told == ["", ""] for told in ended(run))
    assert complete(run)
    assert steps(run) == [1, 3, 4, 5]  # of step 2 none is written
    assert [line["loss"] is None for line in metrics(run)] == [False, True, False, False, False]
    assert "step 2: loss or gradient not finite" in (runs / ranks / "said.txt").read_text("utf-8")
    last = Checkpoint(run / "checkpoints/step-00000005")
    for kind in ("weight", "ema", "exp_avg", "exp_avg_sq"):
        assert torch.isfinite(last.whole(kind, "latent_in.weight")).all()


@pytest.mark.parametrize("ranks", RANKS)
def test_several_in_a_row_end_the_run(runs: Path, ranks: str) -> None:
    run = runs / ranks / "thrice"
    (kind, told), *others = ended(run)
    assert kind == "UserError"
    assert "step 5" in told
    assert all(name in told for name in ("train.lr", "train.grad_clip", "step-00000002"))
    assert all(kind == "Elsewhere" for kind, _ in others)  # one line, not one a rank
    assert steps(run) == [1, 2]
    assert not complete(run)
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5]


def test_steps_between_which_one_went_well_are_not_in_a_row() -> None:
    engine = SimpleNamespace(device="cpu", skipped_steps=0)
    health = Health(engine, [], SimpleNamespace(shards=[]))  # type: ignore[arg-type]

    def hopeless(wrong: bool) -> bool:
        engine.skipped_steps += wrong
        health.note(1)
        assert health.wrong == wrong
        return health.hopeless

    bad = [True] * (PATIENCE - 1)
    assert not any(hopeless(wrong) for wrong in (*bad, False, *bad, False, *bad))
    assert hopeless(True)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_has_no_finite_gradient(value: float) -> None:
    """Or weights would move by it. One that is finite has its own, to the bit."""
    weight = torch.tensor([3.0, 5.0], requires_grad=True)
    image = torch.stack([weight.sum(), weight.sum() + value])
    for part, finite in zip(image, (True, False), strict=True):
        loss = losses.total(losses.Sums(part, part, 3, 7), 3, 7, 0.7)
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert bool(gradient.isfinite().all()) == finite
        if finite:
            plain = part / 3 + 0.7 * part / 7
            assert loss == plain
            (wanted,) = torch.autograd.grad(plain, weight, retain_graph=True)
            assert torch.equal(gradient, wanted)


@pytest.mark.parametrize("ranks", RANKS)
def test_a_run_does_not_end_well_with_one(runs: Path, ranks: str) -> None:
    run = runs / ranks / "at-the-end"
    assert [kind for kind, _ in ended(run)] == ["UserError", "Elsewhere"][: len(ended(run))]
    assert steps(run) == [1, 2]
    assert not complete(run)


# What happens on one rank


def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(runs: Path) -> None:
    run = runs / "ranks-2/signal"
    assert ended(run) == [["SystemExit", "143"]] * 2
    assert steps(run) == [2]  # it came before step 3
    saved = Checkpoint(run / "checkpoints/step-00000002").state
    assert saved.slots == {0: [1], 1: [1]}
    said = (runs / "ranks-2/said.txt").read_text("utf-8")
    assert "SIGTERM" in said
    assert str(run / "checkpoints/step-00000002") in said
    assert (run / "model/model.safetensors").is_file()
    assert not complete(run)


def test_a_signal_whose_answer_nobody_reads_saves_all_the_same(runs: Path) -> None:
    run = runs / "ranks-1/unheard"
    assert ended(run) == [["SystemExit", "143"]]
    assert steps(run) == [2]


def test_bad_data_of_one_rank_end_all(runs: Path) -> None:
    run = runs / "ranks-2/data"
    (first, _), (second, told) = ended(run)
    assert (first, second) == ("Elsewhere", "UserError")
    assert "shard 7" in told


def test_a_sheet_that_cannot_be_drawn_is_a_warning(runs: Path) -> None:
    run = runs / "ranks-2/sheet"
    assert ended(run) == [["", ""]] * 2
    assert complete(run)
    said = (runs / "ranks-2/said.txt").read_text("utf-8")
    warning = next(line for line in said.splitlines() if "mauve" in line)
    assert str(run / "samples/step-00000001.png") in warning


def test_a_model_that_a_trained_run_had_no_room_for_is_exported_by_the_next_start(
    runs: Path,
) -> None:
    run = runs / "ranks-1/unexported"
    assert steps(run) == [1]
    assert complete(run)
    Pipeline.from_pretrained(run, "cpu")


def test_an_export_that_fails_ends_all_ranks(runs: Path) -> None:
    run = runs / "ranks-2/export"
    (first, told), (second, _) = ended(run)
    assert (first, second) == ("OSError", "Elsewhere")
    assert "the disk" in told
    assert steps(run) == [1]  # which was whole before
