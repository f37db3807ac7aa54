"""Shards of pictures to shards of latents, and what training makes of them."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import run_config
from material import encoded, interleaved_lines, make_vae, npy, pixels
from PIL import Image as PILImage
from PIL import ImageOps

from mmfusion.codecs.image import AutoencoderCodec, patches
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Config, ImageConfig, SourceConfig
from mmfusion.data_pipelines.converters.interleaved import write_interleaved
from mmfusion.data_pipelines.documents import DocumentMaker
from mmfusion.data_pipelines.latents import write_latents
from mmfusion.data_pipelines.loader import Loader
from mmfusion.data_pipelines.samples import Sample
from mmfusion.data_pipelines.shard_writer import Output
from mmfusion.data_pipelines.shards import Shards, write_shards
from mmfusion.errors import UserError
from mmfusion.sequence import Image, Text


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vae(tmp_path_factory.mktemp("vae"))


def latent_config(vae: Path, **changes: Any) -> ImageConfig:
    base = {"codec": "vae", "vae": str(vae), "size": 16, "patch": 2, "latent_channels": 4}
    return ImageConfig.model_validate({**base, "downsampling": 2, "latent_scale": 0.5, **changes})


def maker(image: ImageConfig, tokenizer: Tokenizer | None = None) -> DocumentMaker:
    unused, given = Path("unused"), {"image": image.model_dump(), "diffusion": {"dropout": 0.0}}
    return DocumentMaker(run_config(unused, unused, row_length=512, **given), tokenizer)


def source(task: Any, flip: bool = False) -> SourceConfig:
    return SourceConfig(name="a", shards="a", task=task, flip=flip)


def test_latents_are_normalised_by_shift_and_scale(tmp_path: Path, vae: Path):
    """Mean and deviation, both ways; some autoencoders have a shift."""
    folder = tmp_path / "vae"
    shutil.copytree(vae, folder)
    described = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**described, "shift_factor": 0.25}), "utf-8")
    plain = AutoencoderCodec(latent_config(vae, latent_scale=1.0))
    codec = AutoencoderCodec(latent_config(folder))
    pictures = [PILImage.fromarray(pixels(0, 16, 16))]
    mean, deviation = plain.moments(pictures)[0]
    expected = [0.5 * (mean - 0.25), 0.5 * deviation]
    np.testing.assert_allclose(codec.moments(pictures)[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        codec.pixels(codec.latents(pictures)), plain.pixels(mean[None]), atol=1e-5
    )


def test_latents_are_those_of_the_pictures_and_become_documents(tmp_path: Path, vae: Path):
    samples = [(f"s{i}", {"json": {"label": i % 2}, "png": encoded(i)}) for i in range(5)]
    write_shards(tmp_path / "in", "a", samples, per_shard=3)
    config = latent_config(vae)
    made = write_latents(f"{tmp_path}/in/*.tar", tmp_path / "out", config, flip=True, batch=2)
    assert (made.new, made.items) == (2, 5)
    codec = AutoencoderCodec(config)
    latents = Shards(f"{tmp_path}/out/*.tar")
    for i, sample in enumerate(latents):
        assert set(sample) == {"json", "moments.npy"}
        assert sample.json() == {"label": i % 2}
        moments = sample.array("moments.npy")
        assert (moments.dtype, moments.shape) == (np.float16, (2, 2, 4, 8, 8))
        picture = PILImage.fromarray(pixels(i)[:, 2:18])  # the centre square
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


def test_an_autoencoder_is_loaded_without_a_word(
    vae: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where a library that could load it in less memory is missing."""
    from diffusers.utils import logging

    logging.enable_propagation()
    try:
        AutoencoderCodec(latent_config(vae))
    finally:
        logging.disable_propagation()
    assert not caplog.records


def test_interleaved_latents_round_trip(tmp_path: Path, vae: Path, tokenizer: Tokenizer):
    write_interleaved(interleaved_lines(tmp_path), Output(tmp_path / "in", seed=None))
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
    assert write_latents(pattern, output, config).new == 2
    whole = (output / "a-00001.tar").read_bytes()
    (output / "a-00001.tar").unlink()
    stamp = (output / "a-00000.tar").stat().st_mtime_ns
    assert write_latents(pattern, output, config).new == 1
    assert (output / "a-00001.tar").read_bytes() == whole
    assert (output / "a-00000.tar").stat().st_mtime_ns == stamp
    assert write_latents(pattern, output, config).new == 0
    for other, flip in ((latent_config(vae, latent_scale=0.25), False), (config, True)):
        with pytest.raises(UserError, match="made with other settings"):
            write_latents(pattern, output, other, flip)
    assert write_latents(pattern, output, latent_config(vae, patch=1)).new == 0


