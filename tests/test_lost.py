"""What is lost stops a run where it is too much, and is listed once where it is not."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import yaml
from ranks import CHECKOUT, environment
from test_loader import config, labels, png, steps, totals

from mmfusion.codecs.text import Tokenizer
from mmfusion.config import load
from mmfusion.data_pipelines import loader as loading
from mmfusion.data_pipelines.index import Index, open_index
from mmfusion.data_pipelines.index import save as save_index
from mmfusion.data_pipelines.loader import Loader
from mmfusion.data_pipelines.shards import Shards, write_shard, write_shards
from mmfusion.data_pipelines.tar_index import Contents, Member
from mmfusion.errors import CorruptSample, UserError


def write(folder: Path, bad: set[int], count: int = 30) -> None:
    samples = (
        (f"s{i}", {"json": {"label": i % 10}, "png": b"no picture" if i in bad else png(i)})
        for i in range(count)
    )
    write_shards(folder, "a", samples, per_shard=7)


# The rate


def test_a_run_stops_above_the_rate_and_says_all_of_it(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    write(tmp_path, set(range(0, 30, 2)))
    write_shard(tmp_path / "a-00009.tar", [("x", {"json": b"{", "png": png(0)})])
    rated = {"most_lost": 0.3, "rows": 1}
    with pytest.raises(UserError) as caught:
        steps(Loader(config(tmp_path, tokenizer, loading=rated)), 40)
    said = str(caught.value)
    assert "data source class_to_image: " in said
    assert " picture" in said
    assert "more than data.most_lost=0.3 allows; the last: " in said
    assert f"{tmp_path}/a-0000" in said
    assert "\n" not in said
    steps(Loader(config(tmp_path, tokenizer, loading={"most_lost": 0.7, "rows": 1})), 40)


def test_shards_that_are_gone_count_as_what_they_may_have_held(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Two of five shards are no little damage, though they are two losses only."""
    write(tmp_path, set(), 350)
    for number in range(20):
        (tmp_path / f"a-{number:05d}.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"20 parts .* \(20 shard\), 20 shards are gone or cut"):
        Loader(config(tmp_path, tokenizer, loading={"most_lost": 0.3}))
    loader = Loader(config(tmp_path, tokenizer, loading={"most_lost": 0.4}))
    assert len(loader.lost()) == 20


def test_a_list_that_nobody_asks_for_does_not_grow(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "MOST_LISTED", 5)
    write(tmp_path, {1, 2, 3})
    loader = Loader(config(tmp_path, tokenizer, loading={"most_lost": 1.0}))
    steps(loader, 20)
    assert totals(loader)["picture"] > 5 == len(loader.lost())


# The command


def train(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mmfusion", "train", "--config", str(folder / "run.yaml"), *more],
        cwd=CHECKOUT, env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def settings(folder: Path, tokenizer: Tokenizer, most_lost: float) -> Path:
    tiny = yaml.safe_load((CHECKOUT / "configs/tiny.yaml").read_text("utf-8"))
    source = {"name": "class", "task": "class_to_image", "shards": f"{folder}/a-*.tar"}
    tiny["data"] = {"rows": 4, "micro_rows": 2, "sources": [source], "most_lost": most_lost}
    tiny["text"] = {"tokenizer": str(tokenizer.path)}
    tiny["train"]["output"] = str(folder / "run")
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tiny), "utf-8")
    return path


def test_a_little_damage_is_listed_once_also_where_a_run_goes_on(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    write(tmp_path, {3, 11, 20})
    (tmp_path / "a-00009.tar").write_bytes(bytes(50_000))
    loader = Loader(load(str(settings(tmp_path, tokenizer, 0.5)), []))
    expected = []
    for step, _ in enumerate(islice(loader, 4), 1):
        expected += [{"step": step, **entry} for entry in loader.lost()]
    reasons = Counter(entry["reason"] for entry in expected)
    assert reasons["shard"] == 1
    assert reasons["picture"] >= 2

    listed, run = tmp_path / "run/lost/rank-00000.jsonl", tmp_path / "run"
    for until in ("2", "4"):
        ended = train(tmp_path, "--until", until)
        assert ended.returncode == 0, ended.stderr
        assert "Traceback" not in ended.stderr
    lines = [json.loads(line) for line in listed.read_text("utf-8").splitlines()]
    assert lines == expected
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    at = Counter(entry["step"] for entry in expected)
    assert {line["step"]: line["samples_lost"] for line in metrics} == {
        n: at[n] for n in range(1, 5)
    }


# What happens meanwhile


def test_a_worker_that_is_killed_is_told_in_one_line(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path, set())
    rows = iter(Loader(config(tmp_path, tokenizer, loading={"workers": 2})))
    next(rows)
    before = signal.getsignal(signal.SIGCHLD)
    assert before in (signal.SIG_DFL, signal.SIG_IGN)  # nothing is raised in the midst of a step
    worker = multiprocessing.active_children()[0]
    assert worker.pid
    os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.3)
    with pytest.raises(
        UserError, match=r"a process that reads data was killed \(DataLoader worker"
    ):
        for _ in islice(rows, 20):
            pass


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_vanishes_is_lost_and_the_run_goes_on(
    tmp_path: Path, tokenizer: Tokenizer, workers: int
) -> None:
    write(tmp_path, set())
    loader = Loader(config(tmp_path, tokenizer, loading={"most_lost": 0.5, "workers": workers}))
    rows = iter(loader)
    next(rows)
    assert not loader.lost()
    (tmp_path / "a-00001.tar").unlink()
    found = {label for batches in islice(rows, 20) for row in batches for label in labels(row)}
    assert found
    listed = loader.lost()
    assert listed
    assert {entry["reason"] for entry in listed} == {"shard"}
    assert all(
        f"shard {tmp_path}/a-00001.tar: cannot be read (No such" in e["what"] for e in listed
    )
    for path in tmp_path.glob("*.tar"):
        path.unlink()
    with pytest.raises(UserError, match=r"samples cannot be used \(.*shard.*most_lost=0\.5"):
        for _ in islice(rows, 1000):
            pass


