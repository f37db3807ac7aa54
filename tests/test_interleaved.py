"""Interleaved documents of all formats to shards, and what training makes of them."""

import csv
import gzip
import json
import logging
import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers import run_config
from material import encoded, interleaved_lines, jsonl, run, save
from pyarrow import parquet

from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Config
from mmfusion.data_pipelines.converters import interleaved, records
from mmfusion.data_pipelines.converters.image_files import ImageFiles, read_urls
from mmfusion.data_pipelines.converters.interleaved import write_interleaved
from mmfusion.data_pipelines.converters.interleaved_formats import ImageItem, Reading, parse
from mmfusion.data_pipelines.converters.records import files_of, open_all
from mmfusion.data_pipelines.converters.splitting import Limits
from mmfusion.data_pipelines.documents import DocumentMaker
from mmfusion.data_pipelines.images import ImageReader
from mmfusion.data_pipelines.loader import Loader
from mmfusion.data_pipelines.shard_writer import Made, Output, lost_items
from mmfusion.data_pipelines.shards import Shards
from mmfusion.errors import CorruptSample, UserError
from mmfusion.sequence import IMAGE, Image, Row, Text, count

URL = "https://x.org/"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten pictures, 0.png to 9.png."""
    for number in range(10):
        save(tmp_path / f"p/{number}.png", encoded(number))
    return tmp_path / "p"


def mmc4(count: int = 2, **changes: Any) -> dict:
    """As many sentences as pictures; picture n belongs to sentence n, more closely the later."""
    info = [
        {"image_name": f"{n}.png", "raw_url": f"{URL}{n}", "matched_text_index": n,
         "matched_sim": n / 10}
        for n in range(count)
    ]  # fmt: skip
    return {"text_list": [f"s{n}" for n in range(count)], "image_info": info, **changes}


def matched(index: Any = 0, **changes: Any) -> dict:
    """MMC4 with one picture."""
    entry = {"image_name": "0.png", "matched_text_index": index, "matched_sim": 1.0, **changes}
    return mmc4(image_info=[entry])


def obelics(*parts: Any) -> dict:
    """A string is a text; a tuple holds a picture, whatever it is given as."""
    return {
        "images": [part[0] if isinstance(part, tuple) else None for part in parts],
        "texts": [None if isinstance(part, tuple) else part for part in parts],
        "metadata": "[]",
    }


def convert(pattern: Any, folder: Path, **options: Any) -> Made:
    """Options of the shards, and others."""
    shards = {key: options.pop(key) for key in ("seed", "per_shard") if key in options}
    return write_interleaved(pattern, Output(folder, **shards), **options)


def make(tmp_path: Path, *lines: Any, **options: Any) -> Made:
    """Write records as `out/train-*.tar`, in their order."""
    options = {"seed": None, "images": tmp_path / "p", **options}
    file = jsonl(tmp_path / "documents.jsonl", *lines)
    return convert(file, tmp_path / "out", **options)


def contents(tmp_path: Path) -> list[list[dict]]:
    return [sample.json()["content"] for sample in Shards(f"{tmp_path}/out/*.tar")]


def keys(tmp_path: Path) -> list[str]:
    shards = Shards(f"{tmp_path}/out/*.tar")
    return [shards.place(number)[1] for number in range(len(shards))]


# Formats


def test_our_own_format_says_itself_what_is_learned(tmp_path: Path):
    made = convert(interleaved_lines(tmp_path), tmp_path / "out", seed=None)
    first, second = Shards(f"{tmp_path}/out/*.tar")
    assert first.json()["content"] == [
        {"image": "0.jpg"}, {"text": "then comes"}, {"answer": "this"},
        {"image": "1.png", "target": True},
    ]  # fmt: skip
    assert (first["0.jpg"], first["1.png"]) == (encoded(0, "jpeg"), encoded(1))
    assert second.json()["content"] == [{"image": "0.png"}, {"answer": "one"}]
    assert made.lost == {"content": 5}
    opening = {"content": [{"image": "p/b.png", "target": True}]}  # drawn from nothing
    convert(jsonl(tmp_path / "one.jsonl", opening), tmp_path / "one")
    assert Shards(f"{tmp_path}/one/*.tar")[0].json() == {
        "content": [{**opening["content"][0], "image": "0.png"}]
    }


FIVE = mmc4(text_list=["s0", "one", "s2", " ", "s3"])
FIVE["image_info"][1]["matched_text_index"] = 2
PAGE = obelics(("0.png",), "one", "two", ("1.png",), ("2.png",), " \n", "three")
GIVEN = {"image": "0.png"}, {"image": "1.png"}
DRAWN = [{"image": f"{n}.png", "target": True} for n in range(3)]


@pytest.mark.parametrize(
    ("record", "reading", "expected", "first"),
    [
        (FIVE, Reading("both"), [GIVEN[0], {"answer": "s0 one"}, DRAWN[1], {"answer": "s2 s3"}], 0),
        (FIVE, Reading("text"), [GIVEN[0], {"answer": "s0 one"}, GIVEN[1], {"answer": "s2 s3"}], 0),
        (FIVE, Reading("pictures"), [GIVEN[0], {"text": "s0 one"}, DRAWN[1], {"text": "s2 s3"}], 0),
        (mmc4(3), Reading(min_similarity=0.1),
         [{"answer": "s0"}, DRAWN[0], {"answer": "s1"}, DRAWN[1], {"answer": "s2"}], 1),
        (PAGE, Reading(),
         [GIVEN[0], {"answer": "one\n\ntwo"}, DRAWN[1], DRAWN[2], {"answer": "three"}], 0),
    ],
)  # fmt: skip
def test_pages_put_pictures_in_their_places(
    tmp_path: Path, pictures: Path, record: dict, reading: Reading, expected: list, first: int
):
    """MMC4's before their sentences, but those that are unlike them; OBELICS' as they stand."""
    assert not make(tmp_path, record, reading=reading).lost
    (sample,) = Shards(f"{tmp_path}/out/*.tar")
    assert sample.json() == {"content": expected}
    assert (sample["0.png"], sample["1.png"]) == (encoded(first), encoded(first + 1))


def test_obelics_parquet_holds_pictures_or_paths(tmp_path: Path, pictures: Path):
    """Three row groups; structs as Hugging Face datasets write them."""
    picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"images": pa.list_(picture), "texts": pa.list_(pa.string())})
    rows = []
    for n in range(5):
        own, other = {"bytes": encoded(n), "path": "else.png"}, {"bytes": None, "path": f"{n}.png"}
        rows.append(obelics((own,), f"t{n}", (other,)))
    file = tmp_path / "o.parquet"
    parquet.write_table(pa.Table.from_pylist(rows, schema), file, row_group_size=2)
    assert open_all([str(file)], ("images", "texts")).files[0].sizes == [2, 2, 1]
    convert(file, tmp_path / "out", images=pictures, seed=None, per_shard=3)
    samples = list(Shards(f"{tmp_path}/out/*.tar"))
    assert contents(tmp_path) == [
        [{"image": "0.png"}, {"answer": f"t{n}"}, {"image": "1.png", "target": True}]
        for n in range(5)
    ]
    assert all(s["0.png"] == s["1.png"] == encoded(n) for n, s in enumerate(samples))
    assert len(list((tmp_path / "out").glob("*.tar"))) == 2


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_urls_are_found_in_a_table(tmp_path: Path, pictures: Path, suffix: str):
    paths = ("3.png", str(pictures / "4.png"), None)
    rows = [{"path": path, "more": "x", "url": f"{URL}{n}"} for n, path in enumerate(paths)]
    table = tmp_path / f"table.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), table)
    elif suffix == "csv":
        lines = [rows[0], *(row.values() for row in rows)]
        save(table, "\n".join(",".join(cell or "" for cell in line) for line in lines).encode())
    else:
        jsonl(table, *rows)
    assert read_urls(table) == {f"{URL}0": tmp_path / "3.png", f"{URL}1": pictures / "4.png"}
    page = obelics("a", (f"{URL}0",), "b", (f"{URL}1",), (f"{URL}2",))
    make(tmp_path, page, mmc4(), image_table=table)
    first, second = Shards(f"{tmp_path}/out/*.tar")
    assert (first["0.png"], first["1.png"]) == (encoded(3), encoded(4))
    assert (second["0.png"], second["1.png"]) == (encoded(3), encoded(4))
    (said,) = first.json()["left_out"]
    assert f"picture {URL}2: not fetched; --image-table has no file" in said


def test_a_table_of_urls_is_read_as_it_is_quoted_and_bound_by_its_folder(tmp_path: Path):
    for name in ("in/a.png", "in/b.png", "out.png"):
        save(tmp_path / name, encoded(0))
    rows = (("url", "path"), ('http://x/"a"', "./a.png"), ('http://x/b,c"', "y/../b.png"),
            ("http://x/o", "../out.png"))  # fmt: skip
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    save(tmp_path / "t.tsv", "".join(f"{u}\t{p}\n" for u, p in rows).encode())
    for name in ("t.csv", "t.tsv"):
        table = read_urls(tmp_path / name, tmp_path / "in")
        files = ImageFiles(ImageReader(), tmp_path / "in", table)
        for url, _ in rows[1:3]:
            assert files.read(ImageItem(url=url), tmp_path, anywhere=True)[0] == "png"
        with pytest.raises(CorruptSample, match=r"http://x/o .*is not in the folder"):
            files.read(ImageItem(url="http://x/o"), tmp_path, anywhere=True)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.jsonl", b'{"url": 3, "path": "a"}', "a row is .* expected `url` and `path`"),
        ("t.jsonl", b"{", r"t\.jsonl:1: not valid JSON"),
        ("t.csv", b"address,file\na,b\n", "expected `url` and `path`"),
        ("t.csv", b"url,path\na,\n", "names no files"),
        ("t.csv", b"url,path\n\xff,b\n", r"t\.csv: is not UTF-8"),
        ("t.csv", b"url,path\nhttp://x/a,b,a.png\n", r"t\.csv:2: has 3 columns"),
        ("t.csv.gz", b"url,path\na,b\n", "cannot be read"),
        ("t.parquet", b"url,path\na,b\n", "cannot be read"),
        ("t.parquet", pa.table({"url": ["a"]}), "which column holds the path"),
        ("none/t.jsonl", None, "cannot be read"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, name: str, data: Any, message: str):
    file = tmp_path / name
    if isinstance(data, pa.Table):
        parquet.write_table(data, file)
    elif data is not None:
        save(file, data)
    with pytest.raises(UserError, match=message):
        read_urls(file)


# Damaged records


NO_FORMAT = "has the fields .* expected `content`"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a"}, NO_FORMAT),
        ({"texts": ["a"]}, NO_FORMAT),
        ({"content": "a"}, "needs `content`, a list of parts"),
        (mmc4(text_list="a"), "`text_list` must be a list of strings"),
        (mmc4(text_list=["a", None]), "`text_list` must be a list of strings"),
        (mmc4(image_info=None), "`image_info` must be a list"),
        (mmc4(image_info=[3]), "image_info 0 is 3; expected an object"),
        (mmc4(text_list=["a"]), "2 pictures in `image_info`, but 1 texts"),
        (matched(2), "image_info 0: matched_text_index is 2; expected 0 to 1"),
        (matched(-1), ".* matched_text_index is -1"),
        (matched(True), ".* matched_text_index is True"),
        (matched(image_name=None), ".* needs `image_name` or `raw_url`"),
        (matched(image_name=3), ".* needs `image_name`"),
        (matched(matched_sim=None), ".* matched_sim is None; expected a number"),
        (matched(matched_sim=float("nan")), ".* matched_sim is nan"),
        ({"texts": "a", "images": [None]}, "`texts` and `images` must be lists"),
        ({"texts": ["a"], "images": []}, "1 `texts`, but 0 `images`"),
        ({"texts": ["a", None], "images": [None, None]}, "place 1 has neither a text nor a pic"),
        ({"texts": ["a"], "images": ["0.png"]}, "place 0 has both a text and a picture"),
        ({"texts": [None], "images": [{"bytes": None, "path": None}]}, "place 0 has neither"),
        ({"texts": [3], "images": [None]}, "place 0 is 3; expected a string"),
        ({"texts": [None], "images": [{"file": "a", "bytes": 2}]}, "place 0 is {.*; expected a"),
        ({"texts": [], "images": []}, "is empty"),
        ({"texts": [" "], "images": [None]}, "is empty"),
    ],
)
def test_damaged_records_are_left_out_with_their_reason(record: Any, message: str):
    with pytest.raises(CorruptSample, match=f"^a.jsonl:1: {message}") as lost:
        parse(record, Reading(min_similarity=0.0), "a.jsonl:1")
    assert lost.value.reason == "content"


# Pictures that are not there


def test_a_page_goes_on_without_its_lost_pictures(
    tmp_path: Path, pictures: Path, caplog: pytest.LogCaptureFixture
):
    save(pictures / "1.png", b"no picture")
    (pictures / "2.png").unlink()
    with caplog.at_level(logging.WARNING):
        made = make(tmp_path, mmc4(4), obelics("a", ("2.png",)))
    first, second = Shards(f"{tmp_path}/out/*.tar")
    assert first.json()["content"] == [
        {"image": "0.png"}, {"answer": "s0 s1 s2"}, {"image": "1.png", "target": True},
        {"answer": "s3"},
    ]  # fmt: skip
    damaged, missing = first.json()["left_out"]
    assert f"picture {pictures}/1.png: not a readable picture" in damaged
    assert missing == f"picture {pictures}/2.png: cannot be read (No such file or directory)"
    assert second.json() == {"content": [{"answer": "a"}], "left_out": [missing]}
    assert not made.lost
    assert f"documents.jsonl:1: goes on without picture {pictures}/1.png" in caplog.text
    assert "3 of 5 pictures cannot be read" in caplog.text


def test_a_document_of_which_nothing_is_left_to_learn_is_left_out(tmp_path: Path, pictures: Path):
    """Of our own format no picture may be missing: an answer may be about it."""
    (pictures / "1.png").unlink()
    made = make(
        tmp_path,
        mmc4(),
        {"content": [{"image": "1.png"}, {"answer": "a dog"}]},
        mmc4(3),
        reading=Reading("pictures"),
    )
    assert made.lost == {"picture": 2}
    first, second = lost_items(tmp_path / "out/train-00000.tar")
    assert "documents.jsonl:1: nothing to learn without its pictures" in first["what"]
    assert second["what"] == f"picture {pictures}/1.png: cannot be read (No such file or directory)"
    assert len(contents(tmp_path)) == 1


def test_pictures_are_looked_for_in_their_folder_alone(tmp_path: Path, pictures: Path):
    """A corpus must not choose what of the machine is read, nor stop the job with a pipe."""
    os.mkfifo(pictures / "pipe")
    save(tmp_path / "secret.png", encoded(0))
    names = ["../secret.png", str(tmp_path / "secret.png"), "pipe", "zero\0.png", "", f"{URL}0.png"]
    make(tmp_path, obelics("a", ("./1.png",), *((name,) for name in names)))
    said = Shards(f"{tmp_path}/out/*.tar")[0].json()["left_out"]
    parts = ["is not in the folder"] * 2 + ["cannot be read"] * 3 + ["--image-table has no file"]
    assert all(part in text for text, part in zip(said, parts, strict=True))
    assert contents(tmp_path) == [[{"answer": "a"}, {"image": "0.png", "target": True}]]
    # The user's own list may name any file.
    own = {"content": [{"image": str(tmp_path / "secret.png")}, {"answer": "a"}]}
    convert(jsonl(tmp_path / "own.jsonl", own), tmp_path / "own", images=pictures)


def test_pictures_none_of_which_is_there_stop_the_job(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(interleaved, "HOPELESS", 5)
    pages = [obelics("a", (f"{n}.jpg",)) for n in range(20)]
    with pytest.raises(UserError, match="none of the first 5 pictures can be read; check --images"):
        make(tmp_path, *pages)
    assert not list((tmp_path / "out").glob("*.tar"))
    with pytest.raises(UserError, match=r"--images .*nowhere: no such folder"):
        make(tmp_path, *pages, images=tmp_path / "nowhere")


# Files of records


def test_a_gzip_is_read_like_what_is_in_it(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
):
    """In stretches, of which the next continues where the last one ended."""
    monkeypatch.setattr(records, "GZIP_LINES", 3)
    lines: list[Any] = [obelics(f"text {n}", (f"{n}.png",)) for n in range(10)]
    lines.insert(4, "")
    lines.insert(6, "{broken")
    plain = jsonl(tmp_path / "a.jsonl", *lines)
    packed = save(tmp_path / "a.jsonl.gz", gzip.compress(plain.read_bytes(), mtime=0))
    options: Any = {"images": pictures, "seed": None, "per_shard": 4}
    one = convert(plain, tmp_path / "one", **options)
    two = convert(packed, tmp_path / "two", **options)
    assert one.lost == two.lost == {"json": 1}
    for shard in sorted((tmp_path / "one").glob("*.tar")):
        assert shard.read_bytes() == (tmp_path / "two" / shard.name).read_bytes()
    assert "a.jsonl.gz:7: not valid JSON" in lost_items(tmp_path / "two/train-00001.tar")[0]["what"]
    found = open_all([str(packed)], ())
    assert found[9] == lines[-1 - 1]
    assert found[0] == lines[0]  # backwards, too


def test_one_gzip_is_open_at_a_time(tmp_path: Path):
    """A corpus has more files than a process may open."""
    for number in range(8):
        save(tmp_path / f"{number}.jsonl.gz", gzip.compress(b'{"content": []}\n', mtime=0))
    found = open_all(files_of(f"{tmp_path}/*.gz"), ())
    before = len(os.listdir("/proc/self/fd"))
    assert [found[number] for number in range(8)] == [{"content": []}] * 8
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_records_are_shuffled_as_far_as_they_are_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(records, "GZIP_LINES", 10)
    for name in ("a", "b"):
        jsonl(tmp_path / f"{name}.jsonl", *({"content": n} for n in range(15)))
    packed = gzip.compress((tmp_path / "a.jsonl").read_bytes())
    for name in ("c", "d"):
        save(tmp_path / f"{name}.jsonl.gz", packed)
    found = open_all(files_of(f"{tmp_path}/*.jsonl*"), ("content",))
    order = found.order(0)
    assert sorted(order) == list(range(60))
    assert list(order[30:40]) != list(order[45:55] - 15)  # each stretch in an order of its own
    assert set(order[:15]) & set(range(15, 30))  # plain lines: over both files
    assert set(order[30:40]) == set(range(30, 40))
    assert list(order[30:40]) != list(range(30, 40))
    assert list(order) == list(found.order(0)) != list(found.order(1))
    assert list(found.order(None)) == list(range(60))
    assert [found[n]["content"] for n in (0, 14, 15, 29, 30, 44)] == [0, 14] * 3
    assert [found.where(n).rpartition("/")[2] for n in (14, 15, 44)] == [
        "a.jsonl:15", "b.jsonl:1", "c.jsonl.gz:15"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b"\n", "holds no lines"),
        ("a.jsonl.gz", gzip.compress(b"\n", mtime=0), "holds no lines"),
        ("a.jsonl.gz", gzip.compress(b"{}\n" * 99, mtime=0)[:-9], "cannot be read as gzip"),
        ("a.jsonl.gz", b'{"content": []}', "cannot be read as gzip .*; copy it anew"),
        ("a.parquet", b'{"content": []}', "cannot be read as parquet .*; copy it anew"),
        ("a.parquet", pa.table({"text": ["a"]}), "has none of the columns content, text_list"),
        ("a.parquet", pa.table({"texts": pa.array([], pa.list_(pa.string()))}), "holds no records"),
        ("a.zip", b"PK", r"a\.zip: expected records \(\.jsonl, .*; unpack it first \(`unzip`"),
        ("a.tar.gz", b"", r"a\.tar\.gz: expected records .* unpack it first"),
        ("a.csv", b"", r"a\.csv: expected records .* rename it if it is one"),
        ("b.jsonl", None, r"a\.\*: no such file"),
    ],
)
def test_files_that_hold_no_records_are_refused(tmp_path: Path, name: str, data: Any, message: str):
    if isinstance(data, pa.Table):
        parquet.write_table(data, tmp_path / name)
    elif data is not None:
        save(tmp_path / name, data)
    with pytest.raises(UserError, match=message):
        convert(f"{tmp_path}/a.*", tmp_path / "out")


def test_a_changed_table_is_refused(tmp_path: Path, pictures: Path):
    table = jsonl(tmp_path / "urls.jsonl", {"url": f"{URL}0", "path": "0.png"})
    make(tmp_path, mmc4(1), image_table=table)
    file, after = tmp_path / "documents.jsonl", {"url": f"{URL}0", "path": "1.png"}
    jsonl(table, after)
    with pytest.raises(UserError, match=r"other settings \(input_files: '[0-9a-f]{16}', now"):
        convert(file, tmp_path / "out", seed=None, images=tmp_path / "p", image_table=table)


def test_a_damaged_row_group_loses_no_other(tmp_path: Path):
    rows = [{"texts": [f"{n}{'text' * 9}"], "images": [None]} for n in range(40)]
    schema = pa.schema({"texts": pa.list_(pa.string()), "images": pa.list_(pa.string())})
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_pylist(rows, schema), file, row_group_size=4)
    column = parquet.read_metadata(file).row_group(3).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(file.read_bytes())
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    file.write_bytes(data)
    made = convert(file, tmp_path / "out", seed=None)
    assert made.lost == {"shard": 4}
    items = lost_items(tmp_path / "out/train-00000.tar")
    assert [item["item"] for item in items] == [12, 13, 14, 15]
    assert "a.parquet: row 13: cannot be read" in items[0]["what"]
    assert len(contents(tmp_path)) == 36


def test_parquet_text_that_is_not_utf_8_loses_its_row(tmp_path: Path):
    values = pa.array([b"good", b"\xff\xfe"])
    strings = pa.Array.from_buffers(pa.string(), 2, values.buffers())
    table = pa.table(
        {
            "texts": pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), strings),
            "images": pa.array([[None], [None]], pa.list_(pa.string())),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    made = convert(tmp_path / "a.parquet", tmp_path / "out", seed=None)
    assert made.lost == {"member": 1}
    assert contents(tmp_path) == [[{"answer": "good"}]]


# Limits


def test_a_long_document_gives_several_samples(tmp_path: Path, pictures: Path):
    made = make(tmp_path, mmc4(7), mmc4(1), obelics(("0.png",)), limits=Limits(pictures=3))
    assert made.lost == {"content": 1}  # nothing to learn
    assert keys(tmp_path) == ["00000000-0", "00000000-1", "00000000-2", "00000001"]
    assert made.items == 3
    samples = list(Shards(f"{tmp_path}/out/*.tar"))
    data = [sample[part["image"]] for sample in samples[:3] for part in sample.json()["content"]
            if "image" in part]  # fmt: skip
    assert data == [encoded(n) for n in range(7)]
    words = " ".join(p["answer"] for c in contents(tmp_path)[:3] for p in c if "answer" in p)
    assert words == "s0 s1 s2 s3 s4 s5 s6"


def test_stretches_that_teach_nothing_are_left_out_and_told(
    tmp_path: Path, pictures: Path, caplog: pytest.LogCaptureFixture
):
    given = [{"text": "word " * 30}, {"text": "more " * 30}]
    document = {"content": [*given, {"image": "0.png", "target": True}]}
    with caplog.at_level(logging.WARNING):
        make(tmp_path, document, limits=Limits(tokens=60))
    assert contents(tmp_path) == [[given[1], {"image": "0.png", "target": True}]]
    (said,) = Shards(f"{tmp_path}/out/*.tar")[0].json()["left_out"]
    assert said.startswith("a stretch that teaches nothing (0 pictures, text 'word word ")
    assert "stretches of documents that teach nothing: 1" in caplog.text


# Training


def test_training_reads_pieces_of_a_split_page(
    tmp_path: Path, pictures: Path, tokenizer: Tokenizer, digits_data: Path
):
    """Targets with parts after them keep their clean copy; limits are kept."""
    sentences = [f"the number {n} is drawn in white, then comes {n}." for n in range(8)]
    limits = Limits(pictures=3, tokens=64, tokenizer=tokenizer.path)
    make(tmp_path, mmc4(8, text_list=sentences), limits=limits)
    source = {"name": "pages", "task": "interleaved", "shards": f"{tmp_path}/out/*.tar"}
    data = {"rows": 2, "micro_rows": 1, "sources": [source]}
    diffusion = {"prediction": "sample", "dropout": 0.0}
    config = run_config(digits_data, tmp_path / "run", row_length=256, diffusion=diffusion)
    config = Config.model_validate({**config.model_dump(), "data": data})
    shards = Shards(f"{tmp_path}/out/*.tar")
    assert len(shards) > 2
    maker = DocumentMaker(config, tokenizer)
    for sample in shards:
        document = maker.make(config.data.sources[0], sample, np.random.default_rng(0))
        content = sample.json()["content"]
        size = count(document, config.decoder.label_tokens)
        assert size.text <= limits.tokens
        assert sum(isinstance(segment, Image) for segment in document) <= limits.pictures
        assert size.predict or size.noisy
        for place, (segment, part) in enumerate(zip(document, content, strict=True)):
            drawn = place + 1 < len(content) and content[place + 1].get("target", False)
            if isinstance(segment, Image):
                assert (segment.noise is not None) == part.get("target", False) == bool(place)
            else:
                assert isinstance(segment, Text)
                assert segment.ids[-1] == (tokenizer.image_id if drawn else tokenizer.end_id)
        row = Row.of(config, config.row_length)
        row.document(document)
        assert row.used == size.tokens
        images = [segment for segment in document if isinstance(segment, Image)]
        clean = sum(len(image.latents) for image in images)
        if images[-1] is document[-1] and images[-1].split:
            clean -= len(images[-1].split[-1])
        assert ((row.kind == IMAGE) & (row.stream == 0)).sum() == clean
    for batches in islice(Loader(config), 3):
        assert all((batch.predict_id >= 0).any() for batch in batches)
        assert all((batch.weight > 0).any() for batch in batches)


# The command line


def test_the_command_takes_globs_and_limits(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture, tokenizer: Tokenizer
):
    for n in range(3):
        line = json.dumps(mmc4(4)) + "\n"
        save(tmp_path / f"docs_{n}.jsonl.gz", gzip.compress(line.encode(), mtime=0))
    command = ["data", "interleaved", f"{tmp_path}/docs_*.jsonl.gz", "-o", tmp_path / "out",
               "--images", pictures, "--learn", "text", "--min-similarity", 0.15, "--per-shard", 2,
               "--max-pictures", 1, "--max-tokens", 32, "--tokenizer", tokenizer.path]  # fmt: skip
    lines, other = jsonl(tmp_path / "bad.jsonl", *[{"text": "a"}] * 20), tmp_path / "other"
    for arguments, code, told in (
        (command, 0, "wrote 2 of 2 shards"),
        (command, 0, "wrote 0 of 2 shards"),
        ([*command, "--learn", "both"], 2, "with other settings (learn: 'text', now 'both')"),
        ([*command[:2], f"{tmp_path}/none_*.jsonl", "-o", other], 2, "none_*.jsonl: no such file"),
        ([*command[:-1], "no.model", "-o", other], 2, "no.model: no such file"),
        (["data", "interleaved", lines, "-o", other], 2, "cannot be used ("),
    ):
        assert run(*arguments) == code
        assert told in "".join(capsys.readouterr())
    assert len(contents(tmp_path)) == 6
