"""Raw data to shards, shards to latents, and what is said when something is missing or broken."""

import io
import json
import logging
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmfusion.data_pipelines.captions import write_captions
from mmfusion.data_pipelines.check import check_data
from mmfusion.data_pipelines.documents import DocumentMaker
from mmfusion.data_pipelines.imagenet import write_imagenet
from mmfusion.data_pipelines.interleaved import write_interleaved
from mmfusion.data_pipelines.latents import write_latents
from mmfusion.data_pipelines.pictures import PictureReader
from mmfusion.data_pipelines.samples import Sample
from mmfusion.data_pipelines.shards import Shards, write_shards
from mmfusion.data_pipelines.tokenizer import corpus, train_tokenizer
from PIL import Image as Picture
from PIL import ImageOps

from mmfusion.cli import main
from mmfusion.codecs.image import AutoencoderCodec, open_picture, patches
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Config, ImageConfig, load
from mmfusion.errors import UserError
from mmfusion.sequence import Image, Text

REAL = Path(__file__).resolve().parents[2] / "shared/data"


def pixels(seed: int, width: int = 20, height: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(seed: int, format: str = "png") -> bytes:
    file = io.BytesIO()
    Picture.fromarray(pixels(seed)).save(file, format)
    return file.getvalue()


def save(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def jsonl(path: Path, *lines: Any) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return save(path, text.encode())


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
    assert shards.place(4) == (paths[2], "s4")
    assert set(shards.sample(0, only=("json",))) == {"json"}


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path: Path):
    def samples():
        yield "s0", {"txt": b"fine"}
        raise UserError("no more")

    with pytest.raises(UserError, match="no more"):
        write_shards(tmp_path, "a", samples())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", [512, 0, -100, -3000, -1_000_000])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_truncated_shard_is_refused(shard: Path, cut: int, indexed: bool):
    """Cut in the end mark, before it, in the last member, further up, and before the first."""
    data = shard.read_bytes()
    with tarfile.open(shard) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    shard.write_bytes(data[: max(end + cut, 100)])
    if not indexed:
        Path(f"{shard}.index.json").unlink()
    with pytest.raises(UserError, match=r"a-00000\.tar: not a whole tar file"):
        Shards(str(shard))


@pytest.mark.parametrize("member", ["json", "png"])
def test_a_flipped_byte_is_found_and_the_sample_named(shard: Path, member: str):
    entry = json.loads(Path(f"{shard}.index.json").read_text())["samples"]["s1"][member]
    data = bytearray(shard.read_bytes())
    data[entry[0] + entry[1] // 2] ^= 1
    shard.write_bytes(data)
    shards = Shards(str(shard))
    assert shards[0].json() == {"label": 0}
    with pytest.raises(UserError, match=rf"a-00000\.tar:s1\.{member}: differs from the shard's"):
        shards[1]


def test_a_damaged_index_is_made_anew(shard: Path):
    path = Path(f"{shard}.index.json")
    whole = path.read_bytes()
    for broken in (b"", whole[:50], b"[]", b"{}", b'{"bytes": 1}'):
        path.write_bytes(broken)
        assert len(Shards(str(shard))) == 3
        assert path.read_bytes() == whole


def test_missing_shards_and_what_is_no_shard_are_named(tmp_path: Path, shard: Path):
    with pytest.raises(UserError, match=r"no shards match .*none-\*\.tar; run this"):
        Shards(f"{tmp_path}/none-*.tar", "run this")
    save(tmp_path / "b.tar", b"not a tar file")
    with pytest.raises(UserError, match=r"b\.tar: not a whole tar file"):
        Shards(f"{tmp_path}/b.tar")
    shards = Shards(str(shard))
    shard.unlink()
    with pytest.raises(UserError, match=r"a-00000\.tar: cannot be read"):
        shards[0]


def test_a_webdataset_of_txt_and_cls_members_is_read_as_it_is():
    sample = Sample({"txt": "ein Hund \u2028".encode(), "cls": b"7"}, "here")
    assert sample.json() == {"captions": ["ein Hund \u2028"], "label": 7}
    both = Sample({"json": b'{"captions": ["a"], "label": 1}', "txt": b"b", "cls": b"2"}, "here")
    assert both.json() == {"captions": ["a"], "label": 1}
    with pytest.raises(UserError, match=r"here\.cls"):
        Sample({"cls": b"seven"}, "here").json()


# Members that are not what they seem


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_broken_json_is_refused(data: bytes):
    with pytest.raises(UserError, match=r"here\.json"):
        Sample({"json": data}, "here").json()


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", encoded(0)[:200], encoded(0, "jpeg")[:300], encoded(0, "eps")],
    ids=["empty", "text", "cut png", "cut jpeg", "postscript"],
)
def test_what_is_no_whole_picture_is_refused(data: bytes):
    with pytest.raises(UserError, match=r"here: not a readable picture"):
        open_picture(data, "here")


def test_a_pickled_array_is_refused_and_not_run(tmp_path: Path):
    trace = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (trace,))

    file = io.BytesIO()
    np.save(file, np.array([Evil()], dtype=object), allow_pickle=True)
    for data in (file.getvalue(), pickle.dumps(Evil())):
        with pytest.raises(UserError, match=r"here\.moments\.npy: not a plain array"):
            Sample({"moments.npy": data}, "here").array("moments.npy")
    assert not trace.exists()


