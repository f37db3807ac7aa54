"""What turns pictures into features: networks from files, chosen by a short spec.

| spec | features |
|---|---|
| `inception[:FILE]` | Inception's pool_3 as in TF1, also logits and sFID's spatial features |
| `dinov2:FOLDER` or hub id | DINOv2's class token, for FD-DINOv2 |
| `clip:MODEL[:TAG or FILE]` | CLIP's picture embeddings |
| `module:FILE` | whatever a TorchScript gives |
| `pixels` | the pixels themselves, for small pictures |
"""

from abc import ABC, abstractmethod

import numpy as np
import torch

from mmfusion.device import exact
from mmfusion.errors import UserError
from mmfusion.export import default_device

SPECS = "inception[:FILE], dinov2:FOLDER, clip:MODEL[:TAG], module:FILE, pixels"


class Extractor(ABC):
    """Pictures to features.

    Attributes:
        name: its kind, and the architecture where the weights do not say it.
        sha256: of its weights; "" if it has none.
        batch: pictures at a time, fixed, so that the bits do not depend on who computes.
        gives: names of what it makes: "features", and where it has them "spatial" and "logits".
        one_size: whether all pictures must have the same size.
        device: where it computes; on the CPU many threads may call it at once.
        version: of what else the features depend on: the network's config, and what is done to
            the pictures before; part of the cache's key.
        doubt: why its figures may not be what their name says; "" if there is no reason.
    """

    name: str
    sha256 = ""
    batch = 32
    gives: tuple[str, ...] = ("features",)
    one_size = False
    device = "cpu"
    version = ""
    doubt = ""

    _seen: tuple[int, ...] | None = None

    @property
    def kind(self) -> str:
        """The first word of its name."""
        return self.name.partition(":")[0]

    @property
    def identity(self) -> tuple[str | int, ...]:
        """All that the features of a picture depend on; a GPU's differ in their last bits."""
        device = self.device.partition(":")[0]
        return self.name, self.sha256, self.version, self.batch, device

    def __call__(self, pictures: list[np.ndarray]) -> dict[str, np.ndarray]:
        """uint8 pictures (H, W, 3) to float32 arrays (n, ...), one row a picture.

        Raises:
            UserError: sizes that differ where they must not, or features that are not finite.
        """
        places: dict[tuple[int, ...], list[int]] = {}
        for place, picture in enumerate(pictures):
            places.setdefault(picture.shape, []).append(place)
        for shape in places if self.one_size else ():
            self._seen = self._seen or shape
            if shape != self._seen:
                (height, width, _), (high, wide, _) = self._seen, shape
                raise UserError(
                    f"features {self.name}: pictures of {width} x {height} and {wide} x {high} "
                    "pixels; make them one size with --size"
                )
        order = np.argsort(np.concatenate([*places.values()]))
        with torch.inference_mode(), exact(self.device):
            made = [self.extract(np.stack([pictures[i] for i in at])) for at in places.values()]
        joined = {}
        for name in self.gives:
            joined[name] = np.concatenate([part[name] for part in made])[order].astype(np.float32)
            if not np.isfinite(joined[name]).all():
                raise UserError(f"features {self.name}: {name} that are not finite; its weights?")
        return joined

    @abstractmethod
    def extract(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """The same of pictures of one size, uint8 (n, H, W, 3)."""


def default_features(size: int) -> str:
    """The extractor for pictures of a side in pixels where none is named."""
    return "pixels" if size <= 32 else "inception"


def make_extractor(spec: str, device: str | None = None) -> Extractor:
    """The extractor that a spec names, on a device (default: this rank's GPU, or the CPU).

    Raises:
        UserError: no such kind, or its weights cannot be had.
    """
    kind, _, source = spec.partition(":")
    device = device or str(default_device())
    if kind == "inception":
        from .inception import InceptionExtractor

        return InceptionExtractor(source, device)
    if kind == "dinov2":
        from .dinov2 import Dinov2Extractor

        return Dinov2Extractor(source, device)
    if kind == "clip":
        from .clip import ClipExtractor

        return ClipExtractor(source, device)
    if kind == "module":
        from .module import ModuleExtractor

        return ModuleExtractor(source, device)
    if spec == "pixels":
        from .pixels import PixelExtractor

        return PixelExtractor()
    raise UserError(f"features {spec}: no such extractor; choose from {SPECS}")
