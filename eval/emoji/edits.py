"""Whether an edit leaves alone what its mask leaves alone, seen in the pictures."""

from collections.abc import Sequence

import numpy as np
from PIL import Image as PILImage

from mmfusion.codecs.image import ImageCodec
from mmfusion.generation.edit_masks import region


def kept_identical(
    codec: ImageCodec,
    originals: Sequence[PILImage.Image],
    edited: Sequence[PILImage.Image],
    mask: str,
) -> bool:
    """Whether the pixels that kept tokens alone decide are those of the originals, decoded.

    Which these are is found by decoding other tokens: a codec may let neighbours in (the linear
    one laps).
    """
    anew = region(mask, *codec.config.grid).reshape(-1)
    tokens = codec.encode(list(originals))
    before, after = _pixels(codec.decode(tokens)), _pixels(edited)
    alone = np.ones(before.shape, bool)
    for value in (-3.0, 3.0):  # to both ends of what latents of unit variance reach
        tokens[:, anew] = value
        alone &= _pixels(codec.decode(tokens)) == before
    return bool((after == before)[:, alone.all(0)].all())


def _pixels(pictures: Sequence[PILImage.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures])