def test_arrays_that_are_cut_short_or_something_else_are_refused():
    file, several = io.BytesIO(), io.BytesIO()
    np.save(file, np.zeros((2, 3), np.float16))
    np.savez(several, np.zeros(3))
    huge = file.getvalue().replace(b"(2, 3), }      ", b"(99999999, 99)}")
    for data in (b"", file.getvalue()[:20], file.getvalue()[:-1], several.getvalue(), huge):
        with pytest.raises(UserError, match=r"here\.a\.npy: not a plain array"):
            Sample({"a.npy": data}, "here").array("a.npy")
    assert Sample({"a.npy": file.getvalue()}, "here").array("a.npy").shape == (2, 3)


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
        write_imagenet(class_folders, tmp_path / "most")
    assert len(Shards(f"{tmp_path}/most/*.tar")) == 5
    assert str(files[0]) in caplog.text
    assert "skipped 1 of 6" in caplog.text
    for file in files:
        file.write_bytes(b"")
    with pytest.raises(UserError, match="not one of 6 can be read"):
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
    with pytest.raises(UserError, match=r"already has shards train-\*\.tar"):
        write_imagenet(class_folders, tmp_path / "out")


# Captions, interleaved documents, tokenizer


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
        write_captions(lines, tmp_path / "out")
    first, second = Shards(f"{tmp_path}/out/*.tar")
    assert first.json() == {"captions": ["a \u2028 dog", "ein Hund"], "label": 3}
    assert first["jpg"] == encoded(0, "jpeg")
    assert second.json() == {"captions": ["a cat"]}
    assert np.array_equal(np.asarray(second.picture()), pixels(1))  # a BMP becomes a PNG
    assert "skipped 9 of 11" in caplog.text
    for number in range(4, 13):
        assert f"list.jsonl:{number}: " in caplog.text or number in (10, 11)
    assert "none.jpg" in caplog.text


def interleaved_lines(tmp_path: Path) -> Path:
    save(tmp_path / "p/a.jpg", encoded(0, "jpeg"))
    save(tmp_path / "p/b.png", encoded(1))
    good = {
        "content": [
            {"image": "p/a.jpg"}, {"text": "then comes"}, {"answer": "this"},
            {"image": "p/b.png", "target": True},
        ]
    }  # fmt: skip
    return jsonl(
        tmp_path / "documents.jsonl",
        good,
        {"content": [{"text": "nothing is learned"}, {"image": "p/a.jpg"}]},
        {"content": [{"answer": "a"}, {"picture": "p/a.jpg"}]},
        {"content": [{"answer": "a", "loss": 1}]},
        {"content": [{"image": "p/a.jpg", "target": "yes"}]},
        {"content": []},
        {"content": [{"image": "p/b.png"}, {"answer": "one"}]},
    )


