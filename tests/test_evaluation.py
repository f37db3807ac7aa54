"""`mmfusion eval --model M --config E.yaml`, whole: any ranks, killed and gone on with, looked at.

The model is the shipped one, the settings are small.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Command
from ranks import CHECKOUT, environment, launch
from tiny_clip import save_clip

from mmfusion import Pipeline
from mmfusion.config import EvaluationConfig, load_evaluation
from mmfusion.eval.run import Evaluation

STEPS = {"num_inference_steps": 4}
COMMAND = [sys.executable, "-m", "mmfusion", "eval"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, digits_data: Path) -> Path:
    clip = str(save_clip(tmp_path_factory.mktemp("clip") / "tiny"))
    train, held_out = f"{digits_data}/train-*.tar", f"{digits_data}/held_out-*.tar"
    evaluation = {
        "batch": 8,
        "class_to_image": {
            "pictures": 40, "reference": held_out, "features": ["pixels"], "sampling": STEPS,
        },
        "text_to_image": {
            "pictures": 24, "data": train, "features": ["pixels"], "sampling": STEPS, "best_of": 2,
            "clip": clip,
        },
        "image_to_text": {
            "data": held_out, "pictures": 20, "metrics": ["bleu", "cider"], "tokenizer": "plain",
            "sampling": {"beams": 2}, "clip": clip,
        },
        "digits": {"data": str(digits_data), "pictures": 20, "held_out": 10, "edits": 6},
    }  # fmt: skip
    path = tmp_path_factory.mktemp("settings") / "e.yaml"
    path.write_text(yaml.safe_dump(evaluation), "utf-8")
    return path


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the tests' own, for the commands that they start, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMFUSION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def evaluation(settings: Path, output: Path) -> list[str]:
    return [*COMMAND, "--model", "digits", "--config", str(settings), "-o", str(output)]


def report_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "report.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def alone(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("alone")
    return output, launch(evaluation(settings, output))


def test_both_directions_are_measured(alone: tuple[Path, str]) -> None:
    output, said = alone
    report = report_of(output)
    drawn, told, written = (
        report["figures"][name] for name in ("class_to_image", "text_to_image", "image_to_text")
    )
    for figures, n in ((drawn, 40), (told, 24)):
        distance = figures["fd_pixels"]
        assert (distance["n"], distance["value"] > 0, "warning" in distance) == (n, True, True)
        assert len(distance["reference_sha256"]) == 64
        assert 0 <= figures["precision_pixels"]["value"] <= 1
        assert set(figures["left_out"]) == {"sfid_pixels", "is_pixels"}
    assert told["cycle_accuracy"]["value"] > 0.8
    assert told["cycle_gain"]["value"] > 0
    assert told["clip_score"]["value"] == pytest.approx(100 * told["cosine"]["value"])
    assert 0 <= written["ref_clip_s"]["value"] <= 2.5
    assert written["ref_clip_s"]["prefix"] == "A photo depicts "
    assert written["bleu_4"]["n"] == written["perplexity"]["n"] == 20
    assert 1 < written["perplexity"]["value"] < 20
    suite = report["class_to_image"]
    assert (suite["accuracy"] > 0.5, suite["n"]) == (True, 20)
    assert written["cider"]["tokenizer"] == "plain"
    assert "class to image: 100%" in said
    assert "picture/s" in said


def test_two_ranks_give_the_same_figures(
    alone: tuple[Path, str], settings: Path, tmp_path: Path
) -> None:
    launch(evaluation(settings, tmp_path), ranks=2)
    assert figures(report_of(tmp_path)) == figures(report_of(alone[0]))


def test_a_killed_evaluation_goes_on_to_the_same_figures(
    alone: tuple[Path, str], settings: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        evaluation(settings, tmp_path), cwd=CHECKOUT, env=environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while len(list(tmp_path.glob("answers/text_to_image-*/*.tar"))) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "report.json").exists()
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("answers/*/*.tar")}
    launch(evaluation(settings, tmp_path))
    assert figures(report_of(tmp_path)) == figures(report_of(alone[0]))
    assert (
        made.items() <= {p: p.stat().st_mtime_ns for p in tmp_path.glob("answers/*/*.tar")}.items()
    )


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"class_to_image": {"reference": "nowhere.npz", "features": ["pixels"]}}, "nowhere.npz"),
        ({"class_to_image": {"features": ["nope"]}}, "no such extractor"),
        ({"text_to_image": {"data": "nowhere/*.tar"}}, "no shards match nowhere"),
        ({"image_to_text": {"data": "TRAIN", "clip": "nowhere:x"}}, "nowhere"),
        ({"class_to_image": {"sampling": {"num_inference_steps": 5000}}}, "num_inference_steps"),
        ({"digits": {"data": "nowhere"}}, "mmfusion data digits"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_drawn(
    wrong: dict, told: str, tmp_path: Path, digits_data: Path, command: Command
) -> None:
    train = f"{digits_data}/train-*.tar"
    asked = {"class_to_image": {"pictures": 50, "features": ["pixels"]}, **wrong}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(asked).replace("TRAIN", train), "utf-8")
    code, _, said = command("eval", "--config", tmp_path / "e.yaml", "-o", tmp_path / "out")
    assert code == 2
    assert told in said
    assert not (tmp_path / "out").exists()


def test_a_metric_that_lacks_its_program_is_left_out(
    digits_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmfusion.eval.captions import java

    monkeypatch.setattr(java, "lacking", lambda: "a program")
    held_out = f"{digits_data}/held_out-*.tar"
    asked = {"data": held_out, "pictures": 5, "metrics": ["rouge_l", "meteor"]}
    settings = EvaluationConfig.model_validate({"image_to_text": asked})
    report, _ = Evaluation(Pipeline.from_pretrained("digits"), settings, tmp_path, "x").run()
    figures = report["figures"]["image_to_text"]
    assert figures["left_out"] == {"meteor": "needs a program"}
    assert figures["rouge_l"]["warning"]
    assert figures["perplexity"]["data_sha256"] == figures["rouge_l"]["data_sha256"]


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """All but how long it took, and where samples lie."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in ("seconds", "source")}
        return value

    return plain(report)


