"""The class-conditional presets: the paper's settings, and the paper's parameters."""

import numpy as np
import pytest
import torch

from mmfusion.config import Config, TrainConfig, load
from mmfusion.decoder import Decoder
from mmfusion.split import draw_sizes, draw_steps

# arXiv 2412.12095, table of models; layers of H as in the paper (its code has 48).
WIDTHS = {"l": (1024, 24, 16), "xl": (1280, 32, 20), "h": (1408, 40, 22)}
PARAMETERS = {
    ("causalfusion_l", 24): 369_519_632,
    ("causalfusion_xl", 32): 713_988_368,
    ("causalfusion_xl", 30): 674_640_656,
    ("causalfusion_h", 40): 1_045_203_856,
    ("causalfusion_h", 48): 1_235_635_088,
    ("causalfusion_l_512", 24): 370_306_064,
    ("causalfusion_xl_512", 32): 714_971_408,
    ("causalfusion_h_512", 40): 1_046_285_200,
}
NAMES = [f"causalfusion_{size}{pixels}" for size in WIDTHS for pixels in ("", "_512")]


def closed_form(width: int, depth: int, heads: int, tokens: int) -> int:
    """Parameters of CausalFusion by its description, 1,000 classes and 16 channels."""
    norms = 2 * 2 * width + 2 * 2 * (width // heads)
    attention = width * 3 * width + (width * width + width)
    mlp = (width * 4 * width + 4 * width) + (4 * width * width + width)
    timestep = (256 * width + width) + (width * width + width)
    labels = 1001 * 64 * width + 64 * width
    ends = (16 * width + width) + tokens * width + 2 * width + (width * 16 + 16)
    return depth * (norms + attention + mlp) + timestep + labels + ends


@pytest.mark.parametrize(("name", "depth"), PARAMETERS)
def test_parameters(name: str, depth: int) -> None:
    config = load(name, [f"decoder.depth={depth}"])
    with torch.device("meta"):
        model = Decoder(config, 0)
    counted = sum(p.numel() for p in model.parameters())
    width, _, heads = WIDTHS[name.split("_")[1]]
    assert counted == closed_form(width, depth, heads, 1024 if "512" in name else 256)
    assert counted == PARAMETERS[name, depth]


@pytest.mark.parametrize(
    ("name", "depth", "stated"),
    [
        ("causalfusion_l", 24, 368e6),  # the paper's, where depth and count agree
        ("causalfusion_h", 40, 1.05e9),
        ("causalfusion_xl", 30, 676e6),  # and where they do not: 32 layers are in the table
        ("causalfusion_xl", 32, 714e6),
        ("causalfusion_h", 48, 1.24e9),  # the code's
    ],
)
def test_parameters_are_near_what_is_stated(name: str, depth: int, stated: float) -> None:
    assert PARAMETERS[name, depth] == pytest.approx(stated, rel=0.005)


def test_a_config_that_says_nothing_averages_as_the_paper_does() -> None:
    assert TrainConfig.model_fields["ema"].default == 0.9999


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_settings(name: str) -> None:
    config = load(name)
    width, depth, heads = WIDTHS[name.split("_")[1]]
    size = 512 if "512" in name else 256
    assert has(config.decoder, width=width, depth=depth, heads=heads, kv_heads=None)
    assert has(config.decoder, norm="layer", mlp="gelu", mlp_ratio=4.0, position="learned")
    assert has(config.decoder, label_tokens=64, time_term=False)
    assert has(config.image, codec="vae", size=size, channels=3, patch=1)
    assert has(config.image, latent_channels=16, downsampling=16, latent_scale=0.2325)
    assert config.image.grid == (size // 16, size // 16)
    assert has(config.diffusion, timesteps=1000, beta_start=1e-4, beta_end=2e-2)
    assert has(config.diffusion, prediction="epsilon", order="random", ar_decay=0.9, ar_steps=None)
    assert has(config.diffusion, weight_start=2.0, noisy_copies=1, dropout=0.1)
    assert has(config.train, betas=[0.9, 0.95], eps=1e-15, weight_decay=0.0, grad_clip=1.0)
    assert has(config.train, ema=0.9999, warmup=25_000, decay=0.0, max_minutes=None)
    assert has(config.train, lr=8e-4, output=f"runs/{name}")
    assert config.train.lr == pytest.approx(1e-4 * 2048 / 256)
    assert config.train.steps == 800 * (1_281_167 // 2048) == 500_000
    assert config.train.warmup == 40 * (1_281_167 // 2048)
    assert (config.class_count, config.text) == (1000, None)
    assert len(config.classes) == 1000
    (source,) = config.data.sources
    assert has(source, task="class_to_image", flip=True)
    for world in (1, 2, 4, 8, 16, 32, 64):
        config.data.check_ranks(world)
    drawn = config.generation.class_to_image
    assert has(drawn, scheduler="ddpm", num_inference_steps=250, ar_steps=1)


def has(section: object, **wanted: object) -> bool:
    found = {key: getattr(section, key) for key in wanted}
    assert found == wanted
    return True


@pytest.mark.parametrize("name", ["causalfusion_l", "causalfusion_l_512"])
def test_a_step_has_2048_pictures(name: str) -> None:
    """Next-fit rows under all limits, filled with the lengths that documents really have."""
    config, rng = load(name), np.random.default_rng(0)
    pictures = 3000
    rows = count_rows(config, [length(config, rng) for _ in range(pictures)])
    assert config.row_length % 128 == 0
    assert config.data.rows * pictures / rows == pytest.approx(2048, rel=0.02)


def length(config: Config, rng: np.random.Generator) -> int:
    """Tokens of one document: the label, all clean AR steps but the last, the noisy ones."""
    tokens = config.image.tokens
    last = draw_sizes(tokens, draw_steps(tokens, 0.9, rng), rng)[-1]
    return 64 + (tokens - last) + tokens


def count_rows(config: Config, lengths: list[int]) -> float:
    assert config.data.capacity is not None
    most = config.data.capacity.noisy // config.image.tokens
    assert config.data.capacity.label == 64 * most
    assert config.data.capacity.image == config.row_length
    rows, used, held = 0.0, 0, 0
    for size in lengths:
        if used + size > config.row_length or held == most:
            rows, used, held = rows + 1, 0, 0
        used, held = used + size, held + 1
    return rows + used / config.row_length
