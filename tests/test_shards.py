"""Tar shards: written whole, read by position, and no more lost than what is damaged."""

import multiprocessing
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import webdataset
from material import encoded, save, tar

from mmfusion.data_pipelines import index, storage
from mmfusion.data_pipelines.index import open_index
from mmfusion.data_pipelines.samples import Sample
from mmfusion.data_pipelines.shards import Shards, write_shard, write_shards
from mmfusion.errors import CorruptSample, UserError


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    samples = ((f"s{i}", {"json": {"label": i}, "png": encoded(i)}) for i in range(3))
    return write_shards(tmp_path / "shards", "a", samples)[0]


# Shards


def test_shards_read_back_what_was_written_and_have_the_same_bytes_each_time(tmp_path: Path):
    samples = [(f"s{i}", {"json": {"label": i}, "png": encoded(i)}) for i in range(5)]
    paths = write_shards(tmp_path / "one", "a", samples, per_shard=2)
    again = write_shards(tmp_path / "two", "a", samples, per_shard=2)
    assert [path.name for path in paths] == ["a-00000.tar", "a-00001.tar", "a-00002.tar"]
    assert [p.read_bytes() for p in paths] == [p.read_bytes() for p in again]
    shards = Shards(f"{tmp_path}/one/*.tar")
    assert [(s.json()["label"], s["png"]) for s in shards] == [(i, encoded(i)) for i in range(5)]
    assert shards.place(4) == (str(paths[2]), "s4")
    assert set(shards.sample(0, only=("json",))) == {"json"}


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path: Path):
    def samples():
        yield "s0", {"txt": b"fine"}
        raise UserError("no more")

    with pytest.raises(UserError, match="no more"):
        write_shards(tmp_path, "a", samples())
    assert not list(tmp_path.iterdir())


def test_a_shard_that_was_cut_later_is_known_by_its_index(shard: Path):
    """The index still says what there was: each sample behind the cut is counted as lost."""
    (entry,) = (m for m in open_index(str(shard)).sample(1)[1] if m.ext == "png")
    kept = Path(f"{shard}.index").read_bytes()
    shard.write_bytes(shard.read_bytes()[: entry.offset + 5])
    shards = Shards(str(shard))
    assert len(shards) == 3
    ((_, lost),) = shards.lost
    assert lost.reason == "shard"
    assert "it was cut short" in lost.what
    assert shards[0].json() == {"label": 0}
    for number in (1, 2):
        with pytest.raises(CorruptSample, match="differs from the shard's index"):
            shards[number]
    assert Path(f"{shard}.index").read_bytes() == kept


