"""Pictures by class to shards: folders, ILSVRC's tars, labelled samples."""

import io
import json
import logging
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from material import encoded, jsonl, run, save, tar
from scipy.io import savemat

from mmfusion.data_pipelines.converters.devkit import _rows, read_labels
from mmfusion.data_pipelines.converters.imagenet import write_imagenet
from mmfusion.data_pipelines.images import ImageReader
from mmfusion.data_pipelines.shard_writer import Made, Output, digest, lost_items
from mmfusion.data_pipelines.shards import Shards, write_shards
from mmfusion.errors import UserError

WORDS = {
    "n01440764": "tench, Tinca tinca", "n02012849": "crane", "n03126707": "crane, hoist",
}  # fmt: skip
CHANGED = r"with other settings \(input_files: '[0-9a-f]{16}', now '[0-9a-f]{16}'\)"


def convert(
    source: Any, folder: Path, name: str = "train", index: Any = None, **options: Any
) -> Made:
    """Options of the shards, and others."""
    own = {key: options.pop(key) for key in ("labels", "captions") if key in options}
    return write_imagenet(source, Output(folder, name, **options), index, **own)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def facts(folder: Path) -> list[dict[str, Any]]:
    return [sample.json() for sample in Shards(f"{folder}/*.tar")]


def classes(folder: Path) -> list[str]:
    return json.loads((folder / "classes.json").read_text())


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


def train_tar(folders: Path, path: Path) -> Path:
    """A tar of tars; these lie in `inner` beside it, too."""
    inner = {}
    for place in sorted(folders.iterdir(), reverse=True):
        files = {f.name: f.read_bytes() for f in sorted(place.iterdir(), reverse=True)}
        inner[f"{place.name}.tar"] = tar(files.items())
        save(path.parent / "inner" / f"{place.name}.tar", inner[f"{place.name}.tar"])
    return save(path, tar(inner.items()))


def val_tar(folder: Path, count: int = 4) -> Path:
    members = [(f"ILSVRC2012_val_{n:08d}.JPEG", encoded(n, "jpeg")) for n in range(1, count + 1)]
    return save(folder / "ILSVRC2012_img_val.tar", tar(members))


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


# Folders


def test_imagenet_shards_keep_the_files_and_number_the_sorted_folders(
    class_folders: Path, tmp_path: Path
):
    output = tmp_path / "shards"
    convert(class_folders, output, index=tmp_path / "index.json")
    names = classes(output)
    assert names == ["great tench", "crane (n02012849)", "crane (n03126707)"]
    samples = list(Shards(f"{output}/train-*.tar"))
    for sample in samples:
        described = sample.json()
        place, _, file = described["file"].partition("/")
        assert sorted(WORDS)[described["label"]] == place
        assert f"a photo of a {names[described['label']]}" in described["captions"]
        kept = sample["jpg" if file == "a.JPEG" else "png"]
        assert kept == (class_folders / described["file"]).read_bytes()
    assert len({sample.json()["file"] for sample in samples}) == 6


def test_the_shuffle_goes_by_the_seed_alone(class_folders: Path, tmp_path: Path):
    def files(output: str, seed: int) -> list[str]:
        convert(class_folders, tmp_path / output, seed=seed)
        return [described["file"] for described in facts(tmp_path / output)]

    first = files("one", 0)
    assert first != sorted(first)
    assert first == files("two", 0) != files("three", 1)
    # Folders named by number only: no words, so no captions.
    assert "captions" not in facts(tmp_path / "one")[0]


@pytest.mark.parametrize("format", ["jpeg", "png"])
def test_pictures_are_cut_square_and_resized_on_request(
    class_folders: Path, tmp_path: Path, format: Any
):
    convert(class_folders, tmp_path / "small", reader=ImageReader(8, format))
    for sample in Shards(f"{tmp_path}/small/*.tar"):
        assert (sample.picture().size, sample.picture().format) == ((8, 8), format.upper())


