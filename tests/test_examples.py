"""Every example runs as it stands, on the model that is shipped; shells complete commands."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from mmfusion.data_pipelines.converters.digits import load_digits

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
MADE = {
    "draw": {"seven.png", "classes.png", "four.png", "three.png"},
    "caption": set(),
    "colour": {"colour.png"},
    "edit": {"edited.png"},
    "interleave": {"interleaved.png"},
}
# What makes training short; the config itself is for an hour.
SHORT = [
    "train.steps=2", "decoder.depth=1", "decoder.width=24", "decoder.heads=2", "train.save_every=2",
]  # fmt: skip
MOST_LINES = 30


def test_each_example_is_tested_and_short() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == {*MADE}
    assert {path.name for path in EXAMPLES.glob("*.sh")} == {"train.sh", "evaluate.sh"}
    for path in EXAMPLES.iterdir():
        assert len(path.read_text("utf-8").splitlines()) <= MOST_LINES, path


@pytest.mark.parametrize("name", MADE)
def test_scripts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    assert {path.name for path in tmp_path.iterdir()} == MADE[name]
    said = capsys.readouterr().out
    if name == "caption":  # the shipped model reads this zero right
        assert "0" in said.splitlines()[0] or "zero" in said.splitlines()[0]
        likelihoods = [float(line.split("=")[1]) for line in said.splitlines()[-2:]]
        assert likelihoods[0] > likelihoods[1]
    if name == "interleave":
        assert names["name"] == "four"
    if name == "edit":
        kept = [np.asarray(names[picture])[4:] for picture in ("seven", "nine")]
        assert np.array_equal(*kept)


def sh(script: str, folder: Path, *arguments: str) -> str:
    """What a shell script prints, with the `mmfusion` of this interpreter."""
    command = folder / "bin/mmfusion"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mmfusion "$@"\n')
    command.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(EXAMPLES.parent),
    }
    done = subprocess.run(
        ["sh", str(EXAMPLES / script), *arguments],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("sh"), reason="needs sh")
def test_a_folder_becomes_a_model(tmp_path: Path) -> None:
    pictures, labels = load_digits()
    (tmp_path / "pictures").mkdir()
    lines = ["image,caption"]
    for number in range(12):
        name = f"digit {number}.png"
        PILImage.fromarray(pictures[number]).resize((40, 36)).save(tmp_path / "pictures" / name)
        lines.append(f"{name},a picture of the digit {labels[number]}")
    (tmp_path / "captions.csv").write_text("\n".join(lines), "utf-8")
    said = sh("train.sh", tmp_path, *SHORT)
    assert "wrote 1 of 1 shards" in said
    for made in ("config.yaml", "model/model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "runs/pictures" / made).is_file()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("sh"), reason="needs sh")
def test_a_model_is_measured(tmp_path: Path) -> None:
    small = tmp_path / "small.yaml"
    small.write_text("digits: {data: data/digits, pictures: 10, held_out: 5, edits: 2}")
    said = sh("evaluate.sh", tmp_path, "--config", str(small))
    assert "the digits suite" in said
    assert (tmp_path / "report/report.html").is_file()


# Shells


def test_shells_complete_commands_and_options(tmp_path: Path) -> None:
    def complete(words: str) -> list[str]:
        asked = {"_MMFUSION_COMPLETE": "complete_bash", "COMP_WORDS": words}
        place = str(len(words.split()) - 1)
        start = "import sys; sys.argv = ['mmfusion']; from mmfusion.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", start], capture_output=True, text=True, cwd=EXAMPLES.parent,
            env={**os.environ, **asked, "COMP_CWORD": place},
        )  # fmt: skip
        return done.stdout.split()

    assert complete("mmfusion gen") == ["generate"]
    assert complete("mmfusion data lin") == ["linear-codec"]
    assert complete("mmfusion caption --be") == ["--best-of"]
