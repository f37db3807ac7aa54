"""A linear image codec: the principal components of lapped patches, fitted to pictures in seconds.

Everything in it is orthonormal but for one scale, so an error of the latents is an error of the
pixels. A patch's pixels are first turned with those beyond its edges, half a patch far (the
orthogonal pre-filter of Malvar's lapped transform, 1992, as in Tran et al. 2003): where
neighbouring tokens disagree, the picture has a slope and no edge.

Shapes: B pictures, N tokens, D numbers in a token, P = channels * patch² pixels of a patch.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy.fft import dct

from mmfusion import files
from mmfusion.codecs.image import patches, prepare, to_image, unpatches
from mmfusion.config import ImageConfig
from mmfusion.errors import UserError, first_line


class LinearCodec:
    """Latents are (patch - mean) @ components * scale."""

    def __init__(self, config: ImageConfig) -> None:
        """Load the components and check that they fit the config.

        Raises:
            UserError: the file is none of this codec, or is of another size.
        """
        self.config = config
        path = Path(str(config.linear))
        try:
            found = load(path.read_bytes())
            self.mean, self.components = found["mean"], found["components"]
            self.scale = np.float32(found["scale"].item())
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(
                f"image.linear {path}: not a linear codec's file ({first_line(error)}); make it "
                "with `mmfusion data linear-codec`"
            ) from None
        has, wanted = self.components.shape, (pixels(config), config.latent_dim)
        if has != wanted or self.mean.shape != wanted[:1]:
            raise UserError(
                f"image.linear {path}: has components of shape {has}; the config's image section "
                f"needs {wanted}; make it anew with `mmfusion data linear-codec`"
            )
        self.lap = lapping(config.size, config.patch)

    def encode(self, pictures: list[PILImage.Image]) -> np.ndarray:
        tokens = lapped(pictures, self.config, self.lap)
        return (tokens - self.mean) @ self.components * self.scale

    def decode(self, tokens: np.ndarray) -> list[PILImage.Image]:
        patched = tokens.astype(np.float32) / self.scale @ self.components.T + self.mean
        cells = unpatches(patched, self.config.grid, self.config.patch)
        return [to_image(each) for each in self.lap.T @ cells @ self.lap]


def fit(pictures: Iterable[PILImage.Image], config: ImageConfig, path: Path) -> float:
    """Fit the codec to pictures and write its file; the same pictures give the same bytes.

    Returns:
        The share of the pixels' variance that the components keep.

    Raises:
        UserError: there are no pictures, or a patch has fewer pixels than the config wants numbers.
    """
    size, numbers = pixels(config), config.latent_dim
    if numbers > size:
        raise UserError(f"image.latent_channels: {numbers} numbers of a patch of {size} pixels")
    lap = lapping(config.size, config.patch)
    count, total, squares = 0, np.zeros(size), np.zeros((size, size))
    for picture in pictures:
        tokens = lapped([picture], config, lap)[0].astype(np.float64)
        count, total, squares = (
            count + len(tokens),
            total + tokens.sum(0),
            squares + tokens.T @ tokens,
        )
    if not count:
        raise UserError("linear codec: there are no pictures to fit it to")
    mean = total / count
    variance, axes = np.linalg.eigh(squares / count - np.outer(mean, mean))
    variance, axes = variance[::-1].clip(0), axes[:, ::-1][:, :numbers]
    # An axis has no direction of its own: its largest number is positive.
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(numbers)])
    kept = variance[:numbers]
    scale = 1 / np.sqrt(max(float(kept.mean()), 1e-12))
    found = {"mean": mean, "components": axes, "scale": np.array([scale])}
    arrays = {key: np.ascontiguousarray(each, np.float32) for key, each in found.items()}
    files.write(path, save(arrays))
    return float(kept.sum() / max(variance.sum(), 1e-12))


def pixels(config: ImageConfig) -> int:
    """Numbers of a patch before the components."""
    return config.channels * config.patch**2


def lapped(pictures: list[PILImage.Image], config: ImageConfig, lap: np.ndarray) -> np.ndarray:
    """Pictures as patches (B, N, P) after the pre-filter."""
    drawn = np.stack([prepare(each, config.size, config.channels) for each in pictures])
    scaled = (drawn.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)
    return patches(lap @ scaled @ lap.T, config.patch)


def lapping(size: int, patch: int) -> np.ndarray:
    """The pre-filter of rows or columns: orthonormal (size, size), constants stay constant.

    At each border of two patches, half a patch on both sides is parted into what is even and odd
    about the border, and the odd part is turned by a type-II and a type-IV cosine transform.
    """
    half = patch // 2
    filtered = np.eye(size, dtype=np.float32)
    if not half:
        return filtered
    same, mirror = np.eye(half), np.eye(half)[::-1]
    turn = mirror @ dct(same, 2, norm="ortho", axis=0).T @ dct(same, 4, norm="ortho", axis=0)
    parted = np.block([[same, mirror], [mirror, -same]]) / np.sqrt(2)
    odd = np.block([[same, 0 * same], [0 * same, turn @ mirror]])
    for border in range(patch, size, patch):
        across = slice(border - half, border + half)
        filtered[across, across] = parted @ odd @ parted
    return filtered
