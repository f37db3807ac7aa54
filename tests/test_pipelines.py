"""Raw data to shards."""

import json
import logging
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from material import REAL, encoded, interleaved_lines, jsonl, make_vae, pixels, run, save
from mmfusion.data_pipelines.captions import write_captions
from mmfusion.data_pipelines.imagenet import write_imagenet
from mmfusion.data_pipelines.jobs import lost_items
from mmfusion.data_pipelines.pictures import PictureReader
from mmfusion.data_pipelines.shards import Shards

from mmfusion.errors import UserError

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
    write_imagenet(class_folders, output, class_index=tmp_path / "index.json")
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
        write_imagenet(class_folders, tmp_path / output, seed=seed)
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
    write_imagenet(class_folders, tmp_path / "small", reader=PictureReader(8, format))
    for sample in Shards(f"{tmp_path}/small/*.tar"):
        picture = sample.picture()
        assert (picture.size, picture.format) == ((8, 8), format.upper())


def test_bad_pictures_are_skipped_with_a_count_unless_all_are(
    class_folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    files = sorted(class_folders.glob("*/*.JPEG"))
    files[0].write_bytes(b"not a picture")
    with caplog.at_level(logging.WARNING):
        made = write_imagenet(class_folders, tmp_path / "most")
    assert len(Shards(f"{tmp_path}/most/*.tar")) == 5
    assert f"left out: picture {files[0]}: not a readable picture" in caplog.text
    assert made.lost == {"picture": 1}
    (entry,) = lost_items(tmp_path / "most/train-00000.tar")
    assert (entry["reason"], str(files[0]) in entry["what"]) == ("picture", True)
    for file in files:
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"6 of 6 items cannot be used \(6 picture\)"):
        write_imagenet(class_folders, tmp_path / "none")
    assert not list((tmp_path / "none").glob("*.tar*"))


def test_imagenet_says_what_is_wrong_with_its_input(class_folders: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere: cannot be read"):
        write_imagenet(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match=r"no folders of pictures"):
        write_imagenet(class_folders / "n01440764", tmp_path / "out")
    lacking = save(tmp_path / "lacking.json", b'{"0": ["n01440764", "tench"]}')
    with pytest.raises(UserError, match=r"lacking\.json: has no name for the folder n02012849"):
        write_imagenet(class_folders, tmp_path / "out", class_index=lacking)
    wrong = save(tmp_path / "wrong.json", b'{"0": 3}')
    with pytest.raises(UserError, match=r"wrong\.json: expected"):
        write_imagenet(class_folders, tmp_path / "out", class_index=wrong)
    write_imagenet(class_folders, tmp_path / "out")
    assert write_imagenet(class_folders, tmp_path / "out").new == 0
    with pytest.raises(UserError, match=r"with other settings \(seed: 0, now 1\); delete them"):
        write_imagenet(class_folders, tmp_path / "out", seed=1)
    (tmp_path / "out/train.settings.json").unlink()
    with pytest.raises(UserError, match=r"already has shards train-\*\.tar"):
        write_imagenet(class_folders, tmp_path / "out")


# Captions


def test_captions_become_shards_and_bad_lines_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
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
    with caplog.at_level(logging.WARNING):
        made = write_captions(lines, tmp_path / "out", seed=None)
    first, second = Shards(f"{tmp_path}/out/*.tar")
    assert first.json() == {"captions": ["a \u2028 dog", "ein Hund"], "label": 3}
    assert first["jpg"] == encoded(0, "jpeg")
    assert second.json() == {"captions": ["a cat"]}
    assert np.array_equal(np.asarray(second.picture()), pixels(1))  # a BMP becomes a PNG
    assert made.lost == {"json": 2, "caption": 3, "label": 1, "picture": 3}
    for number in range(4, 13):
        assert f"list.jsonl:{number}: " in caplog.text or number in (10, 11)
    assert "none.jpg" in caplog.text


# The command line


def test_the_commands_prepare_data_from_end_to_end(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    index, out = tmp_path / "index.json", tmp_path / "data"
    data = ("data", "imagenet", class_folders, "--names", index, "--size", 16, "-o", out / "a")
    assert run(*data) == 0
    assert "wrote 1 of 1 shards" in capsys.readouterr().out
    assert run(*data) == 0
    assert "wrote 0 of 1 shards" in capsys.readouterr().out
    assert run(*data, "--seed", 3) == 2
    assert "made with other settings" in capsys.readouterr().err
    lines = interleaved_lines(tmp_path)
    assert run("data", "interleaved", lines, "-o", out / "b") == 0
    lines = jsonl(tmp_path / "c.jsonl", {"image": "p/a.jpg", "caption": "a dog"})
    assert run("data", "captions", lines, "-o", out / "c", "--format", "png", "--size", 8) == 0
    assert run("data", "tokenizer", "--shards", f"{out}/[abc]/*.tar", "--vocabulary", 320,
               "-o", out / "t.model") == 0  # fmt: skip
    assert run("data", "tokenizer", "-o", out / "t.model") == 2
    image = {"codec": "vae", "vae": make_vae(tmp_path / "vae"), "size": 16, "patch": 2,
             "channels": 3, "latent_channels": 4, "downsampling": 2, "latent_scale": 0.5,
             }  # fmt: skip
    section = [f"image.{key}={value}" for key, value in image.items()]
    latents = ["data", "latents", f"{out}/a/*.tar", "-o", out / "d", "--flip", "--config", "tiny"]
    latents += section
    assert run(*latents) == 0
    assert "wrote 1 of 1 shards" in capsys.readouterr().out
    assert run(*latents) == 0
    assert "wrote 0 of 1 shards" in capsys.readouterr().out
    assert Shards(f"{out}/d/*.tar")[0].array("moments.npy").shape == (2, 2, 4, 8, 8)


# Real pictures, where they are at hand


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL}")
def test_real_pictures_and_captions(tmp_path: Path):
    tar = shutil.copy(REAL / "imagenet_100/imagenet_100.tar", tmp_path)
    as_it_is = Shards(str(tar))
    assert [sample.json()["label"] for sample in as_it_is] == list(range(0, 1000, 10))
    with tarfile.open(tar) as archive:
        for name in archive.getnames()[:12:2]:
            member = archive.extractfile(name)
            assert member is not None
            save(tmp_path / "classes" / name.partition("_")[0] / name, member.read())
    index = REAL / "imagenet_100/imagenet_class_index.json"
    reader = PictureReader(64)
    write_imagenet(tmp_path / "classes", tmp_path / "out", class_index=index, reader=reader)
    samples = list(Shards(f"{tmp_path}/out/*.tar"))
    assert sorted(sample.json()["label"] for sample in samples) == list(range(6))
    assert {sample.picture().size for sample in samples} == {(64, 64)}
    assert json.loads((tmp_path / "out/classes.json").read_text())[0] == "tench"
    flickr = Shards(shutil.copy(REAL / "flickr8k_1k/flickr8k_1k.tar", tmp_path))
    assert len(flickr) == 1000
    assert all(len(flickr.sample(i, only=("json",)).json()["captions"]) == 5 for i in range(1000))
    assert flickr[0].picture().mode == "RGB"
