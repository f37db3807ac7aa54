"""`mmfusion data verify` finds what was damaged, and nothing else."""

import gzip
import io
import json
import logging
import shutil
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from material import REAL, encoded, npy, run, save

from mmfusion.data_pipelines.index import open_index
from mmfusion.data_pipelines.inspection.verification import FIRST, verify
from mmfusion.data_pipelines.shards import write_shard, write_shards
from mmfusion.data_pipelines.tar_index import scan
from mmfusion.errors import UserError

GREYMAP = b"Pf 2 2 1.0\n" + bytes(16)  # 32 bits a pixel
MOMENTS = np.ones((1, 2, 4, 2, 2), np.float16)
CONTENT = [{"image": "0.png"}, {"text": "then"}, {"answer": "b"}]
CONTENT += [{"image": "1.jpg", "target": True}]
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("class", {"json": {"label": 3, "other": None}, "png": encoded(0)}),
    ("words", {"json": {"captions": ["a dog", " "]}, "jpg": encoded(1, "jpeg")}),
    ("plain", {"txt": b"a cat", "cls": b"4", "webp": encoded(2, "webp"), "bin": b"\0"}),
    ("latent", {"json": {"label": 0}, "moments.npy": npy(MOMENTS)}),
    ("mixed", {"json": {"content": CONTENT}, "0.png": encoded(3), "1.moments.npy": npy(MOMENTS)}),
    ("told", {"json": {"content": [{"text": "a"}, {"answer": "b"}]}}),
    ("alone", {"png": encoded(4)}),
]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_shard(tmp_path / "s/a.tar", GOOD)


