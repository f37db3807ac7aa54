"""Pictures by class to shards: folders, ILSVRC's tars, labelled samples."""

import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from material import REAL, encoded, jsonl, run, save
from scipy.io import savemat

from mmfusion.data_pipelines.converters.devkit import read_labels
from mmfusion.data_pipelines.converters.imagenet import write_imagenet
from mmfusion.data_pipelines.images import ImageReader
from mmfusion.data_pipelines.shard_writer import Made, Output, digest, lost_items
from mmfusion.data_pipelines.shards import Shards, write_shards
from mmfusion.errors import UserError

WORDS = {
    "n01440764": "tench, Tinca tinca", "n02012849": "crane", "n03126707": "crane, hoist",
}  # fmt: skip


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def convert(
    source: Any, folder: Path, name: str = "train", index: Any = None, **options: Any
) -> Made:
    """Options of the shards, and others."""
    own = {key: options.pop(key) for key in ("labels", "captions") if key in options}
    return write_imagenet(source, Output(folder, name, **options), index, **own)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def make_devkit(folder: Path) -> Path:
    """The devkit's folder: synsets in no order, with one that is no class."""
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    synsets = np.array(
        [(n + 1, wnid, WORDS[wnid], 0) for n, wnid in enumerate(sorted(WORDS, reverse=True))]
        + [(4, "n00001740", "entity", 3)], kinds
    )  # fmt: skip
    file = io.BytesIO()
    savemat(file, {"synsets": synsets.reshape(-1, 1)})
    save(folder / "data/meta.mat", file.getvalue())
    save(folder / "data/ILSVRC2012_validation_ground_truth.txt", b"3\n1\n3\n2\n")
    return folder


# ImageNet


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """Two cranes and a tench; two pictures each, one of them a PNG with another name."""
    folder = tmp_path / "classes"
    for c, place in enumerate(("n03126707", "n01440764", "n02012849")):
        save(folder / place / "a.JPEG", encoded(2 * c, "jpeg"))
        save(folder / place / "b.JPEG", encoded(2 * c + 1, "png"))
    index = {
        "0": ["n01440764", "great_tench"], "1": ["n02012849", "crane"], "2": ["n03126707", "crane"],
    }  # fmt: skip
    save(tmp_path / "index.json", json.dumps(index).encode())
    return folder


def test_imagenet_shards_keep_the_files_and_number_the_sorted_folders(
    class_folders: Path, tmp_path: Path
):
    output = tmp_path / "shards"
    convert(class_folders, output, index=tmp_path / "index.json")
    names = json.loads((output / "classes.json").read_text())
    assert names == ["great tench", "crane (n02012849)", "crane (n03126707)"]
    samples = list(Shards(f"{output}/train-*.tar"))
    folders = sorted(place.name for place in class_folders.iterdir())
    for sample in samples:
        described = sample.json()
        place, _, file = described["file"].partition("/")
        assert folders[described["label"]] == place
        assert f"a photo of a {names[described['label']]}" in described["captions"]
        kept = sample["jpg" if file == "a.JPEG" else "png"]
        assert kept == (class_folders / described["file"]).read_bytes()
    assert len({sample.json()["file"] for sample in samples}) == 6


def test_imagenet_is_shuffled_by_the_seed_alone(class_folders: Path, tmp_path: Path):
    def files(output: str, seed: int) -> list[str]:
        convert(class_folders, tmp_path / output, seed=seed)
        return [s.json()["file"] for s in Shards(f"{tmp_path / output}/*.tar")]

    first = files("one", 0)
    assert first != sorted(first)
    assert first == files("two", 0) != files("three", 1)
    # Folders named by number only: no words, so no captions.
    assert "captions" not in Shards(f"{tmp_path}/one/*.tar")[0].json()


@pytest.mark.parametrize("format", ["jpeg", "png"])
def test_pictures_are_cut_square_and_resized_on_request(
    class_folders: Path, tmp_path: Path, format: Any
):
    convert(class_folders, tmp_path / "small", reader=ImageReader(8, format))
    for sample in Shards(f"{tmp_path}/small/*.tar"):
        picture = sample.picture()
        assert (picture.size, picture.format) == ((8, 8), format.upper())


