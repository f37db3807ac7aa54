"""A small autoencoder: trained by a seed, gone on with after a kill, read as the hub's are."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import model_config, random_decoder
from material import encoded, make_vae, pixels, run, save, saved
from PIL import Image as PILImage
from safetensors.torch import load_file

from mmfusion import Pipeline, export
from mmfusion.codecs.image import VAE_FILES, AutoencoderCodec, PixelCodec
from mmfusion.config import ImageConfig
from mmfusion.data_pipelines import autoencoder
from mmfusion.data_pipelines.autoencoder import STATE, Pictures, Recipe, Trainer, loss, network
from mmfusion.data_pipelines.latents import check_latents, write_latents
from mmfusion.data_pipelines.shards import Shards, write_shards
from mmfusion.errors import UserError
from mmfusion.eval.reconstruction import reconstruct

SMALL = Recipe(batch=4, width=8)


def image(folder: Path, **changes: Any) -> ImageConfig:
    given = {"codec": "vae", "vae": str(folder), "size": 16, "patch": 2, "latent_channels": 6}
    return ImageConfig.model_validate({**given, "downsampling": 4, **changes})


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Smooth pictures, one of which is damaged."""
    folder = tmp_path_factory.mktemp("pictures")

    smooth = (PILImage.fromarray(pixels(n, 3, 3)).resize((16, 16), 3) for n in range(24))
    pictures = [saved(picture) for picture in smooth]
    pictures[5] = pictures[5][:40]
    write_shards(folder, "a", ((str(n), {"png": data}) for n, data in enumerate(pictures)))
    return f"{folder}/a-*.tar"


def trained(
    shards: str, folder: Path, steps: int, recipe: Recipe = SMALL, **changes: Any
) -> Trainer:
    trainer = Trainer(Pictures(shards, image(folder, **changes), recipe.seed), folder, recipe)
    trainer.run(steps, 2)
    trainer.write()
    return trainer


def test_it_learns_and_its_latents_have_variance_one(shards: str, tmp_path: Path) -> None:
    quick = replace(SMALL, lr=1e-2)
    few, many = (trained(shards, tmp_path / str(n), n, quick) for n in (1, 25))
    held_out = many.pictures.held_out()
    before, after = (
        reconstruct(AutoencoderCodec(image(tmp_path / n)), held_out).psnr[0] for n in ("1", "25")
    )
    assert after > before + 1
    codec = AutoencoderCodec(image(tmp_path / "25"))
    moments = codec.moments(many.pictures.some())
    mean, deviation = moments[:, 0], moments[:, 1]
    np.testing.assert_allclose(mean.mean(), 0, atol=1e-3)
    np.testing.assert_allclose(mean.var() + np.square(deviation).mean(), 1, rtol=1e-3)
    assert few.vae.config.norm_num_groups == 2


def test_the_loss_by_hand(tmp_path: Path) -> None:
    vae = network(image(tmp_path), SMALL)
    x, noise = torch.randn(2, 3, 16, 16), torch.randn(2, 6, 4, 4)
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
        mean, log_variance = posterior.mean, posterior.logvar
        strength = torch.tensor([0.0, 0.5]).view(2, 1, 1, 1)
        variance = log_variance.exp() + (strength * mean.std()) ** 2
        error = ((vae.decode(mean + variance.sqrt() * noise).sample - x) ** 2).mean()
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum() / 2
        whole, only_error = loss(vae, x, noise, strength)
    torch.testing.assert_close(only_error, error)
    torch.testing.assert_close(whole, error + 1e-6 * kl / (3 * 16 * 16))


