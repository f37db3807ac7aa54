"""Pictures, files and autoencoders that the data tests make for themselves."""

import io
import json
import resource
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

from mmfusion.cli import main

REAL = Path(__file__).resolve().parents[2] / "shared/data"


def pixels(seed: int, width: int = 20, height: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def saved(picture: PILImage.Image, format: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def encoded(seed: int, format: str = "png") -> bytes:
    return saved(PILImage.fromarray(pixels(seed)), format)


def npy(array: np.ndarray, pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=pickled)
    return file.getvalue()


def tar(members: Iterable[Any], mode: str = "w", **options: Any) -> bytes:
    """Members are a name and data, or a TarInfo."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, **options) as out:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                out.addfile(member, io.BytesIO(bytes(member.size)))
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            out.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def save(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def jsonl(path: Path, *lines: Any) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return save(path, text.encode())


def make_vae(folder: Path, seed: int = 0, levels: int = 2, channels: int = 4) -> Path:
    """A tiny autoencoder with random weights, whose downsampling is 2 ** (levels - 1)."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(seed)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        norm_num_groups=4,
        latent_channels=channels,
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


@contextmanager
def limited(what: int, most: int) -> Iterator[None]:
    """A limit of this process: RLIMIT_FSIZE is a disk that is full, or the end of a quota."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (most, before[1]))  # Python ignores the signal
    try:
        yield
    finally:
        resource.setrlimit(what, before)


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
