"""Pictures with captions to shards: tables, parquet files and tars as people have them."""

import gzip
import json
import logging
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pytest
from material import encoded, jsonl, pixels, run, save
from pyarrow import parquet

from mmfusion.data_pipelines.converters.annotations import Wanted
from mmfusion.data_pipelines.converters.captions import write_captions
from mmfusion.data_pipelines.shard_writer import Made, Output, lost_items
from mmfusion.data_pipelines.shards import Shards, write_shards
from mmfusion.errors import UserError

JPEGS = {f"{name}.jpg": encoded(n, "jpeg") for n, name in enumerate("abcdef")}
NAMES = sorted(JPEGS)
ANY = Wanted()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, data in JPEGS.items():
        save(tmp_path / "pictures" / name, data)
    return tmp_path / "pictures"


def convert(
    source: Any, folder: Path, wanted: Wanted = ANY, key: str | None = None, **shards: Any
) -> Made:
    return write_captions(source, Output(folder, **shards), wanted, key)


def made(folder: Path) -> dict[str, list[str]]:
    """Captions of each picture in the shards of a folder, by the picture's name."""
    names = {data: name for name, data in JPEGS.items()}
    samples = Shards(f"{folder}/train-*.tar")
    return {names[sample["jpg"]]: sample.json()["captions"] for sample in samples}


def lost(folder: Path, shard: int = 0) -> list[str]:
    return [entry["what"] for entry in lost_items(folder / f"train-{shard:05d}.tar")]


# Tables


def test_captions_become_shards_and_bad_lines_are_counted(tmp_path: Path):
    save(tmp_path / "pictures/a.jpg", encoded(0, "jpeg"))
    save(tmp_path / "pictures/b.bmp", encoded(1, "bmp"))
    lines = jsonl(
        tmp_path / "list.jsonl",
        {"image": "pictures/a.jpg", "captions": ["a \u2028 dog", " ", "ein Hund"], "label": 3},
        {"image": "pictures/b.bmp", "caption": "a cat"},
        "",
        "{not json",
        "[1]",
        {"image": "pictures/a.jpg"},
        {"image": "pictures/a.jpg", "caption": "  "},
        {"image": "pictures/a.jpg", "captions": ["a", 1]},
        {"image": "pictures/a.jpg", "caption": "a", "label": "3"},
        {"image": "pictures/none.jpg", "caption": "a"},
        {"image": "pictures/\0.jpg", "caption": "a"},
        {"caption": "a"},
    )
    made = convert(lines, tmp_path / "out", seed=None)
    first, second = Shards(f"{tmp_path}/out/*.tar")
    assert first.json() == {"captions": ["a \u2028 dog", "ein Hund"], "label": 3}
    assert first["jpg"] == encoded(0, "jpeg")
    assert second.json() == {"captions": ["a cat"]}
    assert np.array_equal(np.asarray(second.picture()), pixels(1))  # a BMP becomes a PNG
    assert made.lost == {"json": 2, "caption": 3, "label": 1, "picture": 3}
    assert all(f"list.jsonl:{n}: " in what for n, what in enumerate(lost(tmp_path / "out"), 4))


