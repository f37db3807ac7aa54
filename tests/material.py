"""Pictures, files and autoencoders that the data tests make for themselves."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

from mmfusion.cli import main

REAL = Path(__file__).resolve().parents[2] / "shared/data"


def pixels(seed: int, width: int = 20, height: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(seed: int, format: str = "png") -> bytes:
    file = io.BytesIO()
    PILImage.fromarray(pixels(seed)).save(file, format)
    return file.getvalue()


def save(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def jsonl(path: Path, *lines: Any) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return save(path, text.encode())


def make_vae(folder: Path, seed: int = 0) -> Path:
    """A tiny autoencoder with random weights: 4 channels, downsampling 2."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(seed)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
    )
    model.save_pretrained(folder)
    return folder


def run(*arguments: Any) -> int:
    """The exit code of a command."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


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