def test_interleaved_documents_become_shards(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_interleaved(interleaved_lines(tmp_path), tmp_path / "out")
    first, second = Shards(f"{tmp_path}/out/*.tar")
    assert first.json()["content"] == [
        {"image": "0.jpg"}, {"text": "then comes"}, {"answer": "this"},
        {"image": "1.png", "target": True},
    ]  # fmt: skip
    assert (first["0.jpg"], first["1.png"]) == (encoded(0, "jpeg"), encoded(1))
    assert second.json()["content"] == [{"image": "0.png"}, {"answer": "one"}]
    assert "skipped 5 of 7" in caplog.text


def test_a_tokenizer_is_trained_from_shards_and_text(tmp_path: Path):
    write_shards(
        tmp_path,
        "a",
        [
            ("0", {"json": {"captions": ["alpha beta", "gamma"]}, "png": encoded(0)}),
            (
                "1",
                {"json": {"content": [{"text": "delta"}, {"answer": "eps"}, {"image": "0.png"}]}},
            ),
            ("2", {"txt": b"zeta"}),
        ],
    )
    text = save(tmp_path / "more.txt", b"eta\ntheta\n")
    lines = list(corpus([f"{tmp_path}/a-*.tar"], [text]))
    assert lines == ["alpha beta", "gamma", "delta", "eps", "zeta", "eta", "theta", ""]
    model = Tokenizer(train_tokenizer(lines, tmp_path / "t.model", 300))
    assert model.decode(model.encode("theta gamma")) == "theta gamma"
    with pytest.raises(UserError, match="cannot be trained"):
        train_tokenizer([" "], tmp_path / "t.model", 300)
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        list(corpus([], [tmp_path / "none.txt"]))


# Latents


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny autoencoder with random weights: 4 channels, downsampling 2."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
    )
    model.save_pretrained(folder)
    return folder


def latent_config(vae: Path, **changes: Any) -> ImageConfig:
    base = {"codec": "vae", "vae": str(vae), "size": 16, "patch": 2, "latent_channels": 4}
    return ImageConfig.model_validate({**base, "downsampling": 2, "latent_scale": 0.5, **changes})


def maker(image: ImageConfig, tokenizer: Tokenizer | None = None) -> DocumentMaker:
    source = {"name": "a", "shards": "a", "task": "class_to_image"}
    config = Config.model_validate(
        {
            "row_length": 512,
            "image": image.model_dump(),
            "classes": ["a", "b"],
            "decoder": {"width": 32, "depth": 1, "heads": 2},
            "diffusion": {"dropout": 0.0},
            "data": {"rows": 1, "micro_rows": 1, "sources": [source]},
            "train": {"output": "unused", "steps": 1, "lr": 1e-3},
        }
    )
    return DocumentMaker(config, tokenizer)


def source(task: str, flip: bool = False) -> Any:
    from mmfusion.config import SourceConfig

    return SourceConfig(name="a", shards="a", task=task, flip=flip)  # type: ignore[arg-type]


def test_latents_are_those_of_the_pictures_and_become_documents(tmp_path: Path, vae: Path):
    samples = [(f"s{i}", {"json": {"label": i % 2}, "png": encoded(i)}) for i in range(5)]
    write_shards(tmp_path / "in", "a", samples, per_shard=3)
    config = latent_config(vae)
    assert write_latents(f"{tmp_path}/in/*.tar", tmp_path / "out", config, flip=True, batch=2) == 2
    codec = AutoencoderCodec(config)
    latents = Shards(f"{tmp_path}/out/*.tar")
    for i, sample in enumerate(latents):
        assert set(sample) == {"json", "moments.npy"}
        assert sample.json() == {"label": i % 2}
        moments = sample.array("moments.npy")
        assert (moments.dtype, moments.shape) == (np.float16, (2, 2, 4, 8, 8))
        picture = Picture.fromarray(pixels(i)[:, 2:18])  # the centre square
        expected = codec.moments([picture, ImageOps.mirror(picture)])
        np.testing.assert_allclose(moments, expected, atol=2e-3)
    rng = np.random.default_rng(0)
    flipped = set()
    for _ in range(20):
        _, image = maker(config).make(source("class_to_image", flip=True), latents[0], rng)
        assert isinstance(image, Image)
        assert image.latents.shape == (16, 16)
        stored = latents[0].array("moments.npy").astype(np.float32)
        off = [np.abs(image.latents - patches(m[0], 2)) / patches(m[1], 2) for m in stored]
        flipped.add(int(np.argmin([o.mean() for o in off])))
        assert min(o.max() for o in off) < 6  # within the posterior
    assert flipped == {0, 1}


