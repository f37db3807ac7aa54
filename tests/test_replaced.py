"""What stands under a name that nobody gave, and is not ours, stays as it is."""

import json
from pathlib import Path

import pytest
from helpers import run_config
from material import encoded, run, save

from mmfusion.config import save as save_config
from mmfusion.data_pipelines.shards import Shards, write_shard
from mmfusion.locks import keep, locked

EVALUATION = """class_to_image: {reference: 'a*.tar', pictures: 2, features: [pixels],
  metrics: [fid], sampling: {num_inference_steps: 2}}"""
EVAL = ("eval", "--config", "e.yaml", "-o", "o")
FRONTIER = ("eval", "frontier", "--reference", "a*.tar", "-o", "o")
AUTOENCODER = (
    "data", "autoencoder", "a*.tar", "-o", "o", "--config", "tiny", "image.codec=vae",
    "image.vae=o", "image.downsampling=2", "image.latent_channels=4", "image.patch=1",
)  # fmt: skip
MINE = b'{"years": "of work"}'
SPLIT = b'{"train": [1, 2], "held_out": [3]}'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_shard(Path("a.tar"), [(str(n), {"cls": b"0", "png": encoded(n)}) for n in range(3)])
    save(Path("e.yaml"), EVALUATION.encode())
    save(Path("c.csv"), b"image,caption\na.png,a\n")
    save(Path("a.png"), encoded(0))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("o/x.json", ("data", "inspect", "a*.tar", "-o", "o/x.png")),
        ("o/x.rows.png", ("data", "inspect", "a*.tar", "-o", "o/x.png")),
        ("o/report.html", EVAL),
        ("o/report.json", (*EVAL, "--again")),
        ("o/frontier.html", FRONTIER),
        ("o/frontier.json", FRONTIER),
        ("o/report.html", AUTOENCODER),
        ("o/train.settings.json", ("data", "captions", "c.csv", "-o", "o")),
    ],
)
def test_a_command_refuses(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, command: tuple[str, ...]
) -> None:
    save(Path(name), MINE)
    assert run(*command) == 2
    assert "\nerror: o" in f"\n{capsys.readouterr().err}"
    assert Path(name).read_bytes() == MINE


def test_digits_are_written_beside_no_split_of_others(folder: Path) -> None:
    save(Path("o/split.json"), SPLIT)
    save(Path("o/train-00000.tar"), MINE)
    assert run("data", "digits", "-o", "o") == 2
    assert [Path("o", name).read_bytes() for name in ("split.json", "train-00000.tar")] == [
        SPLIT, MINE
    ]  # fmt: skip


def test_a_report_is_not_put_into_another_models_run(folder: Path) -> None:
    """The shipped `digits` and a run of that config have one name."""
    config = Path("runs/digits/config.yaml")
    save(config, b"")
    save_config(run_config(folder, config.parent), config)
    save(config.with_name("report.json"), MINE)
    assert run("eval", "digits", "--config", "e.yaml") == 0
    assert config.with_name("report.json").read_bytes() == MINE
    assert "training" not in json.loads(Path("runs/digits-eval/report.json").read_bytes())
    assert run("eval", "digits", "--config", "e.yaml", "-o", "runs/digits") == 2


def test_what_is_ours_is_replaced(folder: Path) -> None:
    for _ in range(2):
        assert run("data", "inspect", "a*.tar", "-o", "o/x.png") == 0


@pytest.mark.parametrize("theirs", [b"0 512 a.png\n", MINE, b"[]\n", b"{}\n"])
def test_another_tools_index_stays(folder: Path, theirs: bytes) -> None:
    save(Path("a.tar.index"), theirs)
    assert len(Shards("a.tar")) == 3
    write_shard(Path("a.tar"), [("s", {"cls": b"0", "png": encoded(0)})])
    assert len(Shards("a.tar")) == 1
    assert Path("a.tar.index").read_bytes() == theirs


def test_another_programs_locks_stay(folder: Path) -> None:
    for name, work in ((".x.lock", _lock), ("run/.lock", _keep)):
        save(Path(name), MINE)
        work()
        assert Path(name).read_bytes() == MINE


def _lock() -> None:
    with locked(Path("x"), wait=False) as held:
        assert held


def _keep() -> None:
    keep(Path("run"), "trains")
