"""Pictures and normalised latent tokens: pixels for small pictures, an autoencoder for others.

Raw latents are what the autoencoder gives; normalised ones, scaled to about unit variance, are
what the decoder reads and writes. Only this file knows the difference.

Shapes: B pictures, N tokens, D numbers in a token, h x w cells, c channels, p patch.
"""

import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from einops import rearrange
from PIL import Image as PILImage
from torch import Tensor

from mmfusion.config import ImageConfig
from mmfusion.errors import CorruptSample, UserError, user_error
from mmfusion.hub import download, may_be_hub_id
from mmfusion.manifest import sha256

MOST_OBLONG = 8  # times the short side: longer pictures are cut before they are resized
MOST_PIXELS = 100_000_000
AT_ONCE = 16 * 256 * 256  # pixels that an autoencoder works on at once: more may not fit
VAE_FILES = "diffusion_pytorch_model.safetensors", "config.json"
ORIENTATION = 0x0112  # in EXIF
TURNS = {
    2: PILImage.Transpose.FLIP_LEFT_RIGHT,
    3: PILImage.Transpose.ROTATE_180,
    4: PILImage.Transpose.FLIP_TOP_BOTTOM,
    5: PILImage.Transpose.TRANSPOSE,
    6: PILImage.Transpose.ROTATE_270,
    7: PILImage.Transpose.TRANSVERSE,
    8: PILImage.Transpose.ROTATE_90,
}
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM")  # above all not EPS: it starts Ghostscript

# Pillow's, of large pictures and damaged notes: both are judged here, and one picture can give
# thousands.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=PILImage.DecompressionBombWarning)


def encoded(picture: PILImage.Image, format: str = "png") -> bytes:
    """A picture as a file, in memory: Pillow does not notice a disk that is full."""
    file = io.BytesIO()
    how = {"quality": 95, "subsampling": 0} if format == "jpeg" else {}
    picture.save(file, format, **how)
    return file.getvalue()


def open_image(data: bytes, where: str, most: int = MOST_PIXELS) -> PILImage.Image:
    """Decode a picture of at most so many pixels, upright; of an animation, the first frame."""
    try:
        picture = PILImage.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # decoders raise anything at damaged data
        why = "no picture format that is read here" if "BytesIO" in str(error) else error
        raise _unreadable(why).at(where) from None
    try:
        return upright(picture, most)
    except CorruptSample as error:
        raise error.at(where) from None