def test_a_shard_that_is_replaced_is_lost_each_time_it_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path, set())
    shards = Shards(f"{tmp_path}/a-*.tar")
    write_shard(tmp_path / "a-00001.tar", [("s", {"txt": b"a"})])
    for _ in range(2):
        with pytest.raises(
            CorruptSample, match=r"a-00001\.tar: has changed while it was read"
        ) as caught:
            shards[8]
        assert caught.value.reason == "shard"


# Indexes


def test_an_index_that_others_write_meanwhile_is_no_harm(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    write(tmp_path, set())
    loader = Loader(config(tmp_path, tokenizer))
    rows = iter(loader)
    next(rows)
    for path in tmp_path.glob("*.tar"):
        data = Path(f"{path}.index").read_bytes()
        Path(f"{path}.index").unlink()
        Path(f"{path}.index").write_bytes(data)
    steps(loader, 5)


def test_every_byte_of_an_index_is_checked(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", [("s", {"json": {"label": 1}, "png": png(0)})])
    beside = Path(f"{path}.index")
    whole = beside.read_bytes()
    for place in range(len(whole)):
        beside.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        found = open_index(str(path), whole=True)
        assert found.sample(0)[0] == "s"
        assert beside.read_bytes() == whole


@pytest.mark.parametrize(("offset", "size"), [(10**9, 10), (0, 2**62), (-512, 10), (10, -10)])
def test_an_index_that_lies_is_made_anew(tmp_path: Path, offset: int, size: int) -> None:
    """Whole, with the right sums, but of another shard: it could ask for any memory."""
    path = write_shard(tmp_path / "a.tar", [("s", {"png": png(0)})])
    beside = Path(f"{path}.index")
    whole = beside.read_bytes()
    member = Member("png", offset, size, bytes(32))
    save_index(Contents(path.stat().st_size, {}, {"s": {"png": member}}), beside)
    assert Shards(str(path))[0]["png"] == png(0)
    assert beside.read_bytes() == whole


def test_an_index_holds_any_number_of_extensions(tmp_path: Path) -> None:
    members = {str(n): Member(str(n), n, 1, bytes(32)) for n in range(70_000)}
    save_index(Contents(100_000, {}, {"s": members}), tmp_path / "a.index")
    _, found = Index("a", tmp_path / "a.index").sample(0)
    assert [member.ext for member in found] == list(members)


def test_a_shard_whose_header_is_lost_is_not_mixed_in(tmp_path: Path) -> None:
    """Nothing says any more which autoencoder made it."""
    for broken in range(3):
        folder = tmp_path / str(broken)
        for n in range(3):
            write_shard(folder / f"a{n}.tar", [(f"s{n}", {"txt": b"a"})], {"made": "here"})
        data = bytearray((folder / f"a{broken}.tar").read_bytes())
        data[512] ^= 1  # the header is no JSON any more
        (folder / f"a{broken}.tar").write_bytes(data)
        (folder / f"a{broken}.tar.index").unlink()
        shards = Shards(f"{folder}/*.tar")
        assert (len(shards), shards.header) == (2, {"made": "here"})
        assert "its header is lost" in shards.lost[-1][1].what


def test_a_very_large_member_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmfusion.data_pipelines import shards as reading

    path = write_shard(tmp_path / "a.tar", [("s", {"txt": b"a", "mp4": bytes(2000)})])
    monkeypatch.setattr(reading, "MOST_BYTES", 1999)
    shards = Shards(str(path))
    assert shards.sample(0, only=("txt",))["txt"] == b"a"
    with pytest.raises(CorruptSample, match=r"a\.tar:s\.mp4: 2,000 bytes are more than 1,999"):
        shards[0]