def test_bad_pictures_are_skipped_with_a_count_unless_all_are(
    class_folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    files = sorted(class_folders.glob("*/*.JPEG"))
    files[0].write_bytes(b"not a picture")
    with caplog.at_level(logging.WARNING):
        made = convert(class_folders, tmp_path / "most")
    assert len(facts(tmp_path / "most")) == 5
    assert f"left out: picture {files[0]}: not a readable picture" in caplog.text
    assert made.lost == {"picture": 1}
    (entry,) = lost_items(tmp_path / "most/train-00000.tar")
    assert (entry["reason"], str(files[0]) in entry["what"]) == ("picture", True)
    for n in range(20):
        save(class_folders / f"n01440764/bad{n}.JPEG", b"")
    command = ("data", "imagenet", class_folders, "-o", tmp_path / "many")
    assert run(*command) == 2
    assert run(*command, "--most-lost", 0.9) == 0
    for file in class_folders.glob("*/*"):
        file.write_bytes(b"") if file in files else file.unlink()
    with pytest.raises(UserError, match=r"6 of 6 items cannot be used \(6 picture\)"):
        convert(class_folders, tmp_path / "none")
    assert not list((tmp_path / "none").glob("*.tar*"))


def test_wrong_input_is_told(class_folders: Path, tmp_path: Path):
    out = tmp_path / "out"
    for source, index, told in (
        (tmp_path / "nowhere", None, r"nowhere: no such file"),
        (class_folders / "n01440764", None, r"no folders of pictures"),
        (class_folders, b'{"0": ["n01440764", "tench"]}',
         r"index\.json: has no name for the folder n02012849"),
        (class_folders, b'{"0": 3}', r"index\.json: expected"),
        (class_folders, b'{"0": ["a", "b"], "1": ["a", "c"]}', "index.json: names a folder twice"),
    ):  # fmt: skip
        path = save(tmp_path / "index.json", index) if index else None
        with pytest.raises(UserError, match=told):
            convert(source, out, index=path)
    convert(class_folders, out)
    assert convert(class_folders, out).new == 0
    with pytest.raises(UserError, match=r"with other settings \(seed: 0, now 1\); delete them"):
        convert(class_folders, out, seed=1)


def test_the_numbers_of_names_are_the_labels(class_folders: Path, tmp_path: Path):
    index = {"0": ["zebra", "a zebra"], "1": ["n03126707", "a hoist"], "2": ["n01440764", "tench"],
             "3": ["n02012849", "a bird"]}  # fmt: skip
    names = save(tmp_path / "un.json", json.dumps(index).encode())
    (class_folders / "zebra").mkdir()
    outer = save(tmp_path / "t/n02012849.tar", tar([("a.JPEG", encoded(0, "jpeg"))]))
    table = save(tmp_path / "t.txt", b"".join(b"ILSVRC2012_val_%08d 1\n" % n for n in range(1, 5)))
    out = tmp_path / "out"
    convert(class_folders, out, "train", names)
    convert(outer, out, "tar", names)
    convert(val_tar(tmp_path), out, "val", names, labels=table)
    expected = {place: int(number) for number, (place, _) in index.items()}
    assert len(facts(out)) == 11
    for described in facts(out):
        assert described["label"] == expected[described["file"].partition("/")[0]]
        assert described["captions"][0] == index[str(described["label"])][1]
    assert classes(out) == ["a zebra", "a hoist", "tench", "a bird"]


def test_nothing_is_dropped_silently_and_hidden_files_are_none(
    class_folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    save(class_folders / ".hid/a.JPEG", encoded(0, "jpeg"))
    save(class_folders / "n01440764/._a.JPEG", b"of a Mac")
    save(class_folders / "n01440764/c.heic", b"a picture that is not read")
    assert not convert(class_folders, tmp_path / "out").lost
    assert "passes over 1 files, such as n01440764/c.heic" in caplog.text
    assert classes(tmp_path / "out") == sorted(WORDS)
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
    table = {"image": "n01440764/a.JPEG", "caption": "one"}
    captions = jsonl(tmp_path / "c.jsonl", table)
    convert(class_folders, tmp_path / "out", captions=captions)
    jsonl(captions, {**table, "caption": "another"})
    with pytest.raises(UserError, match=CHANGED):
        convert(class_folders, tmp_path / "out", captions=captions)
    convert(class_folders, tmp_path / "folders")
    (class_folders / "n01440764/a.JPEG").rename(class_folders / "n01440764/c.JPEG")
    with pytest.raises(UserError, match=CHANGED):
        convert(class_folders, tmp_path / "folders")


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


def test_a_tar_of_tars_gives_the_shards_that_folders_give(class_folders: Path, tmp_path: Path):
    outer = train_tar(class_folders, tmp_path / "tars/ILSVRC2012_img_train.tar")
    sources = {"folders": class_folders, "outer": outer, "inner": f"{tmp_path}/tars/inner/*.tar"}
    for name, source in sources.items():
        convert(source, tmp_path / name, index=tmp_path / "index.json", per_shard=2)
    expected = contents(tmp_path / "folders")
    assert len(expected) == 3
    assert contents(tmp_path / "outer") == contents(tmp_path / "inner") == expected


def test_the_devkit_beside_the_tar_names_the_classes(class_folders: Path, tmp_path: Path):
    outer = train_tar(class_folders, tmp_path / "tars/ILSVRC2012_img_train.tar")
    convert(outer, tmp_path / "bare")
    assert classes(tmp_path / "bare") == sorted(WORDS)
    assert "captions" not in facts(tmp_path / "bare")[0]
    make_devkit(tmp_path / "tars/ILSVRC2012_devkit_t12")
    convert(outer, tmp_path / "named")
    assert classes(tmp_path / "named") == ["tench", "crane (n02012849)", "crane (n03126707)"]
    assert any("tench" in described["captions"] for described in facts(tmp_path / "named"))


@pytest.mark.parametrize("form", ["folder", "tar.gz", "json", "csv", "numbers"])
def test_validation_pictures_get_their_labels(tmp_path: Path, form: str):
    val = val_tar(tmp_path / "tars")
    devkit = make_devkit(tmp_path / "ILSVRC2012_devkit_t12")
    wnids = ["n01440764", "n03126707", "n01440764", "n02012849"]
    files = [f"ILSVRC2012_val_{n:08d}" for n in range(1, 5)]
    pairs = list(zip(files, wnids, strict=True))
    index = {n: [w, WORDS[w]] for n, w in enumerate(sorted(WORDS))}
    lines = {
        "json": json.dumps({f"{file}.JPEG": wnid for file, wnid in pairs}),
        "csv": "ImageId,PredictionString\n"  # as Kaggle's, whose head is no class
        + "\n".join(f"{file},{wnid} 1 2 3 4" for file, wnid in pairs),
        "numbers": "\n".join(f"{f}.JPEG {n}" for f, n in zip(files, (0, 2, 0, 1), strict=True)),
    }
    if form in lines:
        labels = save(tmp_path / f"val.{form}", lines[form].encode())
    elif form == "folder":
        labels = devkit
    else:
        labels = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
        with tarfile.open(labels, "w:gz") as archive:
            archive.add(devkit, devkit.name)
    names = save(tmp_path / "index.json", json.dumps(index).encode())
    convert(val, tmp_path / "out", "val", names if form == "numbers" else None, labels=labels)
    found = {s.json()["file"]: s for s in Shards(f"{tmp_path}/out/val-*.tar")}
    for number, (file, wnid) in enumerate(pairs, 1):
        sample = found[f"{wnid}/{file}.JPEG"]
        assert sample.json()["label"] == sorted(WORDS).index(wnid)
        assert sample["jpg"] == encoded(number, "jpeg")


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ("img1,dog\nimg2,cat\nimg3,cat", [("img1", "dog"), ("img2", "cat"), ("img3", "cat")]),
        ("file_name;class\nb, c.png;dog\nd.png;cat", [("b, c.png", "dog"), ("d.png", "cat")]),
        ("a.JPEG\tgoldfish, Carassius auratus\n", [("a.JPEG", "goldfish, Carassius auratus")]),
        ("my, cat.png\t3\nb.png\t4", [("my, cat.png", "3"), ("b.png", "4")]),
        ("img1.png n01440764 1 2 3 4\n", [("img1.png", "n01440764")]),
        ("a b.png big dog\n", [("a b.png big", "dog")]),  # no more can be known
    ],
)
def test_tables_of_labels(table: str, found: list[tuple[str, str]]) -> None:
    assert _rows(table) == found


