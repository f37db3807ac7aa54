"""Shards of pictures to shards of latents, so that training needs no autoencoder.

Each picture member becomes `moments.npy` (`0.moments.npy` for `0.png`): float16 (F, 2, c, h, w),
mean and standard deviation of the normalised latents, of the picture and, with F = 2, of its mirror
image. All other members stay. A shard that is there already is not made again. Each shard's header
says which autoencoder made it and how; training refuses another than its config's.
"""

import io
import logging
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from PIL import ImageOps

from mmfusion.codecs.image import AutoencoderCodec, fingerprint, prepare
from mmfusion.config import ImageConfig
from mmfusion.errors import CorruptSample, UserError

from .samples import PICTURES, Sample, is_image, moments_name
from .shard_writer import Made, ShardJob, write_parts
from .shards import Shards

log = logging.getLogger("mmfusion")
LATENTS = "latents"
DecodedSample = tuple[Sample, dict[str, PILImage.Image]]  # with its pictures, square and resized


def write_latents(
    pattern: str,
    output: Path,
    config: ImageConfig,
    flip: bool = False,
    batch: int = 32,
    device: str | torch.device = "cpu",
    most_lost: float = 0.1,
) -> Made:
    """Write a shard of latents to `output` for each shard of `pattern`."""
    if config.codec != "vae":
        raise UserError(
            f"image.codec: is `{config.codec}`; latents are for configs with the codec `vae`"
        )
    shards = Shards(pattern)
    paths = {path.rpartition("/")[2]: n for n, path in enumerate(shards.paths)}
    if len(paths) < len(shards.paths):
        raise UserError(f"{pattern}: two shards have the same name; convert a folder at a time")
    if any(Path(path).parent.resolve() == output.resolve() for path in shards.paths):
        raise UserError(f"{output}: holds the pictures themselves; give another --output")
    torn = [path for path, lost in shards.lost if lost.reason == "shard"]
    if torn:
        raise UserError(
            f"{pattern}: {len(torn)} shards are damaged, {torn[0]} first; `mmfusion data verify` "
            "says what of them; copy or make them anew, or leave them out of the pattern"
        )
    for path, lost in shards.lost:
        log.warning("left out: %s: %s %s", path, lost.name, lost.what)
    codec, settings = AutoencoderCodec(config, device), {**fingerprint(config), "flip": flip}

    def part(shard: int) -> ShardJob[DecodedSample]:
        numbers = range(int(shards.sizes[shard]))
        return ShardJob(numbers, lambda number: _pictured(shards.read(shard, number), config))

    return write_parts(
        {output / name: partial(part, n) for name, n in paths.items()},
        LATENTS,
        str(output),
        {**settings, "from": shards.digest[:16]},
        lambda samples: _encoded(samples, codec, flip, batch),
        {LATENTS: settings},
        most_lost,
    )


def check_latents(headers: dict[str, dict[str, Any]], config: ImageConfig) -> None:
    """Make sure that latents come from the config's autoencoder: by the headers of their shards."""
    made = {where: header[LATENTS] for where, header in headers.items() if LATENTS in header}
    if not made:
        return
    if config.codec != "vae":
        raise UserError(
            f"{next(iter(made))}: holds latents of an autoencoder, but the config's image.codec is "
            f"{config.codec}; name shards with pictures, or correct the config"
        )
    wanted = fingerprint(config)
    for where, found in made.items():
        for key, value in wanted.items():
            has = found.get(key) if isinstance(found, dict) else None
            if has != value:
                raise UserError(
                    f"{where}: its latents were made with {key} {has!r}, the config's image "
                    f"section has {value!r}; make them anew, or correct the config"
                )


def _pictured(sample: Sample, config: ImageConfig) -> DecodedSample:
    own = [ext for ext in PICTURES if ext in sample][:1]  # the one that training would read
    names = own + [ext for ext in sample if "." in ext and is_image(ext)]
    if not names:
        raise sample.corrupt("picture", ": no picture in this sample")
    pictures = {}
    for name in names:
        try:
            square = prepare(sample.picture(name), config.size, config.channels)
        except CorruptSample as error:
            raise error.at(f"{sample.where}.{name}") from None
        pictures[name] = PILImage.fromarray(square[..., 0] if config.channels == 1 else square)
    return sample, pictures


def _encoded(
    samples: Iterable[DecodedSample], codec: AutoencoderCodec, flip: bool, batch: int
) -> Iterator[tuple[str, dict]]:
    """The samples with latents in place of pictures, `batch` samples at a time."""
    rest = iter(samples)
    while some := list(islice(rest, batch)):
        pictures = [picture for _, decoded in some for picture in decoded.values()]
        moments = iter(_moments(pictures, codec, flip, batch))
        for sample, decoded in some:
            members = {ext: data for ext, data in sample.items() if not is_image(ext)}
            members |= {moments_name(name): _npy(next(moments)) for name in decoded}
            yield sample.key, members


def _moments(
    pictures: list[PILImage.Image], codec: AutoencoderCodec, flip: bool, batch: int
) -> np.ndarray:
    """(B, F, 2, c, h, w) of B pictures, encoded `batch` at a time."""
    starts = range(0, len(pictures), batch)
    forms = [pictures, [*map(ImageOps.mirror, pictures)]] if flip else [pictures]
    encoded = [np.concatenate([codec.moments(f[at : at + batch]) for at in starts]) for f in forms]
    return np.stack(encoded, 1).astype(np.float16)


def _npy(moments: np.ndarray) -> bytes:
    if not np.isfinite(moments).all():
        raise UserError(
            "image.vae: gives latents that are not finite in 16 bits; check image.latent_scale"
        )
    file = io.BytesIO()
    np.lib.format.write_array(file, moments, allow_pickle=False)
    return file.getvalue()
