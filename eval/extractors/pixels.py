"""The pixels themselves: a Fréchet distance for small pictures that needs no network."""

import numpy as np

from . import Extractor


class PixelExtractor(Extractor):
    """All pixels of a picture as (H W 3,) numbers in [-1, 1]."""

    name = "pixels"
    batch = 256
    one_size = True

    def extract(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {"features": pixels.reshape(len(pixels), -1).astype(np.float32) / 127.5 - 1}
