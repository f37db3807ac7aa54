"""Formulas of the paper's block and data, written out; and docs/faithfulness.md against the tests.

The rows of that page which no other test holds are held here.
"""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import HEADS, PAPER, WIDTH, model_config, random_decoder, run_config
from PIL import Image as PILImage

from mmfusion.attention import ByDocument
from mmfusion.codecs.image import patches, prepare, to_image
from mmfusion.data_pipelines.converters.digits import png
from mmfusion.data_pipelines.documents import DocumentMaker
from mmfusion.data_pipelines.samples import Sample
from mmfusion.decoder import Layer, sinusoid
from mmfusion.errors import UserError
from mmfusion.packing import collate
from mmfusion.sequence import Image, Label, Row

CHECKOUT = Path(__file__).resolve().parents[1]


def test_every_test_that_the_page_names_is_there() -> None:
    page = (CHECKOUT / "docs/faithfulness.md").read_text("utf-8")
    named = set(re.findall(r"`(\w+)::(test_\w+)`", page))
    assert len(named) > 20
    for file, test in named:
        text = (CHECKOUT / f"tests/{file}.py").read_text("utf-8")
        assert f"def {test}(" in text, f"{file}::{test}"


def test_every_place_that_the_page_names_is_there() -> None:
    page = (CHECKOUT / "docs/faithfulness.md").read_text("utf-8")
    named = set(re.findall(r"`([\w/]+\.(?:py|yaml)):(\w+)`", page))
    assert len(named) > 15
    for path, name in named:
        text = (CHECKOUT / path).read_text("utf-8")
        assert re.search(rf"\b{name}\b", text), f"{path}: {name}"


# The block


def layer_norm(x: np.ndarray, norm: Any) -> np.ndarray:
    """With eps 1e-5, in float64."""
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * array(norm.weight) + array(norm.bias)


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


@pytest.mark.parametrize("scale", [1.0, 1e-3])  # at 1e-3 the eps of the norms is felt
def test_a_block_is_the_papers_by_hand(scale: float) -> None:
    """Pre-norm; one qkv without bias; q and k normed a head; 1/sqrt(d); tanh-GELU."""
    block = random_decoder(model_config(PAPER)).blocks[0].double()
    x = scale * np.random.default_rng(0).standard_normal((6, WIDTH))
    attention, d = block.attention, WIDTH // HEADS
    assert attention.qkv.bias is None
    heads = (layer_norm(x, block.norm1) @ array(attention.qkv.weight).T).reshape(6, 3, HEADS, d)
    made = np.zeros((6, HEADS, d))
    for h in range(HEADS):
        q = layer_norm(heads[:, 0, h], attention.q_norm)
        k = layer_norm(heads[:, 1, h], attention.k_norm)
        share = np.exp(q @ k.T / math.sqrt(d))
        made[:, h] = share / share.sum(-1, keepdims=True) @ heads[:, 2, h]
    out = made.reshape(6, WIDTH) @ array(attention.out.weight).T + array(attention.out.bias)
    middle = x + out
    up = layer_norm(middle, block.norm2) @ array(block.mlp.up.weight).T + array(block.mlp.up.bias)
    gelu = 0.5 * up * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
    expected = middle + gelu @ array(block.mlp.down.weight).T + array(block.mlp.down.bias)
    row = Row(6, 1, label_tokens=6, null_label=1)
    row.document([Label(0)])  # of tokens that all see each other
    places = {"noisy_at": torch.tensor([5, 2]), "predict_at": torch.tensor([3])}
    batch = replace(collate([row]), **places)
    attend = ByDocument(batch)
    with torch.no_grad():
        ours = block(torch.from_numpy(x), attend, None, Layer(0, False, batch.predict_at))
        last = block(torch.from_numpy(x), attend, None, Layer(1, True, attend.asks))
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(last, expected[[5, 2, 3]], rtol=1e-9, atol=1e-9)


def test_timestep_features_are_cosines_then_sines() -> None:
    made = sinusoid(torch.tensor([0.0, 7.0, 999.0]), 256).numpy()
    for row, t in zip(made, (0, 7, 999), strict=True):
        angles = [t * 10_000 ** (-i / 128) for i in range(128)]
        expected = [*map(math.cos, angles), *map(math.sin, angles)]
        np.testing.assert_allclose(row, expected, atol=1e-4)


