"""Shards made side by side: who makes which, what is left out, and what must not mix."""

import json
import multiprocessing
import os
import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from material import limited

from mmfusion import locks
from mmfusion.data_pipelines.shard_writer import Output, claim, lost_items, shuffled, write_parts
from mmfusion.data_pipelines.shards import Shards
from mmfusion.errors import CorruptSample, UserError

KEPT = [n for n in range(40) if n % 7 != 3]
fork = multiprocessing.get_context("fork")


def item(number: int) -> list[tuple[str, dict[str, Any]]]:
    """One sample, two for multiples of ten, none for what is damaged."""
    if number % 7 == 3:
        raise CorruptSample("caption", f"line {number}: no text")
    copies = 2 if number % 10 == 0 else 1
    return [(f"{number:04d}-{copy}", {"json": {"label": number}}) for copy in range(copies)]


def make(folder: Path, count: int = 40, work: Any = item, **options: Any) -> Any:
    parts = Output(folder, "a", per_shard=5).cut(shuffled(count, 0), work)
    return write_parts(parts, "a", "numbers", options.pop("settings", {}), most_lost=0.5, **options)


def labels(folder: Path) -> list[int]:
    return [sample.json()["label"] for sample in Shards(f"{folder}/a-*.tar")]


def test_items_become_shuffled_samples_and_what_is_damaged_is_listed(tmp_path: Path):
    made = make(tmp_path)
    assert (made.shards, made.new, made.missing, made.items) == (8, 8, 0, 40)
    assert made.lost == {"caption": 6}
    found = labels(tmp_path)
    assert sorted(found) == sorted([*KEPT, 0, 20, 30])
    assert found != sorted(found)
    listed = [entry for path in sorted(tmp_path.glob("a-*.tar")) for entry in lost_items(path)]
    assert sorted(entry["item"] for entry in listed) == [3, 10, 17, 24, 31, 38]
    assert {(e["reason"], e["what"]) for e in listed} >= {("caption", "line 38: no text")}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_second_run_makes_what_is_missing_and_only_that(tmp_path: Path):
    make(tmp_path)
    whole = {path.name: path.read_bytes() for path in tmp_path.glob("a-*.tar")}
    (tmp_path / "a-00003.tar").unlink()
    made = make(tmp_path)
    assert (made.shards, made.new, made.items) == (8, 1, 5)
    assert made.lost == {"caption": 6}  # of all shards
    assert {path.name: path.read_bytes() for path in tmp_path.glob("a-*.tar")} == whole


def test_an_interruption_keeps_whole_shards_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    def finish(items: Any) -> Any:
        if (tmp_path / "a-00000.tar").exists():
            raise KeyboardInterrupt
        return [sample for made in items for sample in made]

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, finish=finish)
    assert "shards that are whole stay; the same command goes on" in capsys.readouterr().err
    assert make(tmp_path).new == 7


def slow(number: int) -> list[tuple[str, dict[str, Any]]]:
    time.sleep(0.02)
    return item(number)


def worker(folder: Path, rank: int, world: int) -> None:
    os.environ.update(RANK=str(rank % world), WORLD_SIZE=str(world))
    made = make(folder, work=slow)
    (folder / f"rank{rank}.json").write_text(json.dumps([made.new, made.missing, made.shards]))


@pytest.mark.parametrize("world", [1, 3])  # three that know of each other, and three that do not
def test_processes_share_out_the_shards(tmp_path: Path, world: int):
    make(tmp_path / "alone")
    folder = tmp_path / "together"
    folder.mkdir()
    ranks = range(3)
    processes = [fork.Process(target=worker, args=(folder, r, world)) for r in ranks]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    told = [json.loads((folder / f"rank{r}.json").read_text()) for r in ranks]
    assert sum(new for new, _, _ in told) == 8
    assert sum(new > 0 for new, _, _ in told) > 1
    assert all(missing + shards == 8 for _, missing, shards in told)
    assert any(missing == 0 for _, missing, _ in told)
    for path in (tmp_path / "alone").glob("a-*.tar*"):
        assert (folder / path.name).read_bytes() == path.read_bytes()


def kill_a_worker(folder: Path) -> None:
    """While it writes a shard."""
    process = fork.Process(target=worker, args=(folder, 0, 1))
    process.start()
    while not list(folder.glob(".a-*.part")):
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_a_killed_process_leaves_its_shard_to_others(tmp_path: Path):
    kill_a_worker(tmp_path)
    assert list(tmp_path.glob(".a-*.part"))
    made = make(tmp_path)
    assert (made.shards, made.missing) == (8, 0)
    assert not list(tmp_path.glob(".a-*.part"))
    assert Counter(labels(tmp_path)) == Counter([*KEPT, 0, 20, 30])