def test_what_the_labels_lack_is_told(tmp_path: Path):
    val = val_tar(tmp_path / "tars", 5)
    with pytest.raises(UserError, match=r"holds pictures, but not their classes; give --labels"):
        convert(val, tmp_path / "out")
    devkit = make_devkit(tmp_path / "tars/ILSVRC2012_devkit_t12")
    assert convert(val, tmp_path / "out").lost == {"label": 1}
    (entry,) = lost_items(tmp_path / "out/train-00000.tar")
    assert "ILSVRC2012_val_00000005.JPEG: the labels do not name it" in entry["what"]
    (devkit / "data/meta.mat").write_bytes(b"no matrix")
    with pytest.raises(UserError, match=r"ILSVRC2012_devkit_t12: not a devkit"):
        convert(val, tmp_path / "other")
    empty = tar([("a", b"b")])
    for name, data, told in (
        ("a.json", b"[", r"a\.json: expected \{file: class"),
        ("a.csv", b"\n", r"a\.csv: holds no file with its class"),
        ("a.tar.gz", b"no tar", r"a\.tar\.gz: cannot be read"),
        ("none", None, r"none: cannot be read .* expected ILSVRC2012_devkit_t12\.tar\.gz"),
        ("a.tar", empty, r"is it the devkit"),
        ("a.txt", b"ILSVRC2012_val_00000001.JPEG 65\n", r"65 for .*; --names must say which class"),
    ):
        path = save(tmp_path / name, data) if data is not None else tmp_path / name
        with pytest.raises(UserError, match=told):
            convert(val, tmp_path / "other", labels=path)


