"""What all extractors share: batches of any sizes, and arithmetic that can be repeated."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from mmfusion import launcher
from mmfusion.errors import UserError


def default_device() -> str:
    """This rank's GPU, or the CPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{launcher.place().gpu(count)}" if count else "cpu"


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
                raise UserError(
                    f"features {self.name}: pictures of {_side(self._seen)} and {_side(shape)} "
                    "pixels; make them one size with --size"
                )
        order = np.argsort(np.concatenate([*places.values()]))
        with torch.inference_mode(), _exact(self.device):
            made = [self.extract(np.stack([pictures[i] for i in at])) for at in places.values()]
        joined = {name: np.concatenate([part[name] for part in made])[order] for name in self.gives}
        for name, array in joined.items():
            if not np.isfinite(array).all():
                raise UserError(f"features {self.name}: {name} that are not finite; its weights?")
        return {name: array.astype(np.float32, copy=False) for name, array in joined.items()}

    @abstractmethod
    def extract(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """The same of pictures of one size, uint8 (n, H, W, 3)."""


def _exact(device: str) -> AbstractContextManager:
    """On a GPU, not TF32, which cudnn takes unasked and which is off in the third digit."""
    if device == "cpu":
        return nullcontext()
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )


def _side(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