def test_a_token_lists_its_cells_row_by_row_and_their_channels_last() -> None:
    cells = np.arange(3 * 4 * 6).reshape(3, 4, 6)  # c, h, w
    tokens = patches(cells, 2)
    assert tokens.shape == (6, 12)
    for token, (top, left) in zip(tokens, ((r, c) for r in (0, 2) for c in (0, 2, 4)), strict=True):
        expected = [cells[c, top + p, left + q] for p in (0, 1) for q in (0, 1) for c in range(3)]
        assert token.tolist() == expected


# Data


def test_the_condition_is_dropped_from_a_tenth_and_half_are_mirrored(tmp_path: Path) -> None:
    config = run_config(tmp_path, tmp_path, diffusion={"dropout": 0.1})
    source = config.data.sources[0].model_copy(update={"flip": True})
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    sample = Sample({"json": b'{"label": 3}', "png": png(pixels)}, "here")
    maker, rng, draws = DocumentMaker(config, None), np.random.default_rng(0), 4000
    null = mirrored = 0
    for _ in range(draws):
        label, image = maker.make(source, sample, rng)
        assert isinstance(label, Label)
        assert isinstance(image, Image)
        assert label.label in (3, None)
        null += label.label is None
        mirrored += bool(image.latents[0, 0] > image.latents[0, 1])
    assert null / draws == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / draws) ** 0.5)
    assert mirrored / draws == pytest.approx(0.5, abs=4 * 0.5 / draws**0.5)


def test_pictures_are_rounded_as_the_official_sampler_rounds() -> None:
    """It truncates 127.5 x + 128, which rounds (x + 1) · 127.5 but for ties."""
    x = np.random.default_rng(0).uniform(-1.5, 1.5, (1, 500, 500))
    official = np.clip(127.5 * x + 128.0, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(to_image(x)), official[0])


# What center_crop_arr of the official train.py makes of uniform noise (see below), 8 x 8.
CROPS = {
    (23, 37): [
        [110, 134, 141, 154, 132, 102, 114, 110], [100, 150, 88, 111, 102, 131, 114, 91],
        [194, 98, 127, 179, 117, 126, 122, 107], [177, 131, 106, 133, 134, 105, 136, 110],
        [150, 131, 132, 157, 89, 103, 93, 99], [88, 131, 94, 145, 116, 137, 104, 111],
        [120, 110, 142, 155, 109, 127, 118, 108], [118, 167, 124, 119, 137, 137, 126, 128],
    ],
    (50, 21): [
        [114, 147, 159, 144, 82, 99, 169, 176], [105, 98, 160, 115, 77, 128, 134, 98],
        [129, 115, 124, 117, 148, 134, 137, 127], [139, 148, 127, 106, 129, 90, 99, 139],
        [56, 114, 160, 141, 117, 90, 96, 150], [97, 128, 144, 134, 165, 130, 95, 187],
        [61, 117, 91, 98, 118, 141, 113, 144], [106, 120, 159, 155, 139, 89, 130, 142],
    ],
}  # fmt: skip


@pytest.mark.parametrize(("height", "width"), CROPS)
def test_pictures_are_cropped_as_by_adm(height: int, width: int) -> None:
    rng = np.random.Generator(np.random.Philox(key=7))
    noise = (rng.random((height, width)) * 256).astype(np.uint8)
    made = prepare(PILImage.fromarray(noise), 8, 1)[..., 0]
    np.testing.assert_allclose(made.astype(int), CROPS[height, width], atol=1)


def test_a_picture_of_twice_the_size_is_halved_by_averaging() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    made = prepare(PILImage.fromarray(noise), 8, 1)[..., 0]
    np.testing.assert_allclose(made, noise.reshape(8, 2, 8, 2).mean((1, 3)), atol=1)


def test_a_ribbon_is_cut_before_it_is_resized() -> None:
    ribbon = np.zeros((2, 60_000), np.uint8)
    ribbon[:, 30_000:] = 255
    made = prepare(PILImage.fromarray(ribbon), 256, 1)[..., 0]
    assert made[:, 0].max() < 30  # the seam between black and white is in its middle
    assert made[:, -1].min() > 225


def test_sixteen_bits_are_scaled_not_cut_off() -> None:
    ramp = np.linspace(0, 65_535, 64).reshape(8, 8)
    made = prepare(PILImage.fromarray(ramp.astype(np.uint16)), 8, 1)[..., 0]
    np.testing.assert_allclose(made, ramp / 257, atol=1)
    for mode in ("I", "F"):
        with pytest.raises(UserError, match=f"mode {mode}"):
            prepare(PILImage.new(mode, (8, 8)), 8, 1)
