"""MAR's autoencoder as a diffusers folder: the same numbers, and refusals that name what is wrong.

`golden/mar_vae.json` holds what the official AutoencoderKL (causalfusion/causalfusion, vae.py)
gives with the weights and inputs that are made here: 32 channels, multipliers 1, 1, 2, two
residual blocks, 4 latent channels, attention at the lowest resolution of the encoder.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command

from mmfusion.codecs.image import AutoencoderCodec
from mmfusion.config import ImageConfig
from mmfusion.errors import UserError
from mmfusion.importers.checkpoint import read
from mmfusion.importers.mar_vae import import_mar_vae

GOLDEN = Path(__file__).parent / "golden" / "mar_vae.json"
CHANNELS, MULTIPLIERS, BLOCKS, LATENT = 32, (1, 1, 2), 2, 4
Shapes = dict[str, tuple[int, ...]]


def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Normal numbers that depend on `name` alone."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    numbers = np.random.Generator(np.random.Philox(key=key)).standard_normal(shape)
    return torch.from_numpy(numbers.astype(np.float32))


def filled(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Convolutions at 1/sqrt(fan-in), norms near 1, biases that would be missed."""
    return {
        name: draw(name, shape) * np.prod(shape[1:]) ** -0.5
        if len(shape) > 1
        else 0.2 * draw(name, shape) + name.endswith("weight")
        for name, shape in shapes.items()
    }


def resnet(name: str, before: int, after: int) -> Shapes:
    sizes = {
        "norm1": (before,),
        "conv1": (after, before, 3, 3),
        "norm2": (after,),
        "conv2": (after, after, 3, 3),
    }
    if before != after:
        sizes["nin_shortcut"] = (after, before, 1, 1)
    return {f"{name}.{key}": size for key, size in sizes.items()}


def attention(name: str, width: int) -> Shapes:
    square = (width, width, 1, 1)
    sizes = {"norm": (width,), **dict.fromkeys(("q", "k", "v", "proj_out"), square)}
    return {f"{name}.{key}": size for key, size in sizes.items()}


def names_and_shapes(decoder_attention: bool = False) -> Shapes:
    """The checkpoint's tensors as the official modules name them, written out on its own."""
    widths = [CHANNELS * m for m in MULTIPLIERS]
    last, found = len(widths) - 1, {}
    found["encoder.conv_in"] = (widths[0], 3, 3, 3)
    found["decoder.conv_in"] = (widths[-1], LATENT, 3, 3)
    for side in ("encoder", "decoder"):
        found |= resnet(f"{side}.mid.block_1", widths[-1], widths[-1])
        found |= attention(f"{side}.mid.attn_1", widths[-1])
        found |= resnet(f"{side}.mid.block_2", widths[-1], widths[-1])
    for level, width in enumerate(widths):
        before = widths[max(level - 1, 0)]
        for block in range(BLOCKS):
            found |= resnet(
                f"encoder.down.{level}.block.{block}", width if block else before, width
            )
            if level == last:
                found |= attention(f"encoder.down.{level}.attn.{block}", width)
        if level < last:
            found[f"encoder.down.{level}.downsample.conv"] = (width, width, 3, 3)
        above = widths[min(level + 1, last)]
        for block in range(BLOCKS + 1):
            found |= resnet(f"decoder.up.{level}.block.{block}", width if block else above, width)
            if level == last and decoder_attention:
                found |= attention(f"decoder.up.{level}.attn.{block}", width)
        if level:
            found[f"decoder.up.{level}.upsample.conv"] = (width, width, 3, 3)
    found["encoder.norm_out"] = (widths[-1],)
    found["decoder.norm_out"] = (widths[0],)
    found["encoder.conv_out"] = (2 * LATENT, widths[-1], 3, 3)
    found["decoder.conv_out"] = (3, widths[0], 3, 3)
    found["quant_conv"] = (2 * LATENT, 2 * LATENT, 1, 1)
    found["post_quant_conv"] = (LATENT, LATENT, 1, 1)
    both = [(f"{n}.weight", s) for n, s in found.items()]
    return dict(both + [(f"{n}.bias", s[:1]) for n, s in found.items()])


def read_vae(folder: Path) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder, use_safetensors=True).eval()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    others = {"loss.logvar": torch.zeros(1), "loss.discriminator.main.0.weight": torch.ones(2)}
    path = tmp_path / "kl.ckpt"
    torch.save({"model": {**filled(names_and_shapes()), **others}, "epoch": 3}, path)
    return path


# The same numbers