def upright(picture: PILImage.Image, most: int = MOST_PIXELS) -> PILImage.Image:
    """A picture with its pixels read and turned as its EXIF notes say, which then go."""
    if not isinstance(picture, PILImage.Image):
        raise UserError(
            f"expected a PIL picture, got {type(picture).__name__}; read a file with "
            "PIL.Image.open, an array with PIL.Image.fromarray"
        )
    if picture.width * picture.height > most:
        size = f"{picture.width} x {picture.height}"
        raise _unreadable(f"{size} pixels are more than {most:,}")
    try:
        picture.load()
    except Exception as error:
        raise _unreadable(error) from None
    try:
        turn = TURNS.get(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # a picture with damaged notes is still a picture
        turn = None
    if turn is None:
        return picture
    turned = picture.transpose(turn)
    turned.format = picture.format
    # The notes go: they would turn it, and what is made of it, once more.
    turned.info = {key: note for key, note in picture.info.items() if key == "transparency"}
    return turned


def _unreadable(why: object) -> CorruptSample:
    return CorruptSample("picture", f"not a readable picture ({why or type(why).__name__})")


def prepare(picture: PILImage.Image, size: int, channels: int) -> np.ndarray:
    """A picture's centre square at `size` pixels, as (size, size, channels) in 0..255.

    The crop of ADM (Dhariwal & Nichol 2021), whose reference statistics others compare with: halved
    by averaging while it is at least twice too large, resized bicubically, then cut. Transparent
    pictures are laid on white. A picture already of that size is left as it is.
    """
    picture = flat(picture).convert("L" if channels == 1 else "RGB")
    if picture.size != (size, size):
        # A ribbon's ends are never seen; resized with it they could fill the memory.
        most = MOST_OBLONG * min(picture.size)
        picture = _centre(picture, min(picture.width, most), min(picture.height, most))
        while min(picture.size) >= 2 * size:
            half = picture.width // 2, picture.height // 2
            picture = picture.resize(half, PILImage.Resampling.BOX)
        scale = size / min(picture.size)
        scaled = round(picture.width * scale), round(picture.height * scale)
        picture = _centre(picture.resize(scaled, PILImage.Resampling.BICUBIC), size, size)
    return np.asarray(picture).reshape(size, size, channels)


def _centre(picture: PILImage.Image, width: int, height: int) -> PILImage.Image:
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def flat(picture: PILImage.Image) -> PILImage.Image:
    """The one form in which pictures are used: upright, 8 bits, opaque, of mode L or RGB.

    Transparent ones are laid on white. Wherever a picture comes from, this is its way in.
    """
    picture = upright(picture)
    if not min(picture.size):
        raise CorruptSample("picture", "the picture is empty: it has no pixels")
    if picture.mode in ("I", "F"):
        raise CorruptSample(
            "picture", f"pictures of mode {picture.mode} have no known range; save them with 8 bits"
        )
    try:
        if picture.mode.startswith("I;16"):  # Pillow would cut off what is above 255
            values = np.asarray(picture)
            transparent = values == picture.info.get("transparency", -1)  # one value means it
            values = np.where(transparent, 65535, values)
            return PILImage.fromarray(np.rint(values / 257).astype(np.uint8))
        if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
            if picture.mode == "La":
                picture = picture.convert("LA")
            white = PILImage.new("RGBA", picture.size, "white")
            picture = PILImage.alpha_composite(white, picture.convert("RGBA"))
        return picture.convert("L" if picture.mode in ("1", "L") else "RGB")
    except Exception as error:  # of odd palettes and colours
        raise CorruptSample("picture", f"the picture's colours cannot be read ({error})") from None


def patches(cells: np.ndarray, patch: int) -> np.ndarray:
    """(..., c, h, w) cells as (..., N, D) tokens, row by row."""
    return rearrange(cells, "... c (h p) (w q) -> ... (h w) (p q c)", p=patch, q=patch)


def unpatches(tokens: np.ndarray, grid: tuple[int, int], patch: int) -> np.ndarray:
    """The inverse of `patches`."""
    return rearrange(
        tokens, "... (h w) (p q c) -> ... c (h p) (w q)", h=grid[0], w=grid[1], p=patch, q=patch
    )


def to_image(pixels: np.ndarray) -> PILImage.Image:
    """(c, H, W) in [-1, 1] as an 8-bit picture, grey or colour."""
    bytes_ = np.rint((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8)
    return PILImage.fromarray(bytes_[0] if len(bytes_) == 1 else bytes_.transpose(1, 2, 0))


class ImageCodec(Protocol):
    """What pictures pass through on their way in and out."""

    config: ImageConfig

    def encode(self, pictures: list[PILImage.Image]) -> np.ndarray:
        """Pictures as normalised latent tokens (B, N, D), fp32; deterministic."""

    def decode(self, tokens: np.ndarray) -> list[PILImage.Image]:
        """Normalised latent tokens (B, N, D) as pictures."""


class PixelCodec:
    """Pixels in [-1, 1] are the latents: exact in both directions for 8-bit pictures."""

    def __init__(self, config: ImageConfig) -> None:
        self.config = config

    def encode(self, pictures: list[PILImage.Image]) -> np.ndarray:
        return patches(self.latents(pictures), self.config.patch)

    def decode(self, tokens: np.ndarray) -> list[PILImage.Image]:
        cells = unpatches(tokens, self.config.grid, self.config.patch)
        return [to_image(pixels) for pixels in self.pixels(cells)]

    def latents(self, pictures: list[PILImage.Image]) -> np.ndarray:
        """Normalised latents (B, c, h, w)."""
        size, channels = self.config.size, self.config.channels
        pixels = np.stack([prepare(picture, size, channels) for picture in pictures])
        return (pixels.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)

    def pixels(self, latents: np.ndarray) -> np.ndarray:
        """Pixels (B, c, H, W) in [-1, 1] of normalised latents."""
        return latents


class AutoencoderCodec(PixelCodec):
    """A diffusers AutoencoderKL from a folder or hub id, its latents scaled to unit variance."""

    def __init__(self, config: ImageConfig, device: str | torch.device = "cpu") -> None:
        """Load the autoencoder and check that it fits the config."""
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        super().__init__(config)
        self.device = device
        folder = _vae_folder(str(config.vae))
        with user_error(
            f"image.vae {config.vae}: not a diffusers AutoencoderKL", OSError, ValueError
        ):
            vae: Any = AutoencoderKL.from_pretrained(
                folder,
                use_safetensors=True,
                low_cpu_mem_usage=False,  # True needs accelerate, and warns without it
            )
        self.vae = vae.to(device).eval().requires_grad_(False)
        found = vae.config.latent_channels, 2 ** (len(vae.config.block_out_channels) - 1)
        wanted = config.latent_channels, config.downsampling
        if found != wanted:
            raise UserError(
                f"image.vae {config.vae}: has {found[0]} latent channels and downsampling "
                f"{found[1]}; the config says {wanted[0]} and {wanted[1]}"
            )
        self.scale, self.shift = _scaling(config, vae.config)

    def to(self, device: torch.device) -> None:
        """Move the autoencoder."""
        self.device, self.vae = device, self.vae.to(device)

    def moments(self, pictures: list[PILImage.Image]) -> np.ndarray:
        """Mean and standard deviation of the normalised latents: (B, 2, c, h, w)."""
        return self._by_parts(self._encoded, super().latents(pictures))

    def latents(self, pictures: list[PILImage.Image]) -> np.ndarray:
        return self.moments(pictures)[:, 0]

    def pixels(self, latents: np.ndarray) -> np.ndarray:
        return self._by_parts(self._decoded, latents)

    def _encoded(self, pixels: Tensor) -> Tensor:
        posterior = self.vae.encode(pixels).latent_dist
        mean = (posterior.mean - self.shift) * self.scale
        return torch.stack([mean, posterior.std * self.scale], 1)

    def _decoded(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents / self.scale + self.shift).sample

    @torch.inference_mode()
    def _by_parts(self, network: Callable[[Tensor], Tensor], x: np.ndarray) -> np.ndarray:
        """What it makes of (B, ...), of as many at once as fit."""
        parts = torch.from_numpy(x.copy()).split(max(1, AT_ONCE // self.config.size**2))
        return torch.cat([network(part.to(self.device)).float().cpu() for part in parts]).numpy()


def _scaling(config: ImageConfig, vae: Mapping[str, Any]) -> tuple[float, float]:
    return config.latent_scale or vae["scaling_factor"], vae.get("shift_factor") or 0.0


def fingerprint(config: ImageConfig) -> dict[str, Any]:
    """All that a picture's latents depend on: autoencoder (SHA-256), scale, crop, precision."""
    folder = _vae_folder(str(config.vae))
    weights, described = (folder / name for name in VAE_FILES)
    wrong = OSError, ValueError, KeyError, TypeError
    with user_error(f"image.vae {described}: not an autoencoder's config", *wrong):
        scale, shift = _scaling(config, json.loads(described.read_text(encoding="utf-8")))
    return {
        "vae": sha256(weights),
        "scale": scale,
        "shift": shift,
        "size": config.size,
        "channels": config.channels,
        "crop": "centre, ADM",
        "precision": "float32, kept as float16",
    }


def meaning(config: ImageConfig) -> dict[str, Any]:
    """What the numbers of a token mean: where it is the same, so may the weights be."""
    found: dict[str, Any] = {"codec": config.codec, "channels": config.channels}
    found["patch"] = config.patch
    if config.codec == "linear":
        found["linear"] = sha256(Path(str(config.linear)))
    if config.codec == "vae":
        made = fingerprint(config)
        found |= {key: made[key] for key in ("vae", "scale", "shift")}
    return found


def _vae_folder(vae: str) -> Path:
    """Where an autoencoder's files are, of a folder or from the hub."""
    folder = Path(vae)
    if not folder.is_dir() and may_be_hub_id(vae):
        folder = download(vae, "image.vae", [*VAE_FILES])
    if missing := [name for name in VAE_FILES if not (folder / name).is_file()]:
        if folder.is_dir():
            raise UserError(f"image.vae {vae}: not a diffusers AutoencoderKL: no {missing[0]}")
        raise UserError(f"image.vae {vae}: no such folder; put a diffusers AutoencoderKL there")
    return folder


def make_codec(config: ImageConfig, device: str | torch.device = "cpu") -> ImageCodec:
    """The codec that the config names."""
    if config.codec == "pixel":
        return PixelCodec(config)
    if config.codec == "linear":
        from mmfusion.codecs.linear import LinearCodec

        return LinearCodec(config)
    return AutoencoderCodec(config, device)
