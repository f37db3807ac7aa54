"""Which tokens an edit regenerates (CausalFusion, section 6)."""

import numpy as np
from PIL import Image as Picture

from mmfusion.config import ImageConfig
from mmfusion.errors import UserError

REGIONS = ("top", "bottom", "left", "right", "center", "outpaint")

EditMask = str | Picture.Image | np.ndarray


def region(name: str, rows: int, columns: int) -> np.ndarray:
    """A named part of a grid as booleans (rows, columns): a half, the centre, or all around it."""
    mask = np.zeros((rows, columns), bool)
    middle = (slice(rows // 4, rows - rows // 4), slice(columns // 4, columns - columns // 4))
    match name:
        case "top":
            mask[: rows // 2] = True
        case "bottom":
            mask[rows // 2 :] = True
        case "left":
            mask[:, : columns // 2] = True
        case "right":
            mask[:, columns // 2 :] = True
        case "center":
            mask[middle] = True
        case "outpaint":
            mask[:] = True
            mask[middle] = False
        case _:
            raise UserError(f"mask {name!r}: no such region; choose one of {', '.join(REGIONS)}")
    return mask


def regenerated(mask: EditMask, config: ImageConfig) -> np.ndarray:
    """Tokens (N,) that a mask touches: they are generated anew.

    Args:
        mask: a name of `REGIONS`, a picture (white, above 127, is drawn anew) or an array (H, W)
            (nonzero is); as large as the model's pictures or as its token grid.

    Raises:
        UserError: unknown name, wrong size, or a mask that regenerates nothing or everything.
    """
    rows, columns = config.grid
    if isinstance(mask, str):
        cells = region(mask, rows, columns)
    else:
        if isinstance(mask, Picture.Image):
            pixels = np.asarray(mask.convert("L")) > 127
        else:
            pixels = np.asarray(mask) != 0
        if pixels.shape == (config.size, config.size):
            side_r, side_c = config.size // rows, config.size // columns
            cells = pixels.reshape(rows, side_r, columns, side_c).max((1, 3))
        elif pixels.shape == (rows, columns):
            cells = pixels
        else:
            raise UserError(
                f"mask of size {'x'.join(map(str, pixels.shape))}: needs {config.size}x"
                f"{config.size}, as the model's pictures, or {rows}x{columns}, as its token grid"
            )
    if cells.all() or not cells.any():
        what = "everything" if cells.all() else "nothing"
        raise UserError(
            f"the mask regenerates {what}; it must be white in a part of the picture "
            "(for a whole picture use text_to_image or class_to_image)"
        )
    return cells.reshape(-1)