def test_a_shard_that_another_process_made_meanwhile_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It was not there when it was looked for, and is when the lock is had."""

    @contextmanager
    def late(path: Path, wait: bool) -> Iterator[bool]:
        path.touch()
        yield True

    monkeypatch.setattr(locks, "locked", late)
    with claim(tmp_path / "a.tar") as mine:
        assert not mine


def bad(numbers: range) -> Any:
    def work(number: int) -> list[tuple[str, dict[str, Any]]]:
        if number in numbers:
            raise CorruptSample("picture", f"picture {number}: broken")
        return item(number)

    return work


def test_too_much_damage_is_an_error_and_keeps_what_is_whole(tmp_path: Path):
    parts = Output(tmp_path, "a", per_shard=5).cut(shuffled(40, None), bad(range(20, 40)))
    said = r"numbers: 12 of 29 items cannot be used \(9 picture, 3 caption\); the last: picture"
    with pytest.raises(UserError, match=said):
        write_parts(parts, "a", "numbers", {}, most_lost=0.05)
    assert sorted(labels(tmp_path)) == sorted([*KEPT[:17], 0])


def test_damage_at_the_start_is_measured_by_the_whole_shard(tmp_path: Path):
    """Twelve bad ones of 200, and 27 elsewhere, are few, also where they come first."""
    parts = Output(tmp_path, "a", per_shard=200).cut(shuffled(200, None), bad(range(12)))
    made = write_parts(parts, "a", "numbers", {}, most_lost=0.15)
    assert made.lost == {"picture": 12, "caption": 27}


def test_settings_of_a_killed_run_that_made_nothing_do_not_bind(tmp_path: Path):
    kill_a_worker(tmp_path)
    assert list(tmp_path.glob(".a-*.lock"))
    for path in tmp_path.glob("a-*.tar*"):
        path.unlink()
    make(tmp_path, settings={"size": 8})


def test_a_full_disk_is_one_line(tmp_path: Path):
    refused = pytest.raises(UserError, match=r"a-00000\.tar: cannot be written \(File too large\)")
    with limited(resource.RLIMIT_FSIZE, 4000), refused:
        make(tmp_path)
    assert not list(tmp_path.glob(".a-*.part"))


def test_leftovers_are_ours_by_their_whole_names(tmp_path: Path):
    """What lies beside the shards of a job is removed only if a job of this host has left it."""
    host = socket.gethostname()
    ours = [f".a-00000.tar.{host}-{os.getpid()}-1.part", f".a-00003.tar.{host}-7.part"]
    others = [
        f".a-00000.tar.{host}-7-best.part", f".a-00000.tar.{host}-.part", ".a-00000.tar.x-7.part",
        "a-00000.tar.7.part", "a-notes.tar", "a.settings.json.bak",
        "lost/a-00000-notes.jsonl", "lost/notes.jsonl",
    ]  # fmt: skip
    (tmp_path / "lost").mkdir()
    for name in ours + others:
        (tmp_path / name).write_text("mine")
    make(tmp_path)
    assert not [name for name in ours if (tmp_path / name).exists()]
    assert all((tmp_path / name).read_text() == "mine" for name in others)
    assert not list(tmp_path.glob("**/.*.lock"))


@pytest.mark.parametrize("name", ["../a", "a/b", "", "a b", ".a", "a\n"])
def test_names_of_shards_stay_in_their_folder(tmp_path: Path, name: str):
    parts = Output(tmp_path / "out", name).cut(shuffled(4, 0), item)
    with pytest.raises(UserError, match="--name"):
        write_parts(parts, name, "numbers", {})


def test_other_settings_do_not_mix(tmp_path: Path):
    for _ in range(2):
        make(tmp_path, settings={"size": 256, "names": ["ä\udcff"]})  # of no UTF-8
    with pytest.raises(UserError, match=r"a-\*\.tar were .* other settings \(size: 256, now 8"):
        make(tmp_path, settings={"size": 8, "names": ["ä\udcff"]})
    (tmp_path / "a.settings.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.settings\.json: cannot be read"):
        make(tmp_path, settings={"size": 256})
    (tmp_path / "a.settings.json").unlink()
    with pytest.raises(UserError, match=r"already has shards a-\*\.tar of which nothing says how"):
        make(tmp_path, settings={"size": 256})
    with pytest.raises(UserError, match="there is nothing to read"):
        make(tmp_path / "b", count=0)