def test_bad_pictures_are_skipped_with_a_count_unless_all_are(
    class_folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    files = sorted(class_folders.glob("*/*.JPEG"))
    files[0].write_bytes(b"not a picture")
    with caplog.at_level(logging.WARNING):
        made = convert(class_folders, tmp_path / "most")
    assert len(Shards(f"{tmp_path}/most/*.tar")) == 5
    assert f"left out: picture {files[0]}: not a readable picture" in caplog.text
    assert made.lost == {"picture": 1}
    (entry,) = lost_items(tmp_path / "most/train-00000.tar")
    assert (entry["reason"], str(files[0]) in entry["what"]) == ("picture", True)
    for n in range(20):
        save(class_folders / f"n01440764/bad{n}.JPEG", b"")
    command = ("data", "imagenet", class_folders, "-o", tmp_path / "many")
    assert run(*command) == 2
    assert run(*command, "--most-lost", 0.9) == 0
    for file in class_folders.glob("*/bad*"):
        file.unlink()
    for file in files:
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"6 of 6 items cannot be used \(6 picture\)"):
        convert(class_folders, tmp_path / "none")
    assert not list((tmp_path / "none").glob("*.tar*"))


def test_imagenet_says_what_is_wrong_with_its_input(class_folders: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere: cannot be read"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match=r"no folders of pictures"):
        convert(class_folders / "n01440764", tmp_path / "out")
    lacking = save(tmp_path / "lacking.json", b'{"0": ["n01440764", "tench"]}')
    with pytest.raises(UserError, match=r"lacking\.json: has no name for the folder n02012849"):
        convert(class_folders, tmp_path / "out", index=lacking)
    wrong = save(tmp_path / "wrong.json", b'{"0": 3}')
    with pytest.raises(UserError, match=r"wrong\.json: expected"):
        convert(class_folders, tmp_path / "out", index=wrong)
    convert(class_folders, tmp_path / "out")
    assert convert(class_folders, tmp_path / "out").new == 0
    with pytest.raises(UserError, match=r"with other settings \(seed: 0, now 1\); delete them"):
        convert(class_folders, tmp_path / "out", seed=1)
    (tmp_path / "out/train.settings.json").unlink()
    with pytest.raises(UserError, match=r"already has shards train-\*\.tar"):
        convert(class_folders, tmp_path / "out")


def test_the_numbers_of_names_are_the_labels(class_folders: Path, tmp_path: Path):
    index = {"0": ["zebra", "a zebra"], "1": ["n03126707", "a hoist"], "2": ["n01440764", "tench"],
             "3": ["n02012849", "a bird"]}  # fmt: skip
    names = save(tmp_path / "un.json", json.dumps(index).encode())
    (class_folders / "zebra").mkdir()
    outer = tar(tmp_path / "t/n02012849.tar", {"a.JPEG": encoded(0, "jpeg")})
    flat = val_tar(tmp_path)
    table = save(tmp_path / "t.txt", b"".join(b"ILSVRC2012_val_%08d 1\n" % n for n in range(1, 5)))
    convert(class_folders, tmp_path / "out", index=names)
    convert(outer, tmp_path / "out", "tar", names)
    convert(flat, tmp_path / "out", "val", names, labels=table)
    expected = {place: int(number) for number, (place, _) in index.items()}
    samples = [sample.json() for sample in Shards(f"{tmp_path}/out/*.tar")]
    assert len(samples) == 11
    for sample in samples:
        assert sample["label"] == expected[sample["file"].partition("/")[0]]
        assert sample["captions"][0] == index[str(sample["label"])][1]
    assert json.loads((tmp_path / "out/classes.json").read_text()) == [
        "a zebra", "a hoist", "tench", "a bird",
    ]  # fmt: skip
    twice = save(tmp_path / "twice.json", b'{"0": ["a", "b"], "1": ["a", "c"]}')
    with pytest.raises(UserError, match=r"twice\.json: names a folder twice"):
        convert(class_folders, tmp_path / "out", index=twice)


def test_no_class_is_dropped_silently_and_hidden_files_are_none(
    class_folders: Path, tmp_path: Path
):
    save(class_folders / ".hid/a.JPEG", encoded(0, "jpeg"))
    save(class_folders / "n01440764/._a.JPEG", b"of a Mac")
    assert not convert(class_folders, tmp_path / "out").lost
    assert json.loads((tmp_path / "out/classes.json").read_text()) == sorted(WORDS)
    save(class_folders / "n00000001/readme.txt", b"no picture")
    with pytest.raises(UserError, match=r"n00000001: holds no pictures; fetch .* give --names"):
        convert(class_folders, tmp_path / "other")


def test_a_folder_has_one_list_of_classes(class_folders: Path, tmp_path: Path):
    convert(class_folders, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    shutil.rmtree(class_folders / "n02012849")
    told = r"out/classes\.json: lists other classes than the 2 .* give --names .* another --output"
    with pytest.raises(UserError, match=told):
        convert(class_folders, tmp_path / "out", "val")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_other_inputs_of_the_same_number_are_refused(class_folders: Path, tmp_path: Path):
    def captions(text: str) -> Path:
        return jsonl(tmp_path / "c.jsonl", {"image": "n01440764/a.JPEG", "caption": text})

    told = r"with other settings \(input_files: '[0-9a-f]{16}', now '[0-9a-f]{16}'\)"
    convert(class_folders, tmp_path / "out", captions=captions("one"))
    table = captions("another")
    with pytest.raises(UserError, match=told):
        convert(class_folders, tmp_path / "out", captions=table)
    convert(class_folders, tmp_path / "folders")
    (class_folders / "n01440764/a.JPEG").rename(class_folders / "n01440764/c.JPEG")
    with pytest.raises(UserError, match=told):
        convert(class_folders, tmp_path / "folders")
    val = val_tar(tmp_path / "tars")
    wnids = [b"n01440764", b"n02012849"]
    for shift, name in enumerate(("la", "lb")):
        lines = [b"ILSVRC2012_val_%08d,%b\n" % (n, wnids[(n + shift) % 2]) for n in range(1, 5)]
        save(tmp_path / f"{name}.csv", b"".join(lines))
    convert(val, tmp_path / "val", labels=tmp_path / "la.csv")
    with pytest.raises(UserError, match=r"la\.csv', now '.*lb\.csv'"):
        convert(val, tmp_path / "val", labels=tmp_path / "lb.csv", name="train")


def test_digests_follow_names_sizes_times_and_lists(tmp_path: Path):
    file = save(tmp_path / "devkit/a", b"1")
    first = digest([tmp_path / "devkit", None], [b"x"])
    assert first == digest([tmp_path / "devkit", None], [b"x"])
    others = {first, digest([None, tmp_path / "devkit"], [b"x"])}
    others.add(digest([tmp_path / "devkit", None], [b"y"]))
    os.utime(file, (1, 1))
    others.add(digest([tmp_path / "devkit", None], [b"x"]))
    save(tmp_path / "devkit/b", b"")
    others.add(digest([tmp_path / "devkit", None], [b"x"]))
    assert len(others) == 5


# ILSVRC's tars


def train_tar(folders: Path, path: Path) -> Path:
    inner = {}
    for place in sorted(folders.iterdir(), reverse=True):
        files = {f.name: f.read_bytes() for f in sorted(place.iterdir(), reverse=True)}
        inner[f"{place.name}.tar"] = tar(path.parent / "inner" / f"{place.name}.tar", files)
    return tar(path, {name: file.read_bytes() for name, file in inner.items()})


def test_a_tar_of_tars_gives_the_shards_that_folders_give(class_folders: Path, tmp_path: Path):
    index = tmp_path / "index.json"
    convert(class_folders, tmp_path / "folders", index=index, per_shard=2)
    outer = train_tar(class_folders, tmp_path / "tars/ILSVRC2012_img_train.tar")
    convert(outer, tmp_path / "outer", index=index, per_shard=2)
    inner = f"{tmp_path}/tars/inner/*.tar"
    convert(inner, tmp_path / "inner", index=index, per_shard=2)
    expected = contents(tmp_path / "folders")
    assert len(expected) == 3
    assert contents(tmp_path / "outer") == contents(tmp_path / "inner") == expected


def test_the_devkit_beside_the_tar_names_the_classes(class_folders: Path, tmp_path: Path):
    outer = train_tar(class_folders, tmp_path / "tars/ILSVRC2012_img_train.tar")
    convert(outer, tmp_path / "bare")
    assert json.loads((tmp_path / "bare/classes.json").read_text()) == sorted(WORDS)
    assert "captions" not in Shards(f"{tmp_path}/bare/*.tar")[0].json()
    make_devkit(tmp_path / "tars/ILSVRC2012_devkit_t12")
    convert(outer, tmp_path / "named")
    names = json.loads((tmp_path / "named/classes.json").read_text())
    assert names == ["tench", "crane (n02012849)", "crane (n03126707)"]
    assert names[0] in {
        caption for s in Shards(f"{tmp_path}/named/*.tar") for caption in s.json()["captions"]
    }


def val_tar(folder: Path, count: int = 4) -> Path:
    members = {f"ILSVRC2012_val_{n:08d}.JPEG": encoded(n, "jpeg") for n in range(1, count + 1)}
    return tar(folder / "ILSVRC2012_img_val.tar", members)


@pytest.mark.parametrize("form", ["folder", "tar.gz", "json", "csv", "numbers"])
def test_validation_pictures_get_their_labels(tmp_path: Path, form: str):
    val = val_tar(tmp_path / "tars")
    devkit = make_devkit(tmp_path / "ILSVRC2012_devkit_t12")
    wnids = ["n01440764", "n03126707", "n01440764", "n02012849"]
    files = [f"ILSVRC2012_val_{n:08d}" for n in range(1, 5)]
    index = save(
        tmp_path / "index.json",
        json.dumps({n: [w, WORDS[w]] for n, w in enumerate(sorted(WORDS))}).encode(),
    )
    if form == "folder":
        labels = devkit
    elif form == "tar.gz":
        labels = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
        with tarfile.open(labels, "w:gz") as archive:
            archive.add(devkit, devkit.name)
    elif form == "json":
        table = {f"{file}.JPEG": wnid for file, wnid in zip(files, wnids, strict=True)}
        labels = save(tmp_path / "val.json", json.dumps(table).encode())
    elif form == "csv":
        lines = [f"{file},{wnid} 1 2 3 4" for file, wnid in zip(files, wnids, strict=True)]
        labels = save(tmp_path / "val.csv", "\n".join(lines).encode())
    else:
        lines = [f"{file}.JPEG {n}" for file, n in zip(files, (0, 2, 0, 1), strict=True)]
        labels = save(tmp_path / "val.txt", "\n".join(lines).encode())
    names = index if form == "numbers" else None
    convert(val, tmp_path / "out", "val", index=names, labels=labels)
    found = {s.json()["file"]: s for s in Shards(f"{tmp_path}/out/val-*.tar")}
    for number, (file, wnid) in enumerate(zip(files, wnids, strict=True), 1):
        sample = found[f"{wnid}/{file}.JPEG"]
        assert sample.json()["label"] == sorted(WORDS).index(wnid)
        assert sample["jpg"] == encoded(number, "jpeg")


def test_what_the_labels_lack_is_told(tmp_path: Path):
    val = val_tar(tmp_path / "tars", 5)
    with pytest.raises(UserError, match=r"holds pictures, but not their classes; give --labels"):
        convert(val, tmp_path / "out")
    devkit = make_devkit(tmp_path / "tars/ILSVRC2012_devkit_t12")
    made = convert(val, tmp_path / "out")
    assert made.lost == {"label": 1}
    (entry,) = lost_items(tmp_path / "out/train-00000.tar")
    assert "ILSVRC2012_val_00000005.JPEG: the labels do not name it" in entry["what"]
    (devkit / "data/meta.mat").write_bytes(b"no matrix")
    with pytest.raises(UserError, match=r"ILSVRC2012_devkit_t12: not a devkit"):
        convert(val, tmp_path / "other")
    numbers = save(tmp_path / "val.txt", b"ILSVRC2012_val_00000001.JPEG 65\n")
    with pytest.raises(UserError, match=r"number 65 for .*; --names must say which class"):
        convert(val, tmp_path / "other", labels=numbers)
    for name, data, told in (
        ("a.json", b"[", r"a\.json: expected \{file: class"),
        ("a.csv", b"\n", r"a\.csv: holds no file with its class"),
        ("a.tar.gz", b"no tar", r"a\.tar\.gz: cannot be read"),
        ("none", None, r"none: cannot be read .* expected ILSVRC2012_devkit_t12\.tar\.gz"),
    ):
        path = save(tmp_path / name, data) if data is not None else tmp_path / name
        with pytest.raises(UserError, match=told):
            convert(val, tmp_path / "other", labels=path)
    empty = tar(tmp_path / "ILSVRC2012_devkit_t12.tar", {"a": b"b"})
    with pytest.raises(UserError, match=r"is it the devkit"):
        convert(val, tmp_path / "other", labels=empty)


def test_labels_are_not_for_pictures_whose_class_is_known(class_folders: Path, tmp_path: Path):
    table = save(tmp_path / "val.csv", b"a,n01440764\n")
    with pytest.raises(UserError, match=r"--labels is for flat tars"):
        convert(class_folders, tmp_path / "out", labels=table)
    class_tar = tar(tmp_path / "n01440764.tar", {"a.JPEG": encoded(0, "jpeg")})
    with pytest.raises(UserError, match=r"--labels is for flat tars"):
        convert(class_tar, tmp_path / "out", labels=table)
    samples = [("a", {"jpg": encoded(0, "jpeg"), "cls": b"0"})]
    (shard,) = write_shards(tmp_path / "in", "s", samples)
    with pytest.raises(UserError, match=r"--labels nope: the samples of .* have labels; leave it"):
        convert(shard, tmp_path / "out", labels=Path("nope"))


def test_a_damaged_tar_loses_pictures_but_never_a_class(class_folders: Path, tmp_path: Path):
    outer = train_tar(class_folders, tmp_path / "ILSVRC2012_img_train.tar")
    data = bytearray(outer.read_bytes())
    with tarfile.open(outer) as archive:
        last = archive.getmembers()[-1]
        with tarfile.open(fileobj=archive.extractfile(last)) as inner:
            second = last.offset_data + inner.getmembers()[1].offset
    outer.write_bytes(data[: last.offset_data + 600])
    with pytest.raises(UserError, match=r"n01440764\.tar: it is cut short; copy or fetch the tar"):
        convert(outer, tmp_path / "out")
    data[second : second + 512] = b"x" * 512  # the header of a picture
    outer.write_bytes(data)
    made = convert(outer, tmp_path / "out")
    assert made.lost == {"shard": 1}
    samples = [sample.json() for sample in Shards(f"{tmp_path}/out/*.tar")]
    assert sorted(sample["label"] for sample in samples) == [0, 1, 1, 2, 2]
    tar(tmp_path / "tars/n00000001.tar", {"a.JPEG": encoded(0, "jpeg")})
    tar(tmp_path / "tars/n00000002.tar", {})
    with pytest.raises(UserError, match=r"the tar of n00000002 holds no pictures"):
        convert(f"{tmp_path}/tars/*.tar", tmp_path / "empty")
    outer.write_bytes(b"no tar at all" * 100)
    with pytest.raises(UserError, match=r"not a tar of pictures, of tars, or of samples"):
        convert(outer, tmp_path / "none")


# Samples that have labels


@pytest.fixture
def labelled(tmp_path: Path) -> str:
    """Two shards as timm writes them."""
    for shard in range(2):
        write_shards(
            tmp_path / "timm",
            f"imagenet-{shard}",
            [
                (f"n0144076{n}_{shard}", {"jpg": encoded(n, "jpeg"), "cls": b"%d" % n,
                                          "json": {"filename": f"{n}.JPEG"}})
                for n in range(3)
            ],
        )  # fmt: skip
    return f"{tmp_path}/timm/imagenet-{{0..1}}-00000.tar"


def test_labelled_shards_become_a_shard_each_in_their_order(labelled: str, tmp_path: Path):
    names = {str(n): [f"n0000000{n}", f"thing_{n}"] for n in range(3)}
    index = save(tmp_path / "index.json", json.dumps(names).encode())
    convert(labelled, tmp_path / "out", index=index, reader=ImageReader(8))
    assert json.loads((tmp_path / "out/classes.json").read_text()) == [
        "thing 0", "thing 1", "thing 2",
    ]  # fmt: skip
    for shard in range(2):
        samples = list(Shards(f"{tmp_path}/out/train-0000{shard}.tar"))
        keys = [sample.where.rpartition(":")[2] for sample in samples]
        assert keys == [f"n0144076{n}_{shard}" for n in range(3)]
        assert [sample.json()["label"] for sample in samples] == [0, 1, 2]
        assert {sample.picture().size for sample in samples} == {(8, 8)}
        assert samples[1].json()["captions"][1] == "a photo of a thing 1"
        assert samples[1].json()["filename"] == "1.JPEG"
    with pytest.raises(UserError, match=r"holds the shards that are read"):
        convert(labelled, tmp_path / "timm")


def test_labelled_shards_without_names_and_with_bad_labels(
    labelled: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        convert(labelled, tmp_path / "out")
    assert "no --names" in caplog.text
    assert not (tmp_path / "out/classes.json").exists()
    index = save(tmp_path / "index.json", b'{"0": ["a", "a"], "1": ["b", "b"]}')
    made = convert(labelled, tmp_path / "fewer", index=index)
    assert made.lost == {"label": 2}
    assert (
        "label is 2; expected 0 to 1" in lost_items(tmp_path / "fewer/train-00000.tar")[0]["what"]
    )


# Recaptioned


def test_a_table_captions_pictures_by_path_or_name(
    class_folders: Path, labelled: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    save(class_folders / "n01440764/own.JPEG", encoded(9, "jpeg"))
    table = jsonl(
        tmp_path / "new.jsonl",
        {"image": "train/n01440764/a.JPEG", "caption": "a fish"},
        {"image": "n02012849/a.JPEG", "captions": ["a bird", "a grey bird"]},
        {"image": "own.png", "caption": "another fish"},  # no other picture is called `own`
        {"image": "b.JPEG", "caption": "which?"},
        {"image": "n01440761_1.jpg", "caption": "in a shard"},
    )
    with caplog.at_level(logging.WARNING):
        convert(class_folders, tmp_path / "out", captions=table)
    assert "new.jsonl: has no captions for 4 of the pictures" in caplog.text
    found = {s.json()["file"]: s.json().get("captions") for s in Shards(f"{tmp_path}/out/*.tar")}
    assert {file: captions for file, captions in found.items() if captions} == {
        "n01440764/a.JPEG": ["a fish"],
        "n02012849/a.JPEG": ["a bird", "a grey bird"],
        "n01440764/own.JPEG": ["another fish"],
    }
    assert len(found) == 7
    convert(labelled, tmp_path / "shards", captions=table)
    samples = [s.json() for s in Shards(f"{tmp_path}/shards/*.tar")]
    assert [s.get("captions") for s in samples] == [None, None, None, None, ["in a shard"], None]
    assert [s["label"] for s in samples] == [0, 1, 2] * 2
    other = jsonl(tmp_path / "other.jsonl", {"image": "x/none.jpg", "caption": "a"})
    with pytest.raises(UserError, match=r"other\.jsonl: has no captions for these pictures"):
        convert(class_folders, tmp_path / "more", captions=other)


# Several processes


def command(*arguments: Any, rank: int = 0, world: int = 1) -> "subprocess.Popen[bytes]":
    checkout = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world),
                   "PYTHONPATH": checkout}  # fmt: skip
    line = [sys.executable, "-m", "mmfusion", *map(str, arguments)]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_make_what_one_makes(class_folders: Path, tmp_path: Path):
    for n in range(14):
        save(class_folders / f"n01440764/{n}.JPEG", encoded(n, "jpeg"))
    data = ("data", "imagenet", class_folders, "--per-shard", 3, "-o")
    assert run(*data, tmp_path / "one") == 0
    both = [command(*data, tmp_path / "two", rank=rank, world=2) for rank in range(2)]
    for process in both:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told.decode()
    expected = contents(tmp_path / "one")
    assert len(expected) == 7
    assert contents(tmp_path / "two") == expected
    assert {p.name for p in (tmp_path / "two").iterdir()} == {
        p.name for p in (tmp_path / "one").iterdir()
    }


def test_a_killed_command_goes_on(class_folders: Path, tmp_path: Path):
    data = ("data", "imagenet", class_folders, "--per-shard", 1, "-o")
    assert run(*data, tmp_path / "whole") == 0
    expected = contents(tmp_path / "whole")
    process = command(*data, tmp_path / "killed")
    end = time.monotonic() + 120
    while not contents(tmp_path / "killed") and time.monotonic() < end:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = contents(tmp_path / "killed")
    assert before
    assert before.items() <= expected.items()
    assert run(*data, tmp_path / "killed") == 0
    assert contents(tmp_path / "killed") == expected


# Real pictures, where they are at hand


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL}")
def test_real_pictures_by_class(tmp_path: Path):
    shard = shutil.copy(REAL / "imagenet_100/imagenet_100.tar", tmp_path)
    index = REAL / "imagenet_100/imagenet_class_index.json"
    as_it_is = Shards(str(shard))
    assert [sample.json()["label"] for sample in as_it_is] == list(range(0, 1000, 10))
    data = ("data", "imagenet", shard, "--names", index, "--size", 64, "-o", tmp_path / "shards")
    assert run(*data) == 0
    samples = list(Shards(f"{tmp_path}/shards/*.tar"))
    assert [sample.json()["label"] for sample in samples] == list(range(0, 1000, 10))
    assert {sample.picture().size for sample in samples} == {(64, 64)}
    assert samples[0].json()["captions"][1] == "a photo of a tench"
    assert len(json.loads((tmp_path / "shards/classes.json").read_text())) == 1000
    with tarfile.open(shard) as archive:
        for name in archive.getnames()[:12:2]:
            member = archive.extractfile(name)
            assert member is not None
            save(tmp_path / "classes" / name.partition("_")[0] / name, member.read())
    out = tmp_path / "out"
    assert run("data", "imagenet", tmp_path / "classes", "--names", index, "-o", out) == 0
    samples = list(Shards(f"{out}/*.tar"))
    assert sorted(sample.json()["label"] for sample in samples) == list(range(0, 60, 10))
    assert len(json.loads((out / "classes.json").read_text())) == 1000


def test_a_table_of_labels_may_not_contradict_itself(tmp_path: Path):
    table = tmp_path / "labels.txt"
    table.write_bytes(b"\xef\xbb\xbfval\\x.JPEG n1\r\nx.JPEG,n1\n./y.JPEG\tn2\n")
    assert read_labels(table, []).of == {"x": "n1", "y": "n2"}
    table.write_bytes(table.read_bytes() + b"elsewhere/x.JPEG n2\n")
    with pytest.raises(UserError, match=r"labels\.txt: says n1 and n2 of elsewhere/x\.JPEG"):
        read_labels(table, [])
