"""`train.start_from`: what a new run takes of another model, and what it refuses."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_decoder, run_config
from material import make_vae, save

from mmfusion import export
from mmfusion.codecs.linear import fit
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Config
from mmfusion.decoder import Decoder
from mmfusion.errors import UserError
from mmfusion.training.estimate import plan
from mmfusion.training.start import begin_from

TINY = {"width": 32, "depth": 2, "heads": 4, "label_tokens": 2}


def begun(config: Config, name: str) -> tuple[Decoder, Decoder]:
    """The decoder before and after."""
    size = len(Tokenizer(config.text.tokenizer)) if config.text else 0
    before, after = (random_decoder(config, size, seed=5) for _ in range(2))
    begin_from(name, config, after)
    return before, after


@pytest.fixture(scope="module")
def source(digits_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = run_config(digits_data, Path("unused"))
    folder = tmp_path_factory.mktemp("source")
    size = len(Tokenizer(digits_data / "tokenizer.model"))
    weights = random_decoder(config, size, seed=1).state_dict()
    export.export(config.model_part(), weights, folder)
    return folder


def test_all_of_the_same_model_is_taken(
    digits_data: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, after = begun(run_config(digits_data, Path("x")), str(source))
    wanted = export.read(source)[1].state_dict()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in after.state_dict().items())
    assert not torch.equal(before.latent_in.weight, after.latent_in.weight)
    assert not caplog.text
    assert all(parameter.requires_grad for parameter in after.parameters())


def test_what_is_new_stays_and_what_is_left_is_named(
    digits_data: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deeper = run_config(digits_data, Path("x"), decoder={**TINY, "depth": 3}, classes=[])
    with caplog.at_level(logging.WARNING):
        before, after = begun(deeper, str(source))
    was, now = before.state_dict(), after.state_dict()
    for key in was:
        assert torch.equal(was[key], now[key]) == key.startswith("blocks.2."), key
    (line,) = caplog.messages
    assert line.endswith(": new and initialised: blocks.2; left over: label, label_position")


def test_other_names_of_classes_are_said(
    digits_data: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun(run_config(digits_data, Path("x"), classes=list("abcdefghij")), str(source))
    assert "its classes have other names" in caplog.text


def test_the_shipped_model_starts_runs_at_another_precision(tmp_path: Path) -> None:
    config, decoder, tokenizer = export.read(export.SHIPPED / "digits")
    assert tokenizer
    half = {key: tensor.bfloat16() for key, tensor in decoder.state_dict().items()}
    export.export(config, half, tmp_path / "half")
    data = run_config(tmp_path, Path("x")).data
    train: Any = {"output": "x", "steps": 1, "lr": 1e-3}
    run = Config(**dict(config), data=data, train=train)
    _, whole = begun(run, "digits")
    _, rounded = begun(run, str(tmp_path / "half"))
    assert torch.equal(whole.latent_in.weight, decoder.latent_in.weight)
    assert rounded.latent_in.weight.dtype == torch.float32
    assert torch.equal(rounded.latent_in.weight, decoder.latent_in.weight.bfloat16().float())


def test_a_dry_run_checks_what_the_start_would(
    digits_data: Path, source: Path, tmp_path: Path
) -> None:
    def planned(name: Path | str, data: Path = digits_data, **changes: Any) -> str:
        config = run_config(data, tmp_path / "run", **changes)
        begun = config.train.model_copy(update={"start_from": str(name)})
        return plan(config.model_copy(update={"train": begun}), 1)

    assert planned(source).endswith(f"begins from    {source}")
    with pytest.raises(UserError, match=r"train\.start_from: model runs/none: no such folder"):
        planned("runs/none")
    with pytest.raises(UserError, match=r"has shape \(.*32.*\), the config's .* \(.*64"):
        planned(source, decoder={**TINY, "width": 64})
    assert "fits is told once the tokenizer is there" in planned(source, tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        planned("runs/none", tmp_path)
    save(tmp_path / "run/checkpoints/step-00000001/manifest.json", b"{}")
    assert "begins" not in planned("runs/none"), "a run that goes on begins from nothing else"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"decoder": {**TINY, "width": 64}},
            r"has shape \(.*32.*\), the config's .* \(.*64.*differ",
        ),
        ({"classes": ["a", "b"]}, r"label\S* has shape \(22, .*needs \(6, .*number of classes"),
        ({"image": {"size": 8, "channels": 3, "patch": 2}}, "made with channels 1, .* has 3"),
        ({"image": {"size": 8, "channels": 1, "patch": 4}}, "made with patch 2, .* has 4"),
    ],
)
def test_what_does_not_fit_is_one_line(
    digits_data: Path, source: Path, changes: dict, said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        begun(run_config(digits_data, Path("x"), **changes), str(source))
    assert str(source) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_another_tokenizer_or_codec_is_refused(
    digits_data: Path, source: Path, tmp_path: Path
) -> None:
    other = save(tmp_path / "t.model", (digits_data / "tokenizer.model").read_bytes() + b"\x2a\x00")
    config = run_config(digits_data, Path("x"), text={"tokenizer": str(other)})
    with pytest.raises(UserError, match=r"text\.tokenizer: train\.start_from .* other contents"):
        begun(config, str(source))
    linear = {"codec": "linear", "linear": str(tmp_path / "codec"), "latent_channels": 4}
    image = {"size": 8, "channels": 1, "patch": 2, **linear}
    config = run_config(digits_data, Path("x"), image=image)
    from PIL import Image as PILImage

    shades = [PILImage.new("L", (8, 8), n) for n in (9, 99)]
    fit(shades, config.image, tmp_path / "codec")
    with pytest.raises(UserError, match=r"made with codec 'pixel', .* has 'linear'"):
        begun(config, str(source))
    export.export(config.model_part(), begun_weights(config), tmp_path / "m")
    begun(config, str(tmp_path / "m"))
    fit(shades[:1], config.image, tmp_path / "codec")
    with pytest.raises(UserError, match="made with linear '"):
        begun(config, str(tmp_path / "m"))
    for seed in (0, 1):
        vae = {"codec": "vae", "vae": str(make_vae(tmp_path / "vae", seed)), "latent_channels": 4}
        config = run_config(digits_data, Path("x"), image={"size": 8, "downsampling": 2, **vae})
        if not seed:
            export.export(config.model_part(), begun_weights(config), tmp_path / "v")
            begun(config, str(tmp_path / "v"))
    with pytest.raises(UserError, match="made with vae '"):
        begun(config, str(tmp_path / "v"))


def begun_weights(config: Config) -> dict[str, torch.Tensor]:
    assert config.text
    return random_decoder(config, len(Tokenizer(config.text.tokenizer))).state_dict()


def test_what_is_no_model_is_one_line(digits_data: Path, source: Path, tmp_path: Path) -> None:
    config = run_config(digits_data, Path("x"))
    for name, said in (("digitz", "no such folder, no shipped model"), (str(tmp_path), "no model")):
        with pytest.raises(UserError, match=said):
            begun(config, name)
    damaged = shutil.copytree(source, tmp_path / "damaged")
    save(damaged / "model.safetensors", (source / "model.safetensors").read_bytes()[:-4])
    with pytest.raises(UserError, match="cut short or damaged"):
        begun(config, str(damaged))
