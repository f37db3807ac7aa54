"""Shards of pictures to shards of latents, so that training needs no autoencoder.

Each picture member becomes `moments.npy` (`0.moments.npy` for `0.png`): float16 (F, 2, c, h, w),
mean and standard deviation of the normalised latents, of the picture and, with F = 2, of its mirror
image. All other members stay. A shard that is there already is not made again.
"""

import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Picture
from PIL import ImageOps

from mmfusion.codecs.image import AutoencoderCodec, prepare
from mmfusion.config import ImageConfig
from mmfusion.errors import UserError

from .jobs import each
from .samples import PICTURES, Sample
from .shards import Shards, write_shard

SETTINGS = "latents.json"


@dataclass(frozen=True)
class Pictured:
    """A sample with its pictures decoded, cut square and resized."""

    shard: Path
    key: str
    sample: Sample
    pictures: dict[str, Picture.Image]


def write_latents(
    pattern: str,
    output: Path,
    config: ImageConfig,
    flip: bool = False,
    batch: int = 32,
    device: str | torch.device = "cpu",
) -> int:
    """Write a shard of latents to `output` for each shard of `pattern`; returns how many are new.

    Raises:
        UserError: no shards, two of one name, no autoencoder, other settings than those of the
            latents that `output` holds, or not one readable picture.
    """
    if config.codec != "vae":
        raise UserError("image.codec: is `pixel`; latents are for configs with the codec `vae`")
    shards = Shards(pattern)
    names = [path.name for path in shards.paths]
    if len(set(names)) < len(names):
        raise UserError(f"{pattern}: two shards have the same name; convert a folder at a time")
    if any(path.parent.resolve() == output.resolve() for path in shards.paths):
        raise UserError(f"{output}: holds the pictures themselves; give another --output")
    # What is there already must have been made the same way.
    codec = AutoencoderCodec(config, device)
    settings = config.model_dump(exclude={"patch"})
    _same_settings(output / SETTINGS, {**settings, "scale": codec.scale, "flip": flip})
    done = {name for name in names if (output / name).exists()}
    todo = [i for i in range(len(shards)) if shards.place(i)[0].name not in done]
    if not todo:
        return 0

    def load(number: int) -> Pictured:
        path, key = shards.place(number)
        return _pictured(path, key, shards[number], config)

    made = 0
    loaded = each(todo, load, str(output))
    for path, samples in groupby(loaded, lambda sample: sample.shard):
        write_shard(output / path.name, _encoded(samples, codec, flip, batch))
        made += 1
    return made


def _same_settings(path: Path, settings: dict) -> None:
    text = json.dumps(settings, indent=1)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".part").write_text(text, encoding="utf-8")
        os.replace(path.with_suffix(".part"), path)
    elif path.read_text(encoding="utf-8") != text:
        raise UserError(
            f"{path}: the latents in this folder were made with other settings (image section or "
            "--flip); give another --output"
        )


def _pictured(shard: Path, key: str, sample: Sample, config: ImageConfig) -> Pictured:
    own = [ext for ext in PICTURES if ext in sample][:1]  # the one that training would read
    names = own + [ext for ext in sample if "." in ext and _is_picture(ext)]
    if not names:
        raise UserError(f"{sample.where}: no picture in this sample")
    pictures = {}
    for name in names:
        square = prepare(sample.picture(name), config.size, config.channels)
        pictures[name] = Picture.fromarray(square[..., 0] if config.channels == 1 else square)
    return Pictured(shard, key, sample, pictures)


def _encoded(
    samples: Iterable[Pictured], codec: AutoencoderCodec, flip: bool, batch: int
) -> Iterator[tuple[str, dict]]:
    """The samples with latents in place of pictures, `batch` samples at a time."""
    rest = iter(samples)
    while some := list(islice(rest, batch)):
        pictures = [picture for sample in some for picture in sample.pictures.values()]
        moments = iter(_moments(pictures, codec, flip, batch))
        for one in some:
            members = {ext: data for ext, data in one.sample.items() if not _is_picture(ext)}
            for name in one.pictures:
                head = name.rpartition(".")[0]
                members[f"{head}.moments.npy" if head else "moments.npy"] = _npy(next(moments))
            yield one.key, members


def _is_picture(ext: str) -> bool:
    return ext.rpartition(".")[2] in PICTURES


def _moments(
    pictures: list[Picture.Image], codec: AutoencoderCodec, flip: bool, batch: int
) -> np.ndarray:
    """(B, F, 2, c, h, w) of B pictures, encoded `batch` at a time."""
    forms = [pictures, [ImageOps.mirror(p) for p in pictures]] if flip else [pictures]
    encoded = [
        np.concatenate([codec.moments(form[at : at + batch]) for at in range(0, len(form), batch)])
        for form in forms
    ]
    return np.stack(encoded, 1).astype(np.float16)


def _npy(moments: np.ndarray) -> bytes:
    if not np.isfinite(moments).all():
        raise UserError(
            "image.vae: gives latents that are not finite in 16 bits; check image.latent_scale"
        )
    file = io.BytesIO()
    np.lib.format.write_array(file, moments, allow_pickle=False)
    return file.getvalue()
