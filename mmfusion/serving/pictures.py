"""Pictures as requests carry them: data URLs, base64 and files in, PNG out."""

import base64
import binascii
import io

import numpy as np
from PIL import Image as PILImage

from mmfusion.codecs.image import open_image
from mmfusion.serving.refusal import Refusal

MOST_SIDE = 4096  # pixels of a picture sent back


def from_url(url: str, what: str, most: int) -> PILImage.Image:
    """The picture that a data URL holds."""
    head, comma, body = url.partition(",")
    if head[:5].lower() != "data:":
        raise Refusal(
            400,
            f"{what}: give the picture itself as a data URL, data:image/png;base64,...; "
            "this server fetches nothing",
        )
    if not comma or not head.lower().endswith(";base64"):
        raise Refusal(400, f"{what}: a data URL begins data:image/png;base64,")
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, f"{what}: its base64 is broken") from None
    return open_image(data, what, most)


def to_base64(picture: PILImage.Image, side: int | None = None) -> str:
    """A PNG, enlarged to `side` pixels, as base64."""
    if side:
        picture = picture.resize((side, side), PILImage.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def to_url(picture: PILImage.Image) -> str:
    """A picture as a data URL."""
    return f"data:image/png;base64,{to_base64(picture)}"


def transparent(picture: PILImage.Image, what: str) -> np.ndarray:
    """Where a picture is fully transparent: booleans (H, W)."""
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        raise Refusal(400, f"{what}: no pixel is transparent; those to be redrawn are to be")
    return np.asarray(picture.convert("RGBA"))[..., 3] == 0


def side_of(size: str, own: int) -> int | None:
    """The side of a picture of a `size` as OpenAI writes it; None is the model's own."""
    width, _, height = size.partition("x")
    if size in ("auto", f"{own}x{own}"):
        return None
    side = int(width) if width.isdecimal() and width == height else 0
    if not 0 < side <= MOST_SIDE or side % own:
        raise Refusal(
            400,
            f"size: this model draws {own}x{own}; give auto, or that enlarged, as "
            f"{2 * own}x{2 * own}, up to {MOST_SIDE} a side",
            "size",
        )
    return side