def flip(path: Path, key: str, ext: str) -> None:
    """Change one byte of a member."""
    index = open_index(str(path))
    found = dict(map(index.sample, range(len(index))))
    (member,) = (m for m in found[key] if m.ext == ext)
    data = bytearray(path.read_bytes())
    data[member.offset + member.size // 2] ^= 1
    path.write_bytes(data)


def test_sound_shards_of_all_kinds_are_well(shard: Path):
    report = verify([str(shard)])
    assert (report.shards, report.samples, report.members) == (1, 7, 15)
    assert report.bytes == shard.stat().st_size
    assert not report.damaged
    assert report.indexes == {"there": 1}


DAMAGED: list[tuple[str, str, dict[str, Any]]] = [
    ("json", "not valid JSON", {"json": b"{", "png": encoded(0)}),
    ("label", "`label` is '3'", {"json": {"label": "3"}, "png": encoded(0)}),
    ("label", "expected the number of a class", {"cls": b"x", "png": encoded(0)}),
    ("caption", "must be a list of strings", {"json": {"captions": "a"}, "png": encoded(0)}),
    ("content", "content 0 is {'txt': 'a'}", {"json": {"content": [{"txt": "a"}]}}),
    (
        "picture",
        "no picture 0.png in this sample (it has the members 1.png, json: a name is cut",
        {"json": {"content": [{"image": "0.png"}]}, "1.png": encoded(0)},
    ),
    (
        "picture",
        "no picture in this sample (it has the members gif, txt; pictures are png, jpg",
        {"gif": encoded(0, "gif"), "txt": b"a"},
    ),
    ("picture", "no picture in this sample", {"json": {"label": 1}}),
    ("picture", "bad.png: not a readable picture", {"json": {"label": 1}, "png": encoded(0)[:90]}),
    ("picture", "bad.1.jpg: not a readable picture", {"1.jpg": b"no"}),
    ("picture", "bad.png: pictures of mode F have", {"png": GREYMAP}),
    ("latents", "not a plain array", {"moments.npy": b"no"}),
    ("latents", "not finite", {"0.moments.npy": npy(MOMENTS * np.float16("inf"))}),
]


@pytest.mark.parametrize(("reason", "what", "members"), DAMAGED)
def test_each_damage_has_its_reason_and_is_found_alone(
    tmp_path: Path, reason: str, what: str, members: dict[str, Any]
):
    path = write_shard(tmp_path / "a.tar", [*GOOD, ("bad", members)])
    report = verify([str(path)])
    assert report.damaged == {reason: 1}
    assert what in report.first(reason)[0]
    assert f"{path}:bad" in report.first(reason)[0]
    assert not verify([str(path)], quick=True).damaged


def test_changed_bytes_are_found_also_two_in_one_sample(shard: Path):
    flip(shard, "mixed", "0.png")
    flip(shard, "mixed", "json")
    flip(shard, "words", "jpg")
    for quick in (False, True):
        report = verify([str(shard)], quick=quick)
        assert report.damaged == {"member": 3}
        assert sorted(told.partition(": ")[0] for told in report.first("member")) == [
            f"{shard}:{name}" for name in ("mixed.0.png", "mixed.json", "words.jpg")
        ]
    assert verify([str(shard)], quick=True, reindex=True).damaged == {}  # changed on purpose
    assert "member" not in verify([str(shard)]).damaged


def test_more_findings_of_one_sample_are_all_told(tmp_path: Path):
    members = {"json": {"label": "a", "captions": [1]}, "png": b"no", "moments.npy": b"no"}
    path = write_shard(tmp_path / "a.tar", [("s", members)])
    assert verify([str(path)]).damaged == {"label": 1, "caption": 1, "picture": 1, "latents": 1}


@pytest.mark.parametrize("indexed", [True, False])
def test_a_truncated_shard(shard: Path, indexed: bool, caplog: pytest.LogCaptureFixture):
    with tarfile.open(shard) as tar:
        last = tar.getmember("mixed.1.moments.npy")
    shard.write_bytes(shard.read_bytes()[: last.offset_data + 10])
    if not indexed:
        Path(f"{shard}.index").unlink()
    with caplog.at_level(logging.WARNING):
        report = verify([str(shard)])
    # An index of before still knows what there was behind the cut.
    assert report.damaged == ({"shard": 1, "member": 4} if indexed else {"shard": 1})
    assert f"{shard}:mixed.1.moments.npy: it is cut short" in report.first("shard")[0]
    assert report.indexes == {"there" if indexed else "made": 1}
    assert "did not fit its shard" not in caplog.text


def test_a_damaged_header_that_the_index_still_knows(shard: Path):
    with tarfile.open(shard) as tar:
        at = tar.getmember("plain.cls").offset
    data = bytearray(shard.read_bytes())
    data[at + 5] ^= 0x10
    shard.write_bytes(data)
    report = verify([str(shard)])
    assert report.damaged == {"shard": 1}
    assert f"bytes {at} to {len(data)} are lost" in report.first("shard")[0]


def test_members_that_the_index_does_not_know(tmp_path: Path, shard: Path):
    fewer = write_shard(tmp_path / "s/b.tar", GOOD[:-1])
    index, size = Path(f"{fewer}.index").read_bytes(), fewer.stat().st_size
    Path(f"{shard}.index").write_bytes(
        index.replace(b'"bytes": %d' % size, b'"bytes": %d' % shard.stat().st_size)
    )
    report = verify([str(shard)])
    assert report.damaged == {"member": 1}
    assert report.first("member") == [
        f"{shard}:alone.png: not in the shard's index; if the shard was changed on purpose, verify "
        "it with --reindex"
    ]
    assert not verify([str(shard)], reindex=True).damaged


@pytest.mark.parametrize("left", [0, 10, 200])
def test_a_missing_or_damaged_index_is_made(
    shard: Path, left: int, caplog: pytest.LogCaptureFixture
):
    index = Path(f"{shard}.index")
    whole = index.read_bytes()
    index.write_bytes(whole[:left])
    with caplog.at_level(logging.WARNING):
        assert verify([str(shard)]).indexes == {"made anew": 1}
    assert f"{index}: did not fit its shard and has been made anew" in caplog.text
    index.unlink()
    assert verify([str(shard)]).indexes == {"made": 1}
    assert index.read_bytes() == whole


def test_what_is_no_tar_and_what_does_not_belong_together(tmp_path: Path, shard: Path):
    no_tar = save(tmp_path / "s/b.tar", b"not a tar file")
    report = verify([str(shard), str(no_tar)])
    assert (report.shards, report.samples, report.damaged) == (2, 7, {"shard": 1})
    assert f"shard {no_tar}: not a tar file with samples" in report.first("shard")[0]
    no_tar.write_bytes(gzip.compress(shard.read_bytes()))
    assert "by gzip: unpack it" in verify([str(no_tar)]).first("shard")[0]
    no_tar.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    assert "git lfs pull" in verify([str(no_tar)]).first("shard")[0]
    no_tar.unlink()
    other = write_shard(tmp_path / "s/c.tar", GOOD, {"made": "otherwise"})
    assert not verify([str(shard), str(other)]).damaged  # two patterns: two kinds
    report = verify([f"{tmp_path}/s/*.tar"])
    assert report.damaged == {"shard": 1}
    assert f"{other} and {shard} were made with different settings" in report.first("shard")[0]


@pytest.mark.parametrize("kind", [b"x", b"g", b"X", b"L", b"K"])
@pytest.mark.parametrize("size", [200_000_000, -1024])
def test_a_huge_extended_header_is_not_read_into_memory(tmp_path: Path, kind: bytes, size: int):
    path = write_shard(tmp_path / "a.tar", GOOD)
    long = tarfile.TarInfo("long")
    long.type, long.size = kind, size
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset
    data = path.read_bytes()
    with path.open("wb") as file:  # the file has a hole, which takes no place on the disk
        file.write(data[:end] + long.tobuf(tarfile.GNU_FORMAT))
        file.seek(max(size, 0), io.SEEK_CUR)
        file.write(data[end:])
    tracemalloc.start()
    found = scan(str(path), digests=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000
    assert [lost.reason for lost in found.lost] == ["shard"]
    assert f"bytes {end} to {path.stat().st_size} are lost" in found.lost[0].what
    assert f"(an extended header of {size:,} bytes)" in found.lost[0].what
    assert list(found.samples) == [key for key, _ in GOOD[:-1]]


def test_remote_shards(shard: Path, cache: Path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/verified/a.tar", shard.read_bytes())
    assert not verify(["memory://verified/*.tar"]).damaged
    flip(shard, "class", "png")
    memory.pipe("/verified/a.tar", shard.read_bytes())
    report = verify(["memory://verified/{a..a}.tar"])
    assert report.damaged == {"member": 1}
    assert "verified/a.tar:class.png: differs" in report.first("member")[0]


# The command


def test_exit_codes_report_and_list(
    tmp_path: Path, shard: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("data", "verify", shard) == 0
    said = capsys.readouterr().out
    assert "looked at 1 shards: 7 samples, 15 members" in said
    assert said.splitlines()[-1] == "all is well"
    bad = write_shard(tmp_path / "s/b.tar", [(f"k{n}", {"png": b"no"}) for n in range(FIRST + 2)])
    listing = tmp_path / "lists/all.json"
    assert run("data", "verify", shard, bad, "--json", listing) == 1
    said = capsys.readouterr().out
    assert f"damaged, picture: {FIRST + 2}" in said
    assert said.count("not a readable picture") == FIRST
    assert "  and 2 more" in said
    told = json.loads(listing.read_text())
    assert [entry["reason"] for entry in told["findings"]] == ["picture"] * (FIRST + 2)
    assert {entry["shard"] for entry in told["findings"]} == {str(bad)}
    assert (told["shards"], told["damaged"]) == (2, {"picture": FIRST + 2})
    assert run("data", "verify", shard, bad, "--quick") == 0
    assert run("data", "verify", f"{tmp_path}/none-*.tar") == 2
    assert "no shards match" in capsys.readouterr().err
    with pytest.raises(UserError, match="commands are not run"):
        verify(["pipe:true"])


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize("name", ["imagenet_100/imagenet_100", "noto_emoji/noto_emoji_72"])
def test_real_shards_are_well(tmp_path: Path, name: str):
    path = shutil.copy(REAL / f"{name}.tar", tmp_path / "a.tar")
    report = verify([str(path)])
    assert report.samples >= 100
    assert not report.damaged


TABLE = {"jpg": encoded(0), "json": {"label": 1}}
USELESS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "keys with dots": [(f"photo.v{n}", TABLE) for n in range(3)],
    "other names": [(f"{n}", {"input.jpg": encoded(0), "caption.txt": b"a"}) for n in range(3)],
    "a caption that nobody finds": [(n, {"png": encoded(0), "caption.txt": b"a"}) for n in "ab"],
    "facts that nobody knows": [("s", {"json": {}, "png": encoded(0)})],
    "facts alone": [(f"{n}", {"json": {"url": "x"}, "mp4": b"a"}) for n in range(3)],
}


@pytest.mark.parametrize("name", USELESS)
@pytest.mark.parametrize("quick", [False, True])
def test_shards_that_no_task_can_read_are_not_well(tmp_path: Path, name: str, quick: bool):
    path = write_shard(tmp_path / "a.tar", USELESS[name])
    report = verify([str(path)], quick)
    assert report.damaged == {"shard": 1}
    (told,) = report.first("shard")
    key = USELESS[name][0][0].partition(".")[0]
    assert f"the first, {key}, has {key}." in told
    assert "first dot" in told
    if not quick:
        assert run("data", "captions", path, "-o", tmp_path / "out") == 2


def test_a_shard_of_no_samples_is_not_well_alone_and_keeps_its_index(tmp_path: Path, shard: Path):
    empty = write_shard(tmp_path / "a.tar", [])
    for _ in range(2):
        report = verify([str(empty)])
        assert (report.damaged, report.indexes) == ({"shard": 1}, {"there": 1})
        assert "hold no samples" in report.first("shard")[0]
    assert not verify([str(empty), str(shard)]).damaged


def test_shards_of_one_good_sample_and_of_pictures_alone_are_well(tmp_path: Path):
    mixed = [*USELESS["other names"], ("good", {"png": encoded(0), "cls": b"1"})]
    for n, samples in enumerate((mixed, [(f"{n}", {"png": encoded(0)}) for n in range(3)])):
        assert not verify([str(write_shard(tmp_path / f"{n}.tar", samples))]).damaged


def test_a_folder_is_told_how_its_shards_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path, "a", GOOD)
    with pytest.raises(UserError, match=r"is a folder.*\*\.tar"):
        verify([str(tmp_path)])


def test_damage_alone_is_not_taken_for_samples_of_no_use(tmp_path: Path):
    path = write_shard(tmp_path / "a.tar", [("a", {"json": b"{", "png": encoded(0)})])
    assert verify([str(path)]).damaged == {"json": 1}
