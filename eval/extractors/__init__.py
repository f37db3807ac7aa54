"""What turns pictures into features: networks from files, chosen by a short spec."""

import os
from abc import ABC, abstractmethod

import numpy as np
import torch
from PIL import Image as PILImage

from mmfusion.device import exact
from mmfusion.errors import UserError
from mmfusion.export import default_device

SPECS = "inception[:FILE], dinov2:FOLDER, clip:MODEL[:TAG], efficientnet, pixels"
Arrays = dict[str, np.ndarray]


class Extractor(ABC):
    """Pictures to features; on the CPU many threads may call it at once."""

    name: str  # its kind, and the architecture where the weights do not say it
    sha256 = ""  # of its weights
    batch = 32  # pictures at a time, fixed, so that the bits do not depend on who computes
    gives: tuple[str, ...] = ("features",)  # and where it has them "spatial", "logits", "style"
    one_size = False  # whether all pictures must have the same size
    device = "cpu"
    version = ""  # of the network's config, and of what is done to the pictures before
    doubt = ""  # why its figures may not be what their name says

    @property
    def kind(self) -> str:
        """The first word of its name."""
        return self.name.partition(":")[0]

    @property
    def identity(self) -> tuple[str | int, ...]:
        """All that the features of a picture depend on; a GPU's differ in their last bits."""
        device = self.device.partition(":")[0]
        return self.name, self.sha256, self.version, self.batch, device

    def __call__(self, pictures: list[np.ndarray]) -> Arrays:
        """uint8 pictures (H, W, 3) to float32 arrays (n, ...), one row a picture."""
        places: dict[tuple[int, ...], list[int]] = {}
        for place, picture in enumerate(pictures):
            places.setdefault(picture.shape, []).append(place)
        order = np.argsort(np.concatenate([*places.values()]))
        with torch.inference_mode(), exact(self.device):
            made = [self.extract(np.stack([pictures[i] for i in at])) for at in places.values()]
        found = joined(made, f"features {self.name}")
        for name, array in found.items():
            if not np.isfinite(array).all():
                raise UserError(f"features {self.name}: {name} that are not finite; its weights?")
        return {name: array[order].astype(np.float32) for name, array in found.items()}

    @abstractmethod
    def extract(self, pixels: np.ndarray) -> Arrays:
        """The same of pictures of one size, uint8 (n, H, W, 3)."""


def joined(parts: list[Arrays], what: str) -> Arrays:
    """Arrays one after another, which the parts give up: all of them are large."""
    try:
        return {name: np.concatenate([part.pop(name) for part in parts]) for name in [*parts[0]]}
    except ValueError:
        raise UserError(
            f"{what}: its pictures differ in size; make them one size with --size"
        ) from None


class PixelExtractor(Extractor):
    """All pixels of a picture as (H W 3,) numbers in [-1, 1]: needs no network."""

    name = "pixels"
    batch = 256
    one_size = True

    def extract(self, pixels: np.ndarray) -> Arrays:
        return {"features": pixels.reshape(len(pixels), -1).astype(np.float32) / 127.5 - 1}


class ClipExtractor(Extractor):
    """Embeddings (n, d), not normalised, of pictures as the model's own transform has them."""

    def __init__(self, spec: str, device: str) -> None:
        from ..clip import Clip

        self.clip, self.device = Clip(spec, device), device
        self.name, self.sha256 = f"clip:{self.clip.name}", self.clip.sha256
        self.version, self.doubt = self.clip.version, self.clip.unsure

    def extract(self, pixels: np.ndarray) -> Arrays:
        pictures = [PILImage.fromarray(picture) for picture in pixels]
        return {"features": self.clip.embed_images(pictures, normalised=False)}


def default_features(size: int) -> str:
    """The extractor for pictures of a side in pixels where none is named."""
    return "pixels" if size <= 32 else "inception"


def make_extractor(spec: str, device: str | None = None) -> Extractor:
    """The extractor that a spec names, on a device (default: this rank's GPU, or the CPU)."""
    kind, _, source = spec.partition(":")
    source = os.path.expanduser(source)
    device = device or str(default_device())
    if kind == "inception":
        from .inception import InceptionExtractor

        return InceptionExtractor(source, device)
    if kind == "dinov2":
        from .dinov2 import Dinov2Extractor

        return Dinov2Extractor(source, device)
    if kind == "clip":
        return ClipExtractor(source, device)
    if spec == "efficientnet":
        from .efficientnet import EfficientNetExtractor

        return EfficientNetExtractor(device)
    if spec == "pixels":
        return PixelExtractor()
    raise UserError(f"features {spec}: no such extractor; choose from {SPECS}")
