"""How runs end that do not come to their end: all ranks alike, with nothing lost.

`tests/stops.py` makes the runs.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ranks import CHECKOUT, environment, launch

from mmfusion.training.checkpoint import Checkpoint

pytestmark = pytest.mark.timeout(600)
RANKS = ["ranks-1", "ranks-2"]  # at ZeRO stages 0 and 2


@pytest.fixture(scope="module")
def runs(digits_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stops")
    for ranks in (1, 2):
        said = launch([sys.executable, "tests/stops.py", str(digits_data), str(folder)], ranks)
        (folder / f"ranks-{ranks}/said.txt").write_text(said, encoding="utf-8")
    return folder


def steps(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").iterdir())


def ended(run: Path) -> list[list[str]]:
    return [json.loads(path.read_text("utf-8")) for path in sorted(run.glob("ended-*.json"))]


def complete(run: Path) -> bool:
    return json.loads((run / "training.json").read_text("utf-8"))["complete"]


def no_constant(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")


def metrics(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text("utf-8").split("\n")
    return [json.loads(line, parse_constant=no_constant) for line in lines if line]


# A loss that is not finite


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


def test_an_export_that_fails_ends_all_ranks(runs: Path) -> None:
    run = runs / "ranks-2/export"
    (first, told), (second, _) = ended(run)
    assert (first, second) == ("OSError", "Elsewhere")
    assert "the disk" in told
    assert steps(run) == [1]  # which was whole before


# The command


def test_a_second_run_is_refused_and_ctrl_c_saves_the_first(
    digits_data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shards = ["train-*.tar"] * 3 + ["interleaved-*.tar"]
    command = [
        sys.executable, "train.py", "--config", "tiny", f"train.output={run}", "train.steps=10000",
        "train.save_every=10000", f"text.tokenizer={digits_data}/tokenizer.model",
        *(f"data.sources.{i}.shards={digits_data}/{name}" for i, name in enumerate(shards)),
    ]  # fmt: skip

    def start(*more: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, *more], cwd=CHECKOUT, env=environment(), stderr=subprocess.PIPE, text=True
        )

    first = start()
    while not (run / "metrics.jsonl").exists():
        assert first.poll() is None
        time.sleep(0.1)
    second = start()
    _, said = second.communicate(timeout=200)
    assert second.returncode == 2
    assert [line for line in said.splitlines() if "error" in line] == said.splitlines()[-1:]
    assert str(run) in said
    assert "Traceback" not in said
    for _ in range(2):  # `timeout` and launchers send it twice
        os.kill(first.pid, signal.SIGINT)
    _, said = first.communicate(timeout=200)
    assert first.returncode == 130
    assert "Traceback" not in said
    (number,) = steps(run)
    assert said.splitlines()[-1].endswith(str(run / f"checkpoints/step-{number:08d}"))
    assert [line["step"] for line in metrics(run)] == [*range(1, number + 1)]
    third = start("--until", str(number + 1))
    third.communicate(timeout=200)
    assert third.returncode == 0
    assert steps(run) == [number, number + 1]


def test_a_second_signal_ends_at_once_unless_it_is_an_echo() -> None:
    script = """if True:
        import os, signal, time
        from mmfusion.training import together
        together.ECHO = 0.2
        with together.Stop(said=True) as stop:
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
            print("goes on with", stop.signal, flush=True)
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)
            print("still here")
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "goes on with 15\n")
    assert "Traceback" not in done.stderr
