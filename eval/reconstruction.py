"""What an image codec loses: pictures that went through it, also with noise on their latents.

PSNR is of the mean squared error over all pictures, as 8-bit numbers. Normalised latents have a
deviation of about 1, so the noise says what an error of whoever predicts them does to the picture.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from tqdm import tqdm

from mmfusion import files
from mmfusion.codecs.image import ImageCodec, prepare
from mmfusion.errors import UserError
from mmfusion.rng import generator

from .pages import render

NOISE = (0.0, 0.1, 0.2)
BATCH, SHOWN = 16, 24


@dataclass
class Reconstruction:
    """PSNR in dB by the deviation of the noise, over n pictures, the first of which are shown."""

    n: int = 0
    psnr: dict[float, float] = field(default_factory=dict)
    pairs: list[tuple[PILImage.Image, PILImage.Image]] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        for noise, psnr in self.psnr.items():
            yield f"PSNR {psnr:.2f} dB of {self.n:,} pictures" + (
                f", with noise of {noise:g} on their latents" if noise else ""
            )


def reconstruct(codec: ImageCodec, pictures: Iterable[PILImage.Image]) -> Reconstruction:
    """Encode pictures and decode them again.

    Raises:
        UserError: there are none.
    """
    size, channels = codec.config.size, codec.config.channels
    found, squares, rng = Reconstruction(), dict.fromkeys(NOISE, 0.0), generator("reconstruction")
    rest = iter(tqdm(pictures, "measuring", unit="picture", disable=None))
    while some := list(islice(rest, BATCH)):
        tokens = codec.encode(some)
        before = [prepare(picture, size, channels) for picture in some]
        found.n += len(some)
        for noise in NOISE:
            drawn = rng.standard_normal(tokens.shape, np.float32)
            after = codec.decode(tokens + np.float32(noise) * drawn)
            for real, made in zip(before, after, strict=True):
                error = np.asarray(made, np.float64).reshape(real.shape) - real
                squares[noise] += float(np.square(error).mean())
            if not noise and len(found.pairs) < SHOWN:
                shown = (PILImage.fromarray(b.squeeze()) for b in before)
                found.pairs += zip(shown, after, strict=True)
    if not found.n:
        raise UserError("codec: there are no pictures to measure it on")
    for noise, total in squares.items():
        found.psnr[noise] = 10 * float(np.log10(255**2 / max(total / found.n, 1e-10)))
    return found


def write_page(path: Path, codec: ImageCodec, found: Reconstruction, of: str) -> None:
    """Write the page: figures, and pictures beside what the codec makes of them."""
    page = render(
        "reconstruction.html.j2",
        image=codec.config,
        found=found,
        of=of,
        pairs=found.pairs[:SHOWN],
    )
    files.write(path, page)