def test_a_truncated_shard_gives_what_is_before_the_cut(shard: Path):
    """Cut at every block: each sample before it is there, and something is said of the rest."""
    data = shard.read_bytes()
    whole = [(sample.where, dict(sample)) for sample in Shards(str(shard))]
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
    ends = [m.offset_data + -(-m.size // 512) * 512 for m in members]
    for cut in range(100, ends[-1] + 1, 512):
        shard.write_bytes(data[:cut])
        Path(f"{shard}.index").unlink(missing_ok=True)
        fit = sum(m.offset_data + m.size <= cut for m in members)
        if not fit:
            with pytest.raises(UserError, match=r"a-00000\.tar: not a tar file with samples"):
                Shards(str(shard))
            continue
        shards = Shards(str(shard))
        found = [(sample.where, dict(sample)) for sample in shards]
        assert sum(len(members) for _, members in found) == fit
        for (where, got), (place, full) in zip(found, whole, strict=False):
            assert where == place
            assert got.items() <= full.items()
        assert [lost.reason for _, lost in shards.lost] == ["shard"]
        assert "cut short" in shards.lost[0][1].what
    shard.write_bytes(data[: ends[-1] + 512])  # in the end mark: nothing is lost
    assert not Shards(str(shard)).lost


@pytest.mark.parametrize("broken", range(6))
def test_a_damaged_header_costs_what_lies_behind_it(shard: Path, broken: int):
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
    data = bytearray(shard.read_bytes())
    data[members[broken].offset + 5] ^= 0x10
    shard.write_bytes(data)
    assert sum(map(len, Shards(str(shard)))) == len(members)  # the index knows where they are
    Path(f"{shard}.index").unlink()
    what = f"bytes {members[broken].offset} to {len(data)} are lost"
    if not broken:
        with pytest.raises(UserError, match=what):
            Shards(str(shard))
        return
    shards = Shards(str(shard))
    assert [f"{s.key}.{ext}" for s in shards for ext in s] == [m.name for m in members[:broken]]
    ((_, lost),) = shards.lost
    assert (lost.reason, lost.what.partition(":")[0]) == ("shard", what)


@pytest.mark.parametrize("member", ["json", "png"])
def test_a_flipped_byte_is_found_and_the_sample_named(shard: Path, member: str):
    (entry,) = (m for m in open_index(str(shard)).sample(1)[1] if m.ext == member)
    data = bytearray(shard.read_bytes())
    data[entry.offset + entry.size // 2] ^= 1
    shard.write_bytes(data)
    shards = Shards(str(shard))
    assert shards[0].json() == {"label": 0}
    with pytest.raises(CorruptSample, match=rf"a-00000\.tar:s1\.{member}: differs") as caught:
        shards[1]
    assert caught.value.reason == "member"


def test_a_damaged_index_is_made_anew(shard: Path):
    path = Path(f"{shard}.index")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-40] ^= 1
    line = whole.partition(b"\n")[0]
    for broken in (b"", whole[:50], line, whole[:-1], flipped):
        path.write_bytes(broken)
        shards = Shards(str(shard))
        assert [s.json()["label"] for s in shards] == [0, 1, 2]
        assert path.read_bytes() == whole


def test_members_that_are_no_part_of_a_sample_are_passed_over(tmp_path: Path):
    members = [
        ("s0.txt", b"zero"),
        ("README", b"no extension"),
        (".hidden.txt", b"hidden"),
        ("__meta__.json", b"{}"),
        ("S0.TXT", b"another case is another key"),
        ("deep/er/s8.JPEG", b"x"),
        ("s9.pyd", b"import os"),
        ("caf\udce9.txt", b"a name that is not UTF-8"),
    ]
    shards = Shards(str(save(tmp_path / "a.tar", tar(members))))
    assert {sample.key: dict(sample) for sample in shards} == {
        "s0": {"txt": b"zero"},
        "S0": {"txt": b"another case is another key"},
        "deep/er/s8": {"jpeg": b"x"},
        "s9": {"pyd": b"import os"},
        "caf\\udce9": {"txt": b"a name that is not UTF-8"},
    }
    assert not shards.lost


def test_a_member_that_is_there_twice_is_lost_in_any_case_of_letters(tmp_path: Path):
    path = save(tmp_path / "a.tar", tar([("a.txt", b"1"), ("a.TXT", b"2"), ("b.TXT", b"3")]))
    shards = Shards(str(path))
    assert [dict(sample) for sample in shards] == [{"txt": b"1"}, {"txt": b"3"}]
    ((_, lost),) = shards.lost
    assert (lost.name, lost.reason) == ("a.TXT", "member")
    assert "there twice" in lost.what


def test_members_of_a_sample_need_not_lie_together(tmp_path: Path):
    big = bytes(200_000)
    members = [("a.txt", b"a"), ("b.bin", big), ("b.txt", b"b"), ("a.cls", b"1")]
    path = save(tmp_path / "a.tar", tar(members))
    first, second = Shards(str(path))
    assert dict(first) == {"txt": b"a", "cls": b"1"}
    assert dict(second) == {"bin": big, "txt": b"b"}


def test_webdataset_reads_our_shards_and_passes_over_their_header(tmp_path: Path):
    samples = [(f"s{i}", {"json": {"label": i}, "png": encoded(i)}) for i in range(3)]
    path = write_shard(tmp_path / "a.tar", samples, {"made": "by a test"})
    assert Shards(str(path)).header == {"made": "by a test"}
    theirs = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [(s["__key__"], s["png"]) for s in theirs] == [(f"s{i}", encoded(i)) for i in range(3)]


def test_shards_made_differently_do_not_mix(tmp_path: Path):
    for n in range(2):
        write_shard(tmp_path / f"a{n}.tar", [("s", {"txt": b"a"})], {"made": n})
    with pytest.raises(UserError, match="were made with different settings"):
        Shards(f"{tmp_path}/*.tar")


def test_a_block_whose_members_lie_far_apart_is_not_read_as_a_whole(tmp_path: Path, cache: Path):
    """A tar sorted by kind: the pictures first, the texts at its end."""
    import fsspec

    pictures = [(f"{n}.bin", bytes(100_000)) for n in range(20)]
    path = save(tmp_path / "a.tar", tar([*pictures, *((f"{n}.txt", b"a") for n in range(20))]))
    fsspec.filesystem("memory").pipe("/sorted/a.tar", path.read_bytes())
    shards = Shards("memory://sorted/a.tar")
    block = shards.block(0, 0, 2)
    assert not block.data
    assert dict(shards.read(0, 1, block=block)) == {"bin": bytes(100_000), "txt": b"a"}


def test_a_gap_in_braces_is_told(tmp_path: Path):
    write_shards(tmp_path, "a", [(f"s{i}", {"txt": b"a"}) for i in range(3)], per_shard=1)
    (tmp_path / "a-00001.tar").unlink()
    with pytest.raises(UserError, match=r"nothing matches .*a-00001\.tar \(1 of 3 parts\)"):
        Shards(f"{tmp_path}/a-{{00000..00002}}.tar")


def test_shards_by_braces_and_urls(tmp_path: Path, cache: Path):
    """Remote ones are read by fsspec; their indexes are kept in a cache."""
    import fsspec

    samples = [(f"s{i}", {"json": {"label": i}, "png": encoded(i)}) for i in range(6)]
    write_shards(tmp_path, "a", samples, per_shard=2)
    here = Shards(f"{tmp_path}/a-{{00000..00002}}.tar")
    assert len(here) == 6
    write_shard(tmp_path / "deep/er/a-00009.tar", samples[:1])
    assert len(Shards(f"{tmp_path}/**/a-*.tar")) == 7  # as fsspec reads it
    memory = fsspec.filesystem("memory")
    for path in tmp_path.glob("a-*.tar"):
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    memory.pipe("/bucket/a-00001.tar.index", Path(f"{tmp_path}/a-00001.tar.index").read_bytes())
    for pattern in ("memory://bucket/a-*.tar", "memory://bucket/a-{00000..00002}.tar"):
        away = Shards(pattern)
        assert [dict(sample) for sample in away] == [dict(sample) for sample in here]
        block = away.block(1, 0, 2)
        assert dict(away.read(1, 1, block=block)) == dict(here[3])
    assert len(list(cache.iterdir())) == 3
    with pytest.raises(UserError, match="no shards match memory://none"):
        Shards("memory://none/*.tar")
    with pytest.raises(UserError, match="cannot be reached"):
        Shards("nosuch://bucket/a.tar")


def test_remote_shards_through_a_cache_and_over_a_bad_line(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    """fsspec's caches stay in the names; a read that fails is tried again."""
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr(storage, "PAUSES", (0.0, 0.0))
    (shard,) = write_shards(tmp_path, "a", [("s", {"txt": b"hello"})])
    MemoryFileSystem().pipe("/line/a.tar", shard.read_bytes())
    shards = Shards("simplecache::memory://line/*.tar")
    assert shards.paths == ["simplecache::memory:///line/a.tar"]
    assert dict(shards[0]) == {"txt": b"hello"}
    shards = Shards("memory://line/*.tar")
    failures = iter([True, True, False, True, True, True])
    whole = MemoryFileSystem.cat_file

    def cat_file(self: Any, *arguments: Any, **options: Any) -> bytes:
        if next(failures):
            raise TimeoutError("no answer")
        return whole(self, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    assert dict(shards[0]) == {"txt": b"hello"}
    with pytest.raises(CorruptSample, match=r"cannot be read \(no answer\)"):
        shards[0]


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_what_is_not_there_is_not_waited_for(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
):
    from fsspec.implementations.memory import MemoryFileSystem

    (shard,) = write_shards(tmp_path, "a", [("s", {"txt": b"hello"})])
    MemoryFileSystem().pipe("/gone/a.tar", shard.read_bytes())
    shards = Shards("memory://gone/a.tar")
    paused: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", paused.append)

    def cat_file(*_: Any, **options: Any) -> bytes:
        raise error("a.tar")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    with pytest.raises(CorruptSample, match=r"a\.tar"):
        shards[0]
    assert not paused


def test_an_index_goes_to_the_cache_where_one_may_not_write(shard: Path, cache: Path):
    beside = Path(f"{shard}.index")
    beside.unlink()
    beside.mkdir()  # nobody, root neither, can put a file there
    (beside / "full").touch()
    assert [s.json()["label"] for s in Shards(str(shard))] == [0, 1, 2]
    (kept,) = cache.iterdir()
    stamp = kept.stat().st_mtime_ns
    Shards(str(shard))[0]
    assert kept.stat().st_mtime_ns == stamp


def test_without_a_cache_an_index_lies_beside_its_shard(
    shard: Path, monkeypatch: pytest.MonkeyPatch
):
    """As where the system is read-only, and one volume is not."""

    def nowhere() -> Path:
        raise UserError("the temporary folder: cannot be used")

    monkeypatch.setattr(storage, "cache_folder", nowhere)
    Path(f"{shard}.index").unlink()
    assert len(Shards(str(shard))) == 3
    Path(f"{shard}.index").write_text("another program's")
    with pytest.raises(UserError, match="MMFUSION_CACHE"):
        Shards(str(shard))


def test_one_process_makes_an_index_and_others_wait_for_it(
    shard: Path, monkeypatch: pytest.MonkeyPatch
):
    Path(f"{shard}.index").unlink()
    fork = multiprocessing.get_context("fork")
    made = fork.Value("i", 0)
    whole = index.scan

    def scan(*arguments: Any) -> Any:
        with made.get_lock():
            made.value += 1
        time.sleep(0.3)
        return whole(*arguments)

    monkeypatch.setattr(index, "scan", scan)
    processes = [fork.Process(target=Shards, args=(str(shard),)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert made.value == 1
    assert not list(shard.parent.glob(".*"))


def test_what_stands_beside_shards_is_none(tmp_path: Path):
    write_shards(tmp_path, "a", [("s", {"txt": b"a"})])
    (tmp_path / "a.settings.json").write_text("{}")
    (tmp_path / "lost").mkdir()
    shards = Shards(f"{tmp_path}/*")
    assert (len(shards), shards.lost) == (1, [])


def test_commands_are_not_run(tmp_path: Path):
    trace = tmp_path / "ran"
    for pattern in (f"pipe:touch {trace}", f" pipe:touch {trace} #.tar"):
        with pytest.raises(UserError, match="commands are not run"):
            Shards(pattern)
    assert not trace.exists()


def test_missing_shards_and_what_is_no_shard_are_named(tmp_path: Path, shard: Path):
    with pytest.raises(UserError, match=r"no shards match .*none-\*\.tar; run this"):
        Shards(f"{tmp_path}/none-*.tar", "run this")
    with pytest.raises(UserError, match=rf"no shards match .*; {shard.parent} has .*{shard.name}"):
        Shards(str(shard).replace(".tar", ".tra"))
    save(tmp_path / "b.tar", b"not a tar file")
    with pytest.raises(UserError, match=r"b\.tar: not a tar file with samples"):
        Shards(f"{tmp_path}/b.tar")
    shards = Shards(str(shard))
    shard.unlink()
    with pytest.raises(UserError, match=r"a-00000\.tar: cannot be read"):
        shards[0]


def test_a_webdataset_of_txt_and_cls_members_is_read_as_it_is():
    sample = Sample({"txt": "ein Hund \u2028".encode(), "cls": b"\xef\xbb\xbf7"}, "here")
    assert sample.json() == {"captions": ["ein Hund \u2028"], "label": 7}
    marked = Sample({"txt": "\ufeffein Hund".encode(), "json": b"\xef\xbb\xbf{}"}, "here")
    assert marked.json() == {"captions": ["ein Hund"]}
    both = Sample({"json": b'{"captions": ["a"], "label": 1}', "txt": b"b", "cls": b"2"}, "here")
    assert both.json() == {"captions": ["a"], "label": 1}
    with pytest.raises(UserError, match=r"here\.cls"):
        Sample({"cls": b"seven"}, "here").json()


# Names


@pytest.mark.parametrize("name", ["a [1]", "b {x,y}", "c*", "d?", "e{1", "f]", "g::h"])
def test_what_is_there_is_meant_by_its_name(tmp_path: Path, name: str):
    folder = tmp_path / name / "data"
    samples = [(f"s{i}", {"txt": b"a"}) for i in range(4)]
    write_shards(folder, f"{name}-t", samples, per_shard=1)
    for pattern, count in (("*.tar", 4), (f"{name}-t-00002.tar", 1), ("*-{00000..00002}.tar", 3)):
        assert len(Shards(f"{folder}/{pattern}")) == count
    assert storage.expand(f"file://{folder}/{name}-t-00002.tar")
    assert storage.expand(str(folder)) == [str(folder)]


def test_numbers_in_names_are_in_the_order_of_their_values(tmp_path: Path):
    for number in (10, 9, 2, 100):
        write_shards(tmp_path / f"part{number % 2}", f"v{number}", [("s", {"txt": b"a"})])
    found = [path[len(str(tmp_path)) :] for path in storage.expand(f"{tmp_path}/*/v*.tar")]
    assert found == [
        "/part0/v2-00000.tar", "/part0/v10-00000.tar", "/part0/v100-00000.tar",
        "/part1/v9-00000.tar",
    ]  # fmt: skip