def test_interleaved_latents_round_trip(tmp_path: Path, vae: Path, tokenizer: Tokenizer):
    write_interleaved(interleaved_lines(tmp_path), tmp_path / "in")
    config = latent_config(vae)
    write_latents(f"{tmp_path}/in/*.tar", tmp_path / "out", config)
    first, second = Shards(f"{tmp_path}/out/*.tar")
    assert set(first) == {"json", "0.moments.npy", "1.moments.npy"}
    assert first.array("1.moments.npy").shape == (1, 2, 4, 8, 8)
    rng = np.random.default_rng(0)
    document = maker(config, tokenizer).make(source("interleaved"), first, rng)
    kinds = [(type(s), s.noise is not None if isinstance(s, Image) else s.loss) for s in document]
    assert kinds == [(Image, False), (Text, False), (Text, True), (Image, True)]
    assert document[2].ids[-1] == tokenizer.image_id  # the answer says that a picture follows
    flipping = source("interleaved", flip=True)
    with pytest.raises(UserError, match=r"no mirrored picture, but `flip` is true"):
        _ = [maker(config, tokenizer).make(flipping, second, rng) for _ in range(20)]


def test_latents_go_on_after_finished_shards(tmp_path: Path, vae: Path):
    samples = [(f"s{i}", {"json": {}, "png": encoded(i)}) for i in range(4)]
    write_shards(tmp_path / "in", "a", samples, per_shard=2)
    pattern, output, config = f"{tmp_path}/in/*.tar", tmp_path / "out", latent_config(vae)
    assert write_latents(pattern, output, config) == 2
    whole = (output / "a-00001.tar").read_bytes()
    (output / "a-00001.tar").unlink()
    stamp = (output / "a-00000.tar").stat().st_mtime_ns
    assert write_latents(pattern, output, config) == 1
    assert (output / "a-00001.tar").read_bytes() == whole
    assert (output / "a-00000.tar").stat().st_mtime_ns == stamp
    assert write_latents(pattern, output, config) == 0
    for other, flip in ((latent_config(vae, latent_scale=0.25), False), (config, True)):
        with pytest.raises(UserError, match="made with other settings"):
            write_latents(pattern, output, other, flip)
    assert write_latents(pattern, output, latent_config(vae, patch=1)) == 0  # as in training


def test_latents_say_what_is_wrong(tmp_path: Path, vae: Path, caplog: pytest.LogCaptureFixture):
    samples = [("s0", {"png": encoded(0)}), ("s1", {"png": b"no picture"}), ("s2", {"txt": b"a"})]
    pattern = str(write_shards(tmp_path / "in", "a", samples)[0])
    with pytest.raises(UserError, match=r"image\.codec: is `pixel`"):
        write_latents(pattern, tmp_path / "out", ImageConfig(size=8))
    with pytest.raises(UserError, match=r"image\.vae .*/in: not a diffusers AutoencoderKL"):
        write_latents(pattern, tmp_path / "out", latent_config(tmp_path / "in"))
    with pytest.raises(UserError, match="has 4 latent channels and downsampling 2"):
        write_latents(pattern, tmp_path / "out", latent_config(vae, latent_channels=8))
    with pytest.raises(UserError, match="no shards match"):
        write_latents(f"{tmp_path}/none/*.tar", tmp_path / "out", latent_config(vae))
    with pytest.raises(UserError, match="holds the pictures themselves"):
        write_latents(pattern, tmp_path / "in", latent_config(vae))
    write_latents(pattern, tmp_path / "out", latent_config(vae))
    assert "skipped 2 of 3" in caplog.text
    assert len(Shards(f"{tmp_path}/out/*.tar")) == 1


@pytest.mark.parametrize(
    "moments",
    [
        np.zeros((1, 2, 4, 4, 4), np.float16),
        np.zeros((0, 2, 4, 8, 8), np.float16),
        np.zeros((1, 2, 4, 8, 8), np.int32),
        np.zeros((), np.float32),
    ],
)
def test_latents_that_do_not_fit_the_config_are_refused(moments: np.ndarray, vae: Path):
    file = io.BytesIO()
    np.save(file, moments)
    sample = Sample({"json": b'{"label": 0}', "moments.npy": file.getvalue()}, "here")
    with pytest.raises(UserError, match=r"here\.moments\.npy: .*image section needs"):
        maker(latent_config(vae)).make(source("class_to_image"), sample, np.random.default_rng(0))