def test_a_seed_gives_the_same_bytes_also_after_a_kill(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = trained(shards, tmp_path / "straight", 5)
    killed = Trainer(straight.pictures, tmp_path / "killed", SMALL)
    step, done = autoencoder.loss, []

    def dies(*arguments: Any) -> Any:
        done.append(1)
        if len(done) == 4:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(autoencoder, "loss", dies)
    with pytest.raises(KeyboardInterrupt):
        killed.run(5, 2)
    monkeypatch.undo()
    again = Trainer(straight.pictures, tmp_path / "killed", SMALL)
    assert again.step == 2
    assert trained(shards, tmp_path / "killed", 5).step == 5
    for name in (*VAE_FILES, STATE):
        one, other = ((tmp_path / run / name).read_bytes() for run in ("straight", "killed"))
        assert one == other, name
    trained(shards, tmp_path / "other", 5, Recipe(batch=4, width=8, seed=1))
    weights = [(tmp_path / run / VAE_FILES[0]).read_bytes() for run in ("straight", "other")]
    assert weights[0] != weights[1]


def test_a_signal_saves_the_step_that_is_done(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, step = Trainer(Pictures(shards, image(tmp_path), 0), tmp_path, SMALL), autoencoder.loss

    def told(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(autoencoder, "loss", told)
    with pytest.raises(SystemExit) as ended:
        trainer.run(5, 100)
    assert ended.value.code == 128 + signal.SIGTERM
    assert Trainer(trainer.pictures, tmp_path, SMALL).step == 1


def test_killed_while_it_is_written_no_mixed_autoencoder_is_there(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New weights with the scale of the old ones would give other latents without a word."""
    trainer, replace_file = trained(shards, tmp_path, 1), os.replace
    trainer.run(2, 1)

    def killed(*paths: Path) -> None:
        replace_file(*paths)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.write()
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"no config\.json"):
        AutoencoderCodec(image(tmp_path))
    trained(shards, tmp_path, 2)
    AutoencoderCodec(image(tmp_path))


def test_pictures_that_are_held_out_are_never_trained_on(shards: str, tmp_path: Path) -> None:
    pictures = Pictures(shards, image(tmp_path), 0)
    assert len(pictures.held) == 1
    seen = np.concatenate([pictures.held, pictures.trained])
    assert sorted(seen) == list(range(24))
    assert 5 in pictures.trained  # which is damaged: another takes its place
    drawn = [p for n in range(6) for p in pictures.batch(n, 4, np.random.default_rng(n))]
    held = {pictures.held_out()[0].tobytes()}
    held.add(pictures.held_out()[0].transpose(PILImage.Transpose.FLIP_LEFT_RIGHT).tobytes())
    assert not held & {picture.tobytes() for picture in drawn}
    assert len(drawn) == 24


def test_a_loss_that_is_not_finite_ends_it(shards: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"step \d+: loss or gradient not finite; give a lower --lr"
    ):
        trained(shards, tmp_path, 30, replace(SMALL, lr=1e30))
    if (tmp_path / STATE).exists():
        assert all(t.isfinite().all() for t in load_file(tmp_path / STATE).values())


def test_mistakes_are_one_line(shards: str, tmp_path: Path) -> None:
    def begin(folder: Path, pattern: str = shards, recipe: Recipe = SMALL, **changes: Any) -> None:
        Trainer(Pictures(pattern, image(folder, **changes), 0), folder, recipe)

    trained(shards, tmp_path / "a", 1)
    write_shards(tmp_path, "bad", ((str(n), {"png": b"x"}) for n in range(9)))
    write_shards(tmp_path, "one", [("0", {"png": encoded(0)})])
    save(tmp_path / "cut" / STATE, (tmp_path / "a" / STATE).read_bytes()[:500])
    for given, said in (
        ({"folder": tmp_path / "a", "recipe": Recipe(batch=8, width=8)}, r"other settings \(batch"),
        ({"folder": tmp_path / "a", "latent_channels": 3}, r"settings \(latent_channels\)"),
        ({"folder": tmp_path / "cut"}, f"{STATE}: no state of an autoencoder's training"),
        ({"folder": tmp_path / "b", "recipe": Recipe(width=6)}, "width 6: give a multiple of 4"),
        ({"folder": tmp_path / "b", "downsampling": 1}, "a downsampling of 2, 4"),
        ({"folder": tmp_path / "b", "pattern": f"{tmp_path}/one-*.tar"}, "one picture is too few"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            begin(**given)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError, match="100 pictures in a row are unusable"):
        trained(f"{tmp_path}/bad-*.tar", tmp_path / "c", 1)


def test_somebody_elses_autoencoder_stays(shards: str, tmp_path: Path) -> None:
    folder = Path(make_vae(tmp_path / "vae"))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="is there and not of this program"):
        trained(shards, folder, 1)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_latents_and_models_carry_it(shards: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        trained(shards, tmp_path / str(seed), 1, Recipe(batch=2, width=8, seed=seed))
    config = image(tmp_path / "0")
    whole = Pictures(shards, config, 0)
    write_shards(tmp_path, "some", ((str(n), {"png": encoded(n)}) for n in range(2)))
    write_latents(f"{tmp_path}/some-*.tar", tmp_path / "latents", config)
    header = {"here": Shards(f"{tmp_path}/latents/*.tar").header}
    check_latents(header, config)
    with pytest.raises(UserError, match="here: its latents were made with vae"):
        check_latents(header, image(tmp_path / "1"))
    model = model_config(text=None, classes=["a"], image=config.model_dump())
    export.export(model, random_decoder(model).state_dict(), tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model/vae").iterdir()) == sorted(VAE_FILES)
    tokens = AutoencoderCodec(config).encode(whole.held_out())
    pipeline = Pipeline.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(pipeline.codec.encode(whole.held_out()), tokens)
    assert pipeline.class_to_image([0], num_inference_steps=2)[0].size == (16, 16)


def test_the_commands_train_it_and_measure_it(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "vae"
    sized = ("image.size=16", "image.patch=2", "image.latent_channels=6", "image.downsampling=4")
    keys = ("image.codec=vae", f"image.vae={folder}", *sized, "--config", "emoji")
    command = ("data", "autoencoder", shards, "-o", folder, *keys, "--width", 8, "--batch", 2)
    assert run(*command, "--steps", 2) == 0
    said = capsys.readouterr().out
    assert "step 2; held out:" in said
    written = {name: (folder / name).read_bytes() for name in (*VAE_FILES, "report.html")}
    assert run(*command, "--steps", 2) == 0
    assert capsys.readouterr().out == said
    assert all((folder / name).read_bytes() == data for name, data in written.items())
    assert json.loads(written["config.json"])["_class_name"] == "AutoencoderKL"
    page = written["report.html"].decode()
    assert page.count('<span class="pair">') == 1
    assert "http" not in page.replace("http-equiv", "")
    save(tmp_path / "p/a.png", encoded(3))
    assert run("eval", "codec", tmp_path / "p", *keys, "-o", tmp_path / "page.html") == 0
    assert "dB of 1 pictures" in capsys.readouterr().out
    assert (tmp_path / "page.html").stat().st_size > 1000
    assert run("eval", "codec", tmp_path / "none", *keys) == 2


def test_psnr_in_closed_form() -> None:
    codec = PixelCodec(ImageConfig(codec="pixel", size=16, patch=4))
    found = reconstruct(codec, [PILImage.new("RGB", (16, 16), (127, 120, 135))] * 40)
    assert (found.n, len(found.pairs)) == (40, 32)
    assert found.psnr[0] > 140  # exact
    for noise in (0.1, 0.2):  # 127.5 times as much in 8 bits, and hardly any is cut off
        assert found.psnr[noise] == pytest.approx(20 * np.log10(2 / noise), abs=0.1)
    with pytest.raises(UserError, match="there are no pictures"):
        reconstruct(codec, [])
