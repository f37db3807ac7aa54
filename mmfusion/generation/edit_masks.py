"""Which tokens an edit regenerates (CausalFusion, section 6)."""

from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

from mmfusion.codecs.image import flat
from mmfusion.config import ImageConfig
from mmfusion.errors import UserError, shown
from mmfusion.generation.arguments import readable

REGIONS = ("top", "bottom", "left", "right", "center", "outpaint")

EditMask = str | PILImage.Image | np.ndarray | torch.Tensor


def region(name: str, rows: int, columns: int) -> np.ndarray:
    """A named part of a grid as booleans (rows, columns): a half, the centre, or all around it."""
    middle = np.s_[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4]
    parts: dict[str, Any] = {
        "top": np.s_[: rows // 2],
        "bottom": np.s_[rows // 2 :],
        "left": np.s_[:, : columns // 2],
        "right": np.s_[:, columns // 2 :],
        "center": middle,
        "outpaint": middle,
    }
    if name not in parts:
        raise UserError(f"mask {shown(name)}: no such region; choose one of {', '.join(REGIONS)}")
    mask = np.zeros((rows, columns), bool)
    mask[parts[name]] = True
    return ~mask if name == "outpaint" else mask


def regenerated(mask: EditMask, config: ImageConfig, size: tuple[int, int]) -> np.ndarray:
    """Tokens (N,) that a mask touches: they are generated anew.

    A mask is a name of `REGIONS`, a picture (white, above 127, is drawn anew; pictures are laid on
    white, so what is transparent, too) or an array (H, W) (nonzero is). It has the proportions of
    the picture to be edited, of `size` width and height, whose centre square the model sees, or is
    as large as the model's pictures or its token grid.
    """
    rows, columns = config.grid
    if isinstance(mask, str):
        cells = region(mask, rows, columns)
    else:
        if isinstance(mask, PILImage.Image):
            pixels = np.asarray(flat(mask).convert("L")) > 127
        elif isinstance(mask, torch.Tensor):
            with readable("mask"):
                pixels = (mask != 0).cpu().numpy()
        elif isinstance(mask, np.ndarray) and mask.dtype.kind in "biuf":
            pixels = mask != 0
        else:
            raise UserError(
                f"mask {shown(mask)}: give a picture, an array of numbers, or one of "
                f"{', '.join(REGIONS)}"
            )
        _check_size(pixels, config, size)
        cells = touched(pixels, rows, columns)
    if cells.all() or not cells.any():
        what = "everything" if cells.all() else "nothing"
        raise UserError(
            f"the mask regenerates {what}; it must be white in a part of the picture "
            "(for a whole picture use text_to_image or class_to_image)"
        )
    return cells.reshape(-1)


def _check_size(pixels: np.ndarray, config: ImageConfig, picture: tuple[int, int]) -> None:
    """Refuse a mask that does not say of which part of the picture it speaks."""
    rows, columns = config.grid
    own = {(config.size,) * 2: "the model's pictures", (columns, rows): "its token grid"}
    others = {size: what for size, what in own.items() if not _alike(size, picture)}
    given = pixels.shape[::-1]
    if pixels.ndim == 2 and pixels.size and (_alike(given, picture) or given in others):
        return
    more = "".join(f", or {w}x{h}, as {what}" for (w, h), what in others.items())
    raise UserError(
        f"mask of size {'x'.join(map(str, given))}: needs the proportions of the picture, "
        f"{picture[0]}x{picture[1]}{more}"
    )


def _alike(size: tuple[int, ...], other: tuple[int, int]) -> bool:
    """Whether two sizes, width and height, have the same proportions."""
    return size[0] * other[1] == size[1] * other[0]


def touched(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Cells (rows, columns) of the centre square of (H, W) booleans that hold a true pixel."""
    side = min(pixels.shape)
    top, left = ((length - side) // 2 for length in pixels.shape)
    square = pixels[top : top + side, left : left + side]
    # On a mask finer than the grid each pixel has a cell; on a coarser one each cell has a pixel.
    count_r, count_c = max(side, rows), max(side, columns)
    fine_r, fine_c = np.arange(count_r), np.arange(count_c)
    cells = np.zeros((rows, columns), bool)
    np.logical_or.at(
        cells,
        np.ix_(fine_r * rows // count_r, fine_c * columns // count_c),
        square[np.ix_(fine_r * side // count_r, fine_c * side // count_c)],
    )
    return cells