# Class names, and all that is missing


def test_the_class_names_of_a_file_take_their_place_in_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    overrides = ["classes=[]", "classes_file=names.json", "class_count=3"]
    missing = load("tiny", overrides)
    assert (missing.classes_file, missing.classes) == ("names.json", ["0", "1", "2"])
    names = save(tmp_path / "names.json", b'["a", "b", "c"]')
    config = load("tiny", overrides)
    assert (config.classes_file, config.class_count) == (None, None)
    assert config.classes == config.model_part().classes == ["a", "b", "c"]
    for broken in (b"{}", b"[]", b"[1]", b"{", b"\xff"):
        names.write_bytes(broken)
        with pytest.raises(UserError, match=r"classes_file names\.json"):
            load("tiny", overrides)
    names.write_bytes(b'["a"]')
    with pytest.raises(UserError, match="has 1 names; class_count says 3"):
        load("tiny", overrides)
    with pytest.raises(UserError, match="class_count goes with `classes_file`"):
        load("tiny", ["class_count=10"])


def test_mm_xl_without_its_data_lists_every_missing_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    config = load("mm_xl")
    assert len(config.classes) == 1000  # known before the names are
    with pytest.raises(UserError) as caught:
        check_data(config, "mm_xl")
    said = str(caught.value)
    for piece, command in (
        (
            "image.vae: no folder data/vae/mar-kl16",
            "mmfusion import mar-vae kl16.ckpt data/vae/mar-kl16",
        ),
        ("sources imagenet: no shards", 'latents "data/imagenet/*.tar" --config mm_xl --flip -o'),
        ("sources draw, caption: no shards", "captions CAPTIONS.jsonl -o data/captions\n"),
        ("sources interleaved: no shards", "interleaved DOCUMENTS.jsonl -o data/interleaved\n"),
        ("classes_file: no file data/imagenet/classes.json", "-o data/imagenet\n"),
        ("text.tokenizer: no file data/tokenizer.model", "-o data/tokenizer.model"),
    ):
        assert piece in said
        assert command in said.split(piece)[1]
    for path in (
        "data/vae/mar-kl16/x",
        "data/imagenet-latents/a.tar",
        "data/imagenet/classes.json",
    ):
        save(tmp_path / path, json.dumps(["a"] * 1000).encode())
    with pytest.raises(UserError, match="3 of its data are missing"):
        check_data(load("mm_xl"), "mm_xl")
    for path in ("captions-latents/a.tar", "interleaved-latents/a.tar", "tokenizer.model"):
        save(tmp_path / "data" / path, b"")
    check_data(load("mm_xl"), "mm_xl")


def test_the_digits_configs_name_their_one_command(tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="mmfusion data digits -o runs/digits/data"):
        check_data(load("digits"), "digits")


# The command line


def run(*arguments: Any) -> int:
    """The exit code of a command."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_commands_prepare_data_from_end_to_end(
    class_folders: Path, tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture
):
    index, out = tmp_path / "index.json", tmp_path / "data"
    data = ("data", "imagenet", class_folders, "--names", index, "--size", 16, "-o", out / "a")
    assert run(*data) == 0
    assert run(*data) == 2
    assert "already has shards" in capsys.readouterr().err
    lines = interleaved_lines(tmp_path)
    assert run("data", "interleaved", lines, "-o", out / "b") == 0
    lines = jsonl(tmp_path / "c.jsonl", {"image": "p/a.jpg", "caption": "a dog"})
    assert run("data", "captions", lines, "-o", out / "c", "--format", "png", "--size", 8) == 0
    assert run("data", "tokenizer", "--shards", f"{out}/[abc]/*.tar", "--vocabulary", 320,
               "-o", out / "t.model") == 0  # fmt: skip
    assert run("data", "tokenizer", "-o", out / "t.model") == 2
    section = [f"image.{key}={value}" for key, value in latent_config(vae)]
    latents = ["data", "latents", f"{out}/a/*.tar", "-o", out / "d", "--flip", "--config", "tiny"]
    latents += section
    assert run(*latents) == 0
    assert "wrote 1 shards" in capsys.readouterr().out
    assert run(*latents) == 0
    assert "already there" in capsys.readouterr().out
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
