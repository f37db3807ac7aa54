"""The linear codec: orthonormal, fitted the same way twice, carried by an exported model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import model_config, random_decoder, run_config
from material import make_vae, pixels, run, save, saved
from PIL import Image as PILImage
from safetensors.numpy import load, save_file

from mmfusion import Pipeline, export
from mmfusion.codecs.image import make_codec
from mmfusion.codecs.linear import LinearCodec, fit, lapping
from mmfusion.config import ImageConfig
from mmfusion.data_pipelines.latents import check_latents, write_latents
from mmfusion.data_pipelines.loader import Loader
from mmfusion.data_pipelines.shards import Shards, write_shards
from mmfusion.errors import UserError

PICTURES = [PILImage.fromarray(pixels(seed, 16, 16)) for seed in range(6)]


def image(path: Path, numbers: int = 12, **changes: Any) -> ImageConfig:
    given = {"codec": "linear", "linear": str(path), "size": 16, "patch": 4, **changes}
    return ImageConfig.model_validate({"latent_channels": numbers, **given})


def fitted(path: Path, numbers: int = 12, **changes: Any) -> LinearCodec:
    config = image(path, numbers, **changes)
    fit(PICTURES, config, path)
    return LinearCodec(config)


@pytest.mark.parametrize("patch", [1, 2, 4, 8, 16])
def test_the_filter_is_orthonormal_and_keeps_constants(patch: int):
    lap = lapping(16, patch).astype(np.float64)
    np.testing.assert_allclose(lap @ lap.T, np.eye(16), atol=1e-6)
    np.testing.assert_allclose(lap.sum(1), 1, atol=1e-6)
    assert np.abs(lap - np.eye(16)).max() > 0.1 or patch in (1, 2, 16)  # neighbours are mixed


def test_all_numbers_give_the_picture_back_and_errors_are_pixel_errors(tmp_path: Path):
    codec = fitted(tmp_path / "c", 48)
    tokens = codec.encode(PICTURES)
    assert tokens.shape == (6, 16, 48)
    assert tokens.dtype == np.float32
    for before, after in zip(PICTURES, codec.decode(tokens), strict=True):
        np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
    np.testing.assert_allclose(codec.components.T @ codec.components, np.eye(48), atol=1e-5)
    shown = (np.stack([np.asarray(p, np.float32) for p in PICTURES]) / 127.5 - 1).reshape(6, -1)
    latent = tokens.reshape(6, -1) / codec.scale
    np.testing.assert_allclose(
        np.linalg.norm(latent[0] - latent[1]), np.linalg.norm(shown[0] - shown[1]), rtol=1e-4
    )
    np.testing.assert_allclose(tokens.var(axis=(0, 1)).mean(), 1, rtol=1e-3)  # one scale for all


def test_fewer_numbers_keep_the_most_variance_that_any_can(tmp_path: Path):
    codec = fitted(tmp_path / "c", 5)
    whole = fitted(tmp_path / "d", 48)
    tokens = whole.encode(PICTURES).reshape(-1, 48) / whole.scale
    kept = codec.encode(PICTURES).reshape(-1, 5) / codec.scale
    variance = np.linalg.eigvalsh(np.cov(tokens.T))[::-1]
    np.testing.assert_allclose(np.cov(kept.T), np.diag(variance[:5]), atol=1e-3 * variance[0])


def test_the_same_pictures_give_the_same_bytes(tmp_path: Path):
    fitted(tmp_path / "a")
    fitted(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    one, other = (LinearCodec(image(tmp_path / name)) for name in "ab")
    np.testing.assert_array_equal(one.encode(PICTURES[:2]), other.encode(PICTURES[:2]))


def test_grey_pictures(tmp_path: Path):
    codec = fitted(tmp_path / "c", 16, channels=1)
    assert codec.decode(codec.encode(PICTURES[:1]))[0].mode == "L"


def test_mistakes_name_the_file_or_the_key(tmp_path: Path):
    path = tmp_path / "codec"
    fitted(path)
    whole = path.read_bytes()
    mean = load(whole)["mean"]
    save_file({"mean": mean}, tmp_path / "part")
    for given, said in (
        (image(tmp_path / "none"), "none: not a linear codec's file"),
        (image(save(tmp_path / "cut", whole[:50])), "cut: not a linear codec's file"),
        (image(tmp_path / "part"), "part: not a linear codec's file"),
        (image(path, 13), r"codec: has components of shape \(48, 12\)"),
        (image(path, patch=8), r"section needs \(192, 12\)"),
    ):
        with pytest.raises(UserError, match=said):
            make_codec(given)
    with pytest.raises(UserError, match=r"image\.latent_channels: 49 numbers of a patch of 48"):
        fit(PICTURES, image(path, 49), path)
    with pytest.raises(UserError, match="there are no pictures"):
        fit([], image(path), path)
    with pytest.raises(ValueError, match="codec linear needs `linear`"):
        ImageConfig(codec="linear", size=16)


def shards(folder: Path) -> str:
    write_shards(folder, "a", ((str(n), {"png": saved(p)}) for n, p in enumerate(PICTURES)))
    return f"{folder}/a-*.tar"


def test_the_command_fits_it_to_shards(tmp_path: Path, capsys: pytest.CaptureFixture):
    pattern, path = shards(tmp_path), tmp_path / "codec"
    named = ("image.codec=linear", f"image.linear={path}")
    sized = ("image.size=16", "image.patch=4", "image.latent_channels=12")
    command = ("data", "linear-codec", pattern, "-o", path, "--config", "emoji", *named, *sized)
    assert run(*command) == 0
    assert "12 numbers a token keep" in capsys.readouterr().out
    fit(PICTURES, image(tmp_path / "other"), tmp_path / "other")
    assert path.read_bytes() == (tmp_path / "other").read_bytes()


def test_latents_of_an_autoencoder_are_refused(tmp_path: Path):
    vae = {"codec": "vae", "vae": str(make_vae(tmp_path / "vae")), "size": 16, "patch": 2}
    coded = ImageConfig.model_validate({**vae, "latent_channels": 4, "downsampling": 2})
    write_latents(shards(tmp_path / "p"), tmp_path / "l", coded)
    header = Shards(f"{tmp_path}/l/*.tar").header
    fitted(tmp_path / "codec")
    with pytest.raises(UserError, match=r"here: holds latents .* image\.codec is linear"):
        check_latents({"here": header}, image(tmp_path / "codec"))
    with pytest.raises(UserError, match=r"image\.codec: is `linear`"):
        write_latents(shards(tmp_path / "p"), tmp_path / "m", image(tmp_path / "codec"))


def test_a_run_goes_on_with_the_same_codec_alone(digits_data: Path, tmp_path: Path):
    path, sized = tmp_path / "codec", {"size": 8, "patch": 2, "channels": 1}
    config = run_config(digits_data, tmp_path, image=image(path, 4, **sized).model_dump())
    fit(PICTURES, config.image, path)
    rows = Loader(config)
    rows.resume(rows.layout(), {n: [0] * 99 for n in range(4)})
    before = rows.layout()
    fit(PICTURES[:3], config.image, path)
    with pytest.raises(UserError, match=r"image\.linear: the checkpoint .* other contents"):
        Loader(config).resume(before, {n: [0] * 99 for n in range(4)})
    del before["linear"]  # as of an older version
    Loader(config).resume(before, {n: [0] * 99 for n in range(4)})


def test_an_exported_model_carries_it(tmp_path: Path):
    fitted(tmp_path / "codec")
    config = model_config(text=None, classes=["a"], image=image(tmp_path / "codec").model_dump())
    folder = tmp_path / "model"
    export.export(config, random_decoder(config).state_dict(), folder)
    before = export.model_digest(folder)
    (tmp_path / "codec").unlink()
    drawn = Pipeline.from_pretrained(folder).class_to_image([0], num_inference_steps=2)
    assert drawn[0].size == (16, 16)
    fit(PICTURES[:3], image(tmp_path / "codec"), tmp_path / "codec")
    export.export(config, random_decoder(config).state_dict(), folder)
    assert export.model_digest(folder) != before