def test_a_table_of_labels_may_not_contradict_itself(tmp_path: Path):
    table = tmp_path / "labels.txt"
    table.write_bytes(b"\xef\xbb\xbfval\\x.JPEG n1\r\nx.JPEG,n1\n./y.JPEG\tn2\n")
    assert read_labels(table, []).of == {"x": "n1", "y": "n2"}
    table.write_bytes(table.read_bytes() + b"elsewhere/x.JPEG n2\n")
    with pytest.raises(UserError, match=r"labels\.txt: says n1 and n2 of elsewhere/x\.JPEG"):
        read_labels(table, [])


@pytest.mark.parametrize(
    "lines",
    [
        "file,label\nx y.jpg,big dog\nz.jpg,big cat\n",
        '"image","label"\n"x y.jpg","big dog"\n"a/z.jpg", "big cat"\n',
        "x y.jpg\tbig dog\nz.jpg\tbig cat\n",
        "x y.jpg;big dog;train\nz.jpg;big cat;val\n",
    ],
)
def test_a_table_of_labels_in_words(tmp_path: Path, lines: str):
    table = save(tmp_path / "labels.csv", lines.encode())
    assert read_labels(table, []).of == {"x y": "big dog", "z": "big cat"}
    save(table, b"img.001,cat\nimg.002,dog\na.b.PNG,cat\n")  # a dot is no ending
    assert read_labels(table, []).of == {"img.001": "cat", "img.002": "dog", "a.b": "cat"}


def test_a_number_of_no_class_is_refused(tmp_path: Path):
    table = save(tmp_path / "labels.txt", b"x.JPEG 1\n")
    assert read_labels(table, ["n1", "n2"]).of == {"x": "n2"}
    with pytest.raises(UserError, match=r"has the number 1 for x\.JPEG"):
        read_labels(table, ["n1"])