def test_latents_of_other_or_damaged_pictures_are_not_made(tmp_path: Path, vae: Path):
    """Shards of another corpus have the same names; and what is missing, training cannot know."""
    for name in ("one", "two"):
        pictures = [(f"{name}{i}", {"json": {}, "png": encoded(i)}) for i in range(2)]
        write_shards(tmp_path / name, "train", pictures)
    write_latents(f"{tmp_path}/one/*.tar", tmp_path / "out", latent_config(vae))
    with pytest.raises(UserError, match=r"latents-\*\.tar were made with other settings \(from: "):
        write_latents(f"{tmp_path}/two/*.tar", tmp_path / "out", latent_config(vae))
    shard = tmp_path / "two/train-00000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"1 shards are damaged, .*two/train-00000\.tar first"):
        write_latents(f"{tmp_path}/two/*.tar", tmp_path / "new", latent_config(vae))


def test_latents_say_what_is_wrong(tmp_path: Path, vae: Path):
    samples = [("s0", {"png": encoded(0)}), ("s1", {"png": b"no picture"}), ("s2", {"txt": b"a"})]
    pattern = str(write_shards(tmp_path / "in", "a", samples)[0])
    good = latent_config(vae)
    for given, output, config, said in (
        (pattern, "out", ImageConfig(size=8), r"image\.codec: is `pixel`"),
        (pattern, "out", latent_config(tmp_path / "in"), r"image\.vae .*/in: not a diffusers"),
        (pattern, "out", latent_config(vae, latent_channels=8), "has 4 latent channels and downs"),
        (f"{tmp_path}/none/*.tar", "out", good, "no shards match"),
        (pattern, "in", good, "holds the pictures themselves"),
        (pattern, "in/../in", good, "holds the pictures themselves"),
    ):
        with pytest.raises(UserError, match=said):
            write_latents(given, tmp_path / output, config)
    assert write_latents(pattern, tmp_path / "out", good).lost == {"picture": 2}
    assert len(Shards(f"{tmp_path}/out/*.tar")) == 1


def test_training_refuses_latents_of_another_autoencoder(tmp_path: Path, vae: Path):
    """The shards say whose they are: SHA-256 of the weights, scale, size, crop, precision."""
    samples = [(f"s{i}", {"json": {"label": i % 2}, "png": encoded(i)}) for i in range(4)]
    write_shards(tmp_path / "in", "a", samples)
    config = latent_config(vae)
    write_latents(f"{tmp_path}/in/*.tar", tmp_path / "out", config, flip=True)
    header = Shards(f"{tmp_path}/out/*.tar").header["latents"]
    weights = (vae / "diffusion_pytorch_model.safetensors").read_bytes()
    assert header == {
        "vae": hashlib.sha256(weights).hexdigest(), "scale": 0.5, "shift": 0.0, "size": 16,
        "channels": 3, "crop": "centre, ADM", "precision": "float32, kept as float16", "flip": True,
    }  # fmt: skip

    def rows(image: ImageConfig) -> Loader:
        run = {**maker(image).config.model_dump(), "text": None}
        only = source("class_to_image").model_copy(update={"shards": f"{tmp_path}/out/*.tar"})
        run["data"]["sources"] = [only.model_dump()]
        return Loader(Config.model_validate(run))

    next(iter(rows(config)))
    copied = shutil.copytree(vae, tmp_path / "copy")  # the same autoencoder elsewhere
    next(iter(rows(latent_config(copied))))
    other = make_vae(tmp_path / "other", seed=1)
    for image, said in (
        (latent_config(other), "data source a: its latents were made with vae '.*', the config's"),
        (latent_config(vae, latent_scale=0.25), r"made with scale 0\.5, .* has 0\.25"),
        (latent_config(vae, size=32), r"made with size 16, .* has 32"),
    ):
        with pytest.raises(UserError, match=said):
            rows(image)
    with pytest.raises(UserError, match=r"image\.vae .*nowhere/at/all: no such folder"):
        rows(latent_config(tmp_path / "nowhere/at/all"))


@pytest.mark.parametrize("shape", [(1, 2, 4, 4, 4), (0, 2, 4, 8, 8), ()])
def test_latents_that_do_not_fit_the_config_are_refused(shape: tuple, vae: Path):
    moments = npy(np.zeros(shape, np.float16))
    sample = Sample({"json": b'{"label": 0}', "moments.npy": moments}, "here")
    with pytest.raises(UserError, match=r"here\.moments\.npy: .*image section needs"):
        maker(latent_config(vae)).make(source("class_to_image"), sample, np.random.default_rng(0))


def test_an_autoencoder_works_on_as_many_pictures_as_fit(
    vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = AutoencoderCodec(latent_config(vae))
    rng = np.random.default_rng(0)
    size = codec.config.size
    pictures = [
        PILImage.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)) for _ in range(5)
    ]
    whole = codec.encode(pictures)
    seen: list[int] = []
    codec.vae.encoder.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    monkeypatch.setattr("mmfusion.codecs.image.AT_ONCE", 2 * size**2)
    np.testing.assert_allclose(codec.encode(pictures), whole, atol=1e-5)
    assert seen == [2, 2, 1]
    drawn = codec.decode(whole)
    assert [picture.size for picture in drawn] == [(size, size)] * 5