@pytest.mark.parametrize(
    ("key", "under"),
    [("encoder", "model"), ("decoder", "state_dict"), ("encoder_and_decoder", None)],
)
def test_the_official_numbers(key: str, under: str | None, tmp_path: Path) -> None:
    """`encoder`: attention where MAR has it. `encoder_and_decoder`: and in the decoder's level."""
    golden = json.loads(GOLDEN.read_text("utf-8"))
    weights = filled(names_and_shapes(decoder_attention=key == "encoder_and_decoder"))
    torch.save({under: weights} if under else weights, tmp_path / "kl.ckpt")
    import_mar_vae(tmp_path / "kl.ckpt", tmp_path / "vae")
    vae = read_vae(tmp_path / "vae")
    assert len(vae.state_dict()) == len(weights)
    picture, latent = (
        draw("picture", (1, 3, 16, 16)).clamp(-1, 1),
        draw("latent", (1, LATENT, 4, 4)),
    )
    with torch.inference_mode():
        encoded, decoded = vae.encode(picture).latent_dist.parameters, vae.decode(latent).sample
    made = encoded if key == "encoder" else decoded
    wanted = torch.tensor(golden[key]).reshape(made.shape)
    assert wanted.std() > 0.3  # it says something
    assert float((made - wanted).norm() / wanted.norm()) < 1e-5


# What is written


def test_the_folder_is_what_a_config_takes(checkpoint: Path, tmp_path: Path) -> None:
    import_mar_vae(checkpoint, tmp_path / "made" / "vae")
    files = sorted(path.name for path in (tmp_path / "made" / "vae").iterdir())
    assert files == ["config.json", "diffusion_pytorch_model.safetensors"]
    config = read_vae(tmp_path / "made" / "vae").config
    assert config.scaling_factor == 0.2325
    assert list(config.block_out_channels) == [32, 32, 64]
    assert (config.layers_per_block, config.latent_channels) == (2, 4)
    assert list(config.down_block_types) == ["DownEncoderBlock2D"] * 2 + ["AttnDownEncoderBlock2D"]
    assert list(config.up_block_types) == ["UpDecoderBlock2D"] * 3
    image = ImageConfig(
        codec="vae", size=16, vae=str(tmp_path / "made" / "vae"), latent_channels=4, downsampling=4
    )
    assert AutoencoderCodec(image).scale == 0.2325


def test_the_command(checkpoint: Path, tmp_path: Path, command: Command) -> None:
    _, said, _ = command("import", "mar-vae", checkpoint, tmp_path / "vae")
    assert f"{len(names_and_shapes())} tensors, 2 others" in said
    assert (tmp_path / "vae" / "config.json").is_file()
    code, _, said = command("import", "mar-vae", checkpoint, tmp_path / "vae")
    assert code == 2
    assert "is there already" in said


# What is refused


def changed(name: str, value: torch.Tensor | None) -> dict[str, torch.Tensor]:
    weights = {**filled(names_and_shapes()), name: value}
    return {name: weight for name, weight in weights.items() if weight is not None}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("encoder.mid.block_1.norm2.bias", None, "mid_block.resnets.0.norm2.bias is missing"),
        ("decoder.conv_in.weight", None, "decoder.conv_in.weight is missing"),
        ("encoder.down.2.attn.1.q.weight", None, "attentions.1.to_q.weight is missing"),
        ("decoder.conv_in.bias", torch.zeros(3), "decoder.conv_in.bias has the shape"),
        ("decoder.more.weight", torch.zeros(3), "decoder.more.weight is unknown"),
        ("quant_conv.bias", torch.full((8,), torch.nan), "quant_conv.bias is not finite"),
        ("quant_conv.weight", torch.zeros(4, 8, 1, 1), "quant_conv.weight has the shape"),
        ("encoder.down.1.block.0.conv1.weight", torch.zeros(48, 32, 3, 3), "multiples of 32"),
    ],
)
def test_a_wrong_tensor_is_named(
    name: str, value: torch.Tensor | None, said: str, tmp_path: Path
) -> None:
    torch.save(changed(name, value), tmp_path / "kl.ckpt")
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        import_mar_vae(tmp_path / "kl.ckpt", tmp_path / "vae")
    assert [path.name for path in tmp_path.iterdir()] == ["kl.ckpt"]


def test_other_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    torch.save({"model": {"blocks.0.weight": torch.zeros(1)}}, tmp_path / "other.pt")
    torch.save({"model": 3}, tmp_path / "number.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    for name, said in (
        ("other.pt", "no encoder or decoder"),
        ("number.pt", "no named tensors"),
        ("text.pt", "cannot be read"),
        ("missing.pt", "no such file"),
    ):
        with pytest.raises(UserError, match=said):
            import_mar_vae(tmp_path / name, tmp_path / "vae")
    with pytest.raises(UserError, match="is there already"):
        import_mar_vae(checkpoint, tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.filterwarnings("error")
def test_another_pickle_protocol_is_read_without_a_warning(
    protocol: int, zipped: bool, tmp_path: Path
) -> None:
    held = {"a": torch.ones(2)}
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    torch.save(held, tmp_path / "c.pt", **options)
    assert read(tmp_path / "c.pt")["a"].tolist() == [1, 1]


def test_the_folder_one_stands_in_is_filled(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    import_mar_vae(checkpoint.resolve(), Path("."))
    assert (tmp_path / "here" / "config.json").is_file()