TWO = {"a.jpg": ["a dog", "a brown dog"], "b.jpg": ["a cat"]}
FORMS = {
    "a.csv": 'image,caption\na.jpg,a dog\nb.jpg,"a cat"\na.jpg,a brown dog\n',
    "kaggle.txt": "image,caption\na.jpg,a dog\nb.jpg,a cat\na.jpg,a brown dog\n",
    "results.csv": (
        "image_name| comment_number| comment\na.jpg| 0|a dog\na.jpg| 1|a brown dog\n"
        "b.jpg| 0|a cat\n"
    ),
    "a.tsv": "\ufefffilepath\tTEXT\tother\na.jpg\ta dog\t1\nb.jpg\ta cat\t2\n"
             "a.jpg\ta brown dog\t3\n",
    "Flickr8k.token.txt": "a.jpg#0\ta dog\na.jpg#1\ta brown dog\nb.jpg#0\ta cat\n",
    "headless.csv": "a.jpg\ta dog\na.jpg\ta brown dog\nb.jpg\ta cat\n",
    "results.token": "a.jpg#0\ta dog\na.jpg#1\ta brown dog\nb.jpg#0\ta cat\n",
    "raw.csv": 'raw,filename\n"[""a dog"", ""a brown dog""]",a.jpg\na cat,b.jpg\n',
    "list.json": json.dumps([{"file": "a.jpg", "text": ["a dog", "a brown dog"]},
                             {"file": "b.jpg", "text": "a cat"}]),
    "lines.json": '{"path": "a.jpg", "caption": "a dog"}\n{"path": "b.jpg", "caption": "a cat"}\n'
                  '{"path": "a.jpg", "caption": "a brown dog"}\n',
    "coco.json": json.dumps({
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg"}],
        "annotations": [{"image_id": 7, "caption": "a dog"}, {"image_id": 9, "caption": "a cat"},
                        {"image_id": 7, "caption": "a brown dog"}],
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("packed", [False, True])
def test_each_form_of_a_table_joins_the_captions_of_a_picture(
    pictures: Path, tmp_path: Path, name: str, packed: bool
):
    data = FORMS[name].encode()
    path = tmp_path / f"lists/{name}{'.gz' if packed else ''}"
    save(path, gzip.compress(data) if packed else data)
    convert(path, tmp_path / "out", Wanted(pictures))
    assert made(tmp_path / "out") == TWO


def test_a_bad_row_is_named_by_its_line(pictures: Path, tmp_path: Path):
    """Also behind a cell of several lines."""
    rows = 'path,caption\na.jpg,"two\n\nlines"\nb.jpg,a,b\nc.jpg,\n'
    save(tmp_path / "t.csv", rows.encode())
    convert(tmp_path / "t.csv", tmp_path / "out", Wanted(pictures), most_lost=1.0)
    assert made(tmp_path / "out") == {"a.jpg": ["two\n\nlines"]}
    told = " ".join(lost(tmp_path / "out"))
    assert "t.csv:5: has 3 columns" in told
    assert "t.csv:6: the captions hold no text" in told


@pytest.mark.parametrize("listed", [False, True])
def test_parquet_with_paths_in_one_or_many_files(pictures: Path, tmp_path: Path, listed: bool):
    rows = [("a.jpg", "a dog", 1), ("b.jpg", "a cat", None), ("a.jpg", "a brown dog", 1)]
    for number, some in enumerate((rows[:2], rows[2:])):
        images, captions, labels = zip(*some, strict=True)
        table = {"image_path": images, "label": pa.array(labels, pa.int32()),
                 "caption": [[c] for c in captions] if listed else captions}  # fmt: skip
        parquet.write_table(pa.table(table), tmp_path / f"t-{number}.parquet")
    source = f"{tmp_path}/t-*.parquet"
    assert run("data", "captions", source, "--images", pictures, "-o", tmp_path / "out") == 0
    assert made(tmp_path / "out") == TWO
    labels = [s.json().get("label") for s in Shards(f"{tmp_path}/out/*.tar")]
    assert sorted(labels, key=str) == [1, None]


def test_karpathys_splits_are_taken_by_name(pictures: Path, tmp_path: Path):
    images = [
        {"filename": f"{name}.jpg", "filepath": "pictures", "split": split,
         "sentences": [{"raw": f"{name} one", "tokens": []}, {"raw": f"{name} two"}]}
        for name, split in zip("abcd", ("train", "restval", "val", "train"), strict=True)
    ]  # fmt: skip
    path = save(tmp_path / "dataset_coco.json", json.dumps({"images": images}).encode())
    command = ("data", "captions", path, "--split", "train", "-o")
    assert run(*command, tmp_path / "train") == 0
    assert made(tmp_path / "train") == {"a.jpg": ["a one", "a two"], "d.jpg": ["d one", "d two"]}
    assert run(*command, tmp_path / "more", "--split", "restval") == 0
    assert sorted(made(tmp_path / "more")) == ["a.jpg", "b.jpg", "d.jpg"]
    plain = save(tmp_path / "a.csv", b"image,caption\na.jpg,a\n")
    lines = jsonl(tmp_path / "t.jsonl", {"image": "a.jpg", "caption": "a"})
    for table, splits, told in (
        (path, (), "--split train"),
        (path, ("train", "tset"), "split tset; it has restval, train, val"),
        (plain, ("train",), "which column holds the split"),
        (lines, ("train",), "no rows of the split train; it has no splits"),
    ):
        with pytest.raises(UserError, match=told):
            convert(table, tmp_path / "out", Wanted(splits=splits))


def test_columns_are_named_where_they_are_unusual(pictures: Path, tmp_path: Path):
    path = save(tmp_path / "odd.csv", b"where,says\npictures/a.jpg,a dog\n")
    for wanted, told in ((ANY, "It has where, says; .*--image-column"),
                         (Wanted(image="where"), "--caption-column")):  # fmt: skip
        with pytest.raises(UserError, match=told):
            convert(path, tmp_path / "out", wanted)
    command = ("data", "captions", path, "--image-column", "where", "--caption-column", "says")
    assert run(*command, "-o", tmp_path / "out") == 0
    assert made(tmp_path / "out") == {"a.jpg": ["a dog"]}


def test_bad_entries_of_json_are_told(pictures: Path, tmp_path: Path):
    coco = {
        "images": [{"id": 1, "file_name": "a.jpg"}, "odd", {"id": [2]}, {"id": 3}],
        "annotations": [{"image_id": 1, "caption": "a \ud800 dog"}, 5, {"image_id": [1]},
                        {"image_id": 3, "caption": "x"}, {"image_id": 1, "caption": 7}],
    }  # fmt: skip
    path = save(tmp_path / "coco.json", json.dumps(coco).encode())
    counts = convert(path, tmp_path / "out", Wanted(pictures), seed=None).lost
    assert counts == {"json": 1, "caption": 2, "picture": 1}
    assert made(tmp_path / "out") == {"a.jpg": ["a ? dog"]}
    assert lost(tmp_path / "out")[0] == f"{path}: row 2: expected a JSON object"


UTF16 = '{"image": "a.jpg", "caption": "ä"}\n'.encode("utf-16")


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.json", b"{", r"a\.json: not valid JSON"),
        ("a.json", b'{"a": 1}', r"a\.json: .*`images`"),
        ("a.csv", b"", r"a\.csv: .*image"),
        ("a.csv", b"image,caption\n", "nothing to read"),
        ("a.parquet", b"PAR1", r"a\.parquet: cannot be read"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz: cannot be read"),
        ("a.csv.gz", b"no gzip", r"a\.csv\.gz: cannot be read"),
        ("a.jsonl", b"\n", r"a\.jsonl: holds no lines"),
        ("a.xlsx", b"", r"a\.xlsx: .*\.jsonl"),
        ("a.csv", UTF16, r"a\.csv: is UTF-16"),
        ("a.jsonl.gz", gzip.compress(UTF16, mtime=0), r"a\.jsonl\.gz: is UTF-16"),
        ("b.csv", b"", r"a\.\*: no such file"),
        ("a.d/b", b"", r"a\.\*: is a folder"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, name: str, data: bytes, told: str):
    save(tmp_path / name, data)
    with pytest.raises(UserError, match=told):
        convert(f"{tmp_path}/a.*", tmp_path / "out")


# Paths of pictures


def test_odd_paths_lose_their_row_alone(pictures: Path, tmp_path: Path):
    os.mkfifo(pictures / "pipe.jpg")
    odd = ["\0", "x" * 5000, ".", "pipe.jpg", "/dev/zero", "\ud800", "~", "a.jpg/b.jpg"]
    lines = [{"image": path, "caption": "odd"} for path in odd]
    path = jsonl(pictures / "list.jsonl", {"image": "a.jpg", "caption": "a dog"}, *lines)
    assert convert(path, tmp_path / "out").lost == {"picture": len(odd)}
    assert made(tmp_path / "out") == {"a.jpg": ["a dog"]}


def test_paths_lead_anywhere_unless_a_folder_is_named(pictures: Path, tmp_path: Path):
    secret = save(tmp_path / "secret.jpg", JPEGS["f.jpg"])
    paths = [str(pictures / "a.jpg"), "../secret.jpg", str(secret)]
    path = jsonl(pictures / "l.jsonl", *({"image": p, "caption": "x"} for p in paths))
    convert(path, tmp_path / "free")
    assert sorted(made(tmp_path / "free")) == ["a.jpg", "f.jpg"]
    assert convert(path, tmp_path / "kept", Wanted(pictures)).lost == {"picture": 1}
    assert sorted(made(tmp_path / "kept")) == ["a.jpg"]
    assert "leads out of" in lost(tmp_path / "kept")[0]


@pytest.mark.parametrize("bound", [False, True])
def test_one_picture_has_one_path(pictures: Path, tmp_path: Path, bound: bool):
    shutil.copy(pictures / "b.jpg", pictures / "b c.jpg")
    shutil.copy(pictures / "d.jpg", pictures / normalize("NFD", "é.jpg"))  # as macOS names it
    names = ["a.jpg", "./a.jpg", ".\\a.jpg", "x//../a.jpg", str(pictures / "a.jpg"), "b%20c.jpg"]
    names += [" a.jpg ", "é.jpg", "é.jpg"]
    rows = [{"image": name, "caption": f"caption {n}"} for n, name in enumerate(names)]
    rows.append({"image": "A.jpg", "caption": "other case"})
    rows.append({"image": "link/../c.jpg", "caption": "inside"})  # by the link: elsewhere/c.jpg
    table = jsonl(pictures / "list.jsonl", *rows)
    save(tmp_path / "elsewhere/c.jpg", JPEGS["d.jpg"])
    (tmp_path / "elsewhere/deep").mkdir()
    os.symlink(tmp_path / "elsewhere/deep", pictures / "link")
    counts = convert(table, tmp_path / "out", Wanted(pictures if bound else None)).lost
    assert made(tmp_path / "out") == {
        "a.jpg": [f"caption {n}" for n in (*range(5), 6)], "b.jpg": ["caption 5"],
        "c.jpg": ["inside"], "d.jpg": ["caption 7", "caption 8"],
    }  # fmt: skip
    assert counts == {"picture": 1}


# Parquet files of pictures


@pytest.mark.parametrize("form", ["img2dataset", "hugging face"])
def test_parquet_with_pictures_goes_by_row_groups(tmp_path: Path, form: str):
    data = [JPEGS[name] for name in NAMES]
    table: dict[str, Any]
    if form == "img2dataset":
        table = {"jpg": data, "caption": NAMES, "key": NAMES, "status": ["success"] * 6}
    else:
        cells = [{"bytes": d, "path": n} for d, n in zip(data, NAMES, strict=True)]
        table = {"image": cells, "caption": [[n] for n in NAMES], "label": range(6)}
    path, out = tmp_path / "t.parquet", tmp_path / "out"
    parquet.write_table(pa.table(table), path, row_group_size=2)
    assert run("data", "captions", path, "-o", out, "--per-shard", 3) == 0
    assert made(out) == {name: [name] for name in NAMES}
    assert [len(Shards(str(p))) for p in sorted(out.glob("*.tar"))] == [4, 2]
    if form == "hugging face":
        assert [s.json()["label"] for s in Shards(f"{out}/*.tar")] == list(range(6))


def test_rows_without_pictures_are_lost_unless_they_were_never_had(tmp_path: Path):
    table = {
        "jpg": [JPEGS["a.jpg"], None, None, b"no picture", JPEGS["b.jpg"], JPEGS["c.jpg"]],
        "caption": ["a dog", "x", "x", "x", None, " "],
        "status": ["success", "failed_to_download", "success", "success", "success", "success"],
        "split": ["train"] * 5 + ["val"],
    }
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table(table), path)
    result = convert(path, tmp_path / "out", Wanted(splits=("train",)))
    assert result.lost == {"picture": 2, "caption": 1}
    assert made(tmp_path / "out") == {"a.jpg": ["a dog"]}
    whats = lost(tmp_path / "out")
    assert f"{path}: row 3: holds no picture" in whats
    assert any(f"{path}: row 4: not a readable picture" in what for what in whats)
    with pytest.raises(UserError, match=r"has nothing of the split trian"):
        convert(path, tmp_path / "none", Wanted(splits=("trian",)))
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"items cannot be used \(\d shard\)"):
        convert(path, tmp_path / "damaged")


# Tars


def test_tars_become_a_shard_each_in_their_order(tmp_path: Path):
    write_shards(tmp_path / "in", "0000", [
        ("00000_a", {"jpg": JPEGS["a.jpg"], "txt": b"a dog",
                     "json": {"url": "u", "caption": "-", "split": "train"}}),
        ("00000_b", {"jpg": JPEGS["b.jpg"], "json": {"caption": "a cat", "key": "00000_b"}}),
    ])  # fmt: skip
    write_shards(tmp_path / "in", "0001", [
        ("00001_c", {"jpg": JPEGS["c.jpg"], "json": {"captions": ["c", " ", "cc"]}}),
    ])  # fmt: skip
    source, out = f"{tmp_path}/in/*.tar", tmp_path / "out"
    assert run("data", "captions", source, "-o", out, "--size", 8) == 0
    first, second, third = Shards(f"{out}/*.tar")
    assert first.where == f"{out}/train-00000.tar:00000_a"
    assert first.json() == {"url": "u", "captions": ["a dog"], "split": "train"}
    assert second.json() == {"key": "00000_b", "captions": ["a cat"]}
    assert third.where == f"{out}/train-00001.tar:00001_c"
    assert third.json()["captions"] == ["c", "cc"]
    assert first.picture().size == (8, 8)
    convert(source, tmp_path / "split", Wanted(splits=("train",)))
    assert made(tmp_path / "split") == {"a.jpg": ["a dog"]}
    with pytest.raises(UserError, match=r"holds the shards that are read"):
        convert(source, tmp_path / "in")


def test_captions_under_another_key_or_in_the_table_beside_the_tar(tmp_path: Path):
    write_shards(tmp_path / "in", "a", [
        (name, {"jpg": JPEGS[f"{name}.jpg"], "json": {"name": told}})
        for name, told in zip("abcd", ("dog", ["a", "b"], 5, ""), strict=True)
    ])  # fmt: skip
    tar = tmp_path / "in/a-00000.tar"
    assert run("data", "captions", tar, "--caption-key", "name", "-o", tmp_path / "key") == 0
    assert made(tmp_path / "key") == {"a.jpg": ["dog"], "b.jpg": ["a", "b"]}
    with pytest.raises(UserError, match=r"a-00000\.tar:d: has no caption: .*--caption-key"):
        convert(tar, tmp_path / "none")
    with pytest.raises(UserError, match=r"has no caption under title"):
        convert(tar, tmp_path / "none", key="title")
    convert(tar, tmp_path / "none", key="name")  # nothing was made: try again
    table = {"key": ["a", "b", "c"], "caption": ["one", "two", None], "status": ["success"] * 3}
    parquet.write_table(pa.table(table), tmp_path / "in/a-00000.parquet")
    assert convert(tar, tmp_path / "beside").lost == {"caption": 2}
    assert made(tmp_path / "beside") == {"a.jpg": ["one"], "b.jpg": ["two"]}
    parquet.write_table(pa.table({**table, "caption": [*"xyz"]}), tmp_path / "in/a-00000.parquet")
    with pytest.raises(UserError, match=r"with other settings \(input_files: "):
        convert(tar, tmp_path / "beside")
    save(tmp_path / "in/a-00000.parquet", b"PAR1")
    with pytest.raises(UserError, match=r"a-00000\.parquet: cannot be read"):
        convert(tar, tmp_path / "damaged")


def test_what_a_tar_has_lost_is_counted_under_its_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    samples = [(n[0], {"jpg": JPEGS[n], "txt": b"x"}) for n in NAMES]
    for name in "ab":
        write_shards(tmp_path / "in", name, samples)
    cut, whole = tmp_path / "in/b-00000.tar", tmp_path / "in/a-00000.tar"
    with tarfile.open(cut) as archive:
        last = archive.getmembers()[-1]
    cut.write_bytes(cut.read_bytes()[: last.offset_data])
    Path(f"{cut}.index").unlink()
    source, out = f"{tmp_path}/in/*.tar", tmp_path / "out"
    with caplog.at_level(logging.WARNING):
        assert convert(source, out).lost == {"shard": 1, "caption": 1}
    assert len(Shards(f"{out}/*.tar")) == 11
    assert f"{cut}: is damaged" in caplog.text
    assert f"{whole}: is damaged" not in caplog.text
    assert not lost(out)
    assert any(what.startswith(f"{cut}:") and "cut short" in what for what in lost(out, 1))
    assert not any("::" in what for what in lost(out, 1))
    whole.write_bytes(b"no tar" * 1000)
    Path(f"{whole}.index").unlink()
    with pytest.raises(UserError, match=r"a-00000\.tar: not a tar .*copy it anew, or leave it out"):
        convert(source, tmp_path / "none")
    whole.unlink()
    whole.symlink_to(tmp_path / "gone.tar")
    with pytest.raises(UserError, match=r"a-00000\.tar: cannot be read .*; copy it anew, or leave"):
        convert(source, tmp_path / "none")


def test_each_part_that_a_tar_has_lost_is_named(tmp_path: Path):
    samples = [(name, {"jpg": JPEGS[f"{name}.jpg"], "txt": b"x"}) for name in "ab"]
    (path,) = write_shards(tmp_path / "in", "a", samples)
    with tarfile.open(path, "a") as archive:
        for name in ("a.txt", "b.txt"):
            archive.addfile(tarfile.TarInfo(name))
    Path(f"{path}.index").unlink()
    convert(path, tmp_path / "out", most_lost=1.0)
    assert [what.partition(": ")[0] for what in sorted(lost(tmp_path / "out"))] == [
        f"{path}:a.txt", f"{path}:b.txt"
    ]  # fmt: skip


# Options and inputs


def test_options_that_would_go_unheeded_are_refused(pictures: Path, tmp_path: Path):
    (tar,) = write_shards(tmp_path / "in", "a", [("a", {"jpg": JPEGS["a.jpg"], "txt": b"x"})])
    table = save(pictures / "t.csv", b"image,caption\na.jpg,a dog\n")
    save(pictures / "u.csv", b"image,caption\n")
    held, nowhere = tmp_path / "t.parquet", Wanted(tmp_path / "no")
    parquet.write_table(pa.table({"jpg": [JPEGS["a.jpg"]], "caption": ["a"]}), held)
    for source, wanted, key, told in (
        (tar, Wanted(captions="nope"), None, "--caption-column nope: is not for tars"),
        (tar, Wanted(image="nope"), None, "--image-column nope: is not for tars"),
        (tar, Wanted(pictures), None, "--images .*: is not for tars"),
        (tar, nowhere, None, "--images .*no: no such folder"),
        (table, nowhere, None, "--images .*no: no such folder"),
        (table, ANY, "foo", "--caption-key foo: is not for tables"),
        (held, Wanted(pictures), None, "--images .* that hold the pictures"),
        (f"{pictures}/*.csv", ANY, None, "2 files are given"),
    ):
        with pytest.raises(UserError, match=told):
            convert(source, tmp_path / "out", wanted, key)
    assert not (tmp_path / "out").exists()


def test_a_changed_table_or_tar_is_refused(pictures: Path, tmp_path: Path):
    told = r"with other settings \(input_files: '[0-9a-f]{16}', now '[0-9a-f]{16}'\)"
    table = save(pictures / "t.csv", b"image,caption\na.jpg,a dog\n")
    convert(table, tmp_path / "out")
    assert convert(table, tmp_path / "out").new == 0
    save(table, b"image,caption\na.jpg,a cat\n")
    with pytest.raises(UserError, match=told):
        convert(table, tmp_path / "out")
    (tar,) = write_shards(tmp_path / "in", "a", [("a", {"jpg": JPEGS["a.jpg"], "txt": b"x"})])
    convert(tar, tmp_path / "tar")
    write_shards(tmp_path / "in", "a", [("a", {"jpg": JPEGS["a.jpg"], "txt": b"y"})])
    with pytest.raises(UserError, match=told):
        convert(tar, tmp_path / "tar")


def test_the_shuffle_and_the_losses_are_the_users_choice(pictures: Path, tmp_path: Path):
    rows = "".join(f"{name},{name}\n" for name in JPEGS)
    table = save(pictures / "t.csv", f"image,caption\n{rows}".encode())
    for seed in (0, 1):
        assert run("data", "captions", table, "--seed", seed, "-o", tmp_path / f"{seed}") == 0
    assert list(made(tmp_path / "0")) != list(made(tmp_path / "1"))
    gone = "".join(f"gone{n}.jpg,x\n" for n in range(20))
    save(table, f"image,caption\n{rows}{gone}".encode())
    command = ("data", "captions", table, "-o", tmp_path / "out")
    assert run(*command) == 2
    assert run(*command, "--most-lost", 0.9) == 0
    assert sorted(made(tmp_path / "out")) == NAMES


# Quotes

STRAY = {
    "cc3m.tsv": 'a.jpg\t"the sea\nb.jpg\t"quoted"\nc.jpg\tat night"\n',
    "bars.csv": 'image|caption\na.jpg|"the sea\nb.jpg|"quoted"\nc.jpg|at night"\n',
    "later row.csv": 'image,caption\na.jpg,"the sea\nb.jpg,quoted\nc.jpg,at night"\n',
    "another quote.csv": 'caption;image\r\n"the sea;a.jpg\r\n"quoted";b.jpg\r\nat night";c.jpg\r\n',
    "the last line.csv": 'image,caption\nb.jpg,quoted\nc.jpg,at night"\na.jpg,"the sea',
    "old ends.csv": 'image,caption\rb.jpg,quoted\ra.jpg,"the sea\rc.jpg,at night"\r',
}


@pytest.mark.parametrize("name", STRAY)
def test_a_stray_quote_is_a_part_of_its_caption(pictures: Path, tmp_path: Path, name: str):
    convert(save(tmp_path / name, STRAY[name].encode()), tmp_path / "out", Wanted(pictures))
    second = '"quoted"' if name in ("cc3m.tsv", "bars.csv") else "quoted"
    found = {"a.jpg": ['"the sea'], "b.jpg": [second], "c.jpg": ['at night"']}
    assert made(tmp_path / "out") == found


def test_quotes_that_close_hold_delimiters_and_line_ends(pictures: Path, tmp_path: Path):
    data = (
        'caption,image\r\n"red, white\r\nand ""blue""",a.jpg\r\n"""hey"", he said",b.jpg\r\n'
        '"so" it is,c.jpg\r\nan "inner" one,d.jpg\r\n'
    )
    table = save(tmp_path / "t.csv", data.encode())
    convert(table, tmp_path / "out", Wanted(pictures))
    assert made(tmp_path / "out") == {
        "a.jpg": ['red, white\r\nand "blue"'], "b.jpg": ['"hey", he said'],
        "c.jpg": ['"so" it is'], "d.jpg": ['an "inner" one'],
    }  # fmt: skip
    spaced = b'image, caption\na.jpg, "red, white"\nb.jpg , "so" it is\n'
    convert(save(tmp_path / "s.csv", spaced), tmp_path / "spaced", Wanted(pictures))
    assert made(tmp_path / "spaced") == {"a.jpg": ["red, white"], "b.jpg": [' "so" it is']}
    table = save(tmp_path / "r.tsv", b'"filename"\t"text"\n"a.jpg"\t"say ""hi"""\n')
    convert(table, tmp_path / "all", Wanted(pictures))
    assert made(tmp_path / "all") == {"a.jpg": ['say "hi"']}


BAR = (
    b"image| comment\na.jpg|a dog\nb.jpg   a cat\na.jpg| \nb.jpg|\xff\nc.jpg|a cow\n"
    b"|x\nnone.jpg|x\n"
)
WIDE = b'image,caption\na.jpg,"x, y\nb.jpg,ok\nc.jpg\n\nd.jpg,"p",q\ne.jpg,nul \0 in it\n'


@pytest.mark.parametrize(
    ("data", "kept", "reasons"),
    [
        (BAR, {"a.jpg": ["a dog"], "c.jpg": ["a cow"]},
         {3: "caption", 4: "caption", 5: "caption", 7: "picture", 8: "picture"}),
        (b"\xef\xbb\xbf" + WIDE, {"b.jpg": ["ok"], "e.jpg": ["nul \0 in it"]},
         {2: "caption", 4: "caption", 6: "caption"}),
    ],
)  # fmt: skip
def test_bad_rows_are_counted_by_their_lines(
    pictures: Path, tmp_path: Path, data: bytes, kept: dict, reasons: dict
):
    convert(save(pictures / "t.csv", data), tmp_path / "out", seed=None)
    assert made(tmp_path / "out") == kept
    items = lost_items(tmp_path / "out/train-00000.tar")
    lines = [int(item["what"].partition("t.csv:")[2].split(":")[0]) for item in items]
    found = dict(zip(lines, (item["reason"] for item in items), strict=True))
    assert found == reasons