def test_labels_are_not_for_pictures_whose_class_is_known(
    class_folders: Path, labelled: str, tmp_path: Path
):
    table = save(tmp_path / "val.csv", b"a,n01440764\n")
    class_tar = save(tmp_path / "n01440764.tar", tar([("a.JPEG", encoded(0, "jpeg"))]))
    for source, told in (
        (class_folders, "--labels is for flat tars"),
        (class_tar, "--labels is for flat tars"),
        (labelled, r"--labels .*val\.csv: the samples of .* leave it"),
    ):
        with pytest.raises(UserError, match=told):
            convert(source, tmp_path / "out", labels=table)


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
    assert convert(outer, tmp_path / "out").lost == {"shard": 1}
    assert sorted(described["label"] for described in facts(tmp_path / "out")) == [0, 1, 1, 2, 2]
    save(tmp_path / "tars/n00000001.tar", tar([("a.JPEG", encoded(0, "jpeg"))]))
    save(tmp_path / "tars/n00000002.tar", tar([]))
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
        samples = [
            (f"n0144076{n}_{shard}", {"jpg": encoded(n, "jpeg"), "cls": b"%d" % n,
                                      "json": {"filename": f"{n}.JPEG"}})
            for n in range(3)
        ]  # fmt: skip
        write_shards(tmp_path / "timm", f"imagenet-{shard}", samples)
    return f"{tmp_path}/timm/imagenet-{{0..1}}-00000.tar"


def test_labelled_shards_become_a_shard_each_in_their_order(
    labelled: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    names = {str(n): [f"n0000000{n}", f"thing_{n}"] for n in range(3)}
    index = save(tmp_path / "index.json", json.dumps(names).encode())
    convert(labelled, tmp_path / "out", index=index, reader=ImageReader(8))
    assert classes(tmp_path / "out") == ["thing 0", "thing 1", "thing 2"]
    for shard in range(2):
        samples = list(Shards(f"{tmp_path}/out/train-0000{shard}.tar"))
        assert [sample.key for sample in samples] == [f"n0144076{n}_{shard}" for n in range(3)]
        assert [sample.json()["label"] for sample in samples] == [0, 1, 2]
        assert {sample.picture().size for sample in samples} == {(8, 8)}
        assert samples[1].json()["captions"][1] == "a photo of a thing 1"
        assert samples[1].json()["filename"] == "1.JPEG"
    with pytest.raises(UserError, match=r"holds the shards that are read"):
        convert(labelled, tmp_path / "timm")
    with caplog.at_level(logging.WARNING):
        convert(labelled, tmp_path / "bare")
    assert "no --names" in caplog.text
    assert not (tmp_path / "bare/classes.json").exists()
    index = save(tmp_path / "fewer.json", b'{"0": ["a", "a"], "1": ["b", "b"]}')
    assert convert(labelled, tmp_path / "fewer", index=index).lost == {"label": 2}
    (entry,) = lost_items(tmp_path / "fewer/train-00000.tar")
    assert "label is 2; expected 0 to 1" in entry["what"]


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
    found = {described["file"]: described.get("captions") for described in facts(tmp_path / "out")}
    assert {file: captions for file, captions in found.items() if captions} == {
        "n01440764/a.JPEG": ["a fish"],
        "n02012849/a.JPEG": ["a bird", "a grey bird"],
        "n01440764/own.JPEG": ["another fish"],
    }
    assert len(found) == 7
    convert(labelled, tmp_path / "shards", captions=table)
    samples = facts(tmp_path / "shards")
    assert [s.get("captions") for s in samples] == [None, None, None, None, ["in a shard"], None]
    assert [s["label"] for s in samples] == [0, 1, 2] * 2
    other = jsonl(tmp_path / "other.jsonl", {"image": "x/none.jpg", "caption": "a"})
    with pytest.raises(UserError, match=r"other\.jsonl: has no captions for these pictures"):
        convert(class_folders, tmp_path / "more", captions=other)