def test_samples_are_written_as_the_adm_suite_takes_them(alone: tuple[Path, str]) -> None:
    (path,) = alone[0].glob("answers/class_to_image-*/samples.npz")
    with np.load(path, allow_pickle=False) as file:
        assert file["arr_0"].shape == (40, 8, 8, 3)
        assert file["arr_0"].dtype == np.uint8
        assert file["arr_1"].tolist() == [i % 10 for i in range(40)]


def test_the_page_shows_figures_and_answers(alone: tuple[Path, str]) -> None:
    page = (alone[0] / "report.html").read_text("utf-8")
    report = report_of(alone[0])
    for direction in ("Class → image", "Text → image", "Image → text"):
        assert f"{direction}: figures and answers" in page
    assert all(name in page for name in ("cycle: ", "BLEU-4", "perplexity", "left out: sFID"))
    for name in ("reference", "source"):  # a hash stands once, at the end
        digest = report["figures"]["text_to_image"]["fd_pixels"][f"{name}_sha256"]
        assert page.count(digest[:12]) == 1
    assert page.count("<img") > 100
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize("name", sorted(p.stem for p in (CHECKOUT / "configs/eval").glob("*.yaml")))
def test_shipped_evaluations_parse(name: str) -> None:
    settings = load_evaluation(f"eval/{name}")
    assert settings.model_validate(settings.model_dump()) == settings


def test_an_interruption_says_that_answers_stay(capsys: pytest.CaptureFixture) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    begun: Any = SimpleNamespace(facts={}, _about={}, suite=SimpleNamespace(measure=stop))
    with pytest.raises(KeyboardInterrupt):
        Evaluation.run(begun)
    assert "answers that are there stay; the same command goes on" in capsys.readouterr().err
