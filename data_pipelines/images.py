"""Picture files on their way into a shard: as they are, or cut square and made small."""

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import numpy as np
from PIL import Image as PILImage

from mmfusion.codecs.image import flat, open_image, prepare
from mmfusion.errors import CorruptSample, first_line

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".gif", ".bmp")  # of picture files
EXTENSION = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp"}
MOST_BYTES = 1 << 28  # of a file that is read into memory


def spelled(name: str, folder: str | Path) -> str:
    r"""The absolute path that a name in a list stands for, which begins in `folder`.

    It is one path however the name is spelled: `./a.png`, `x//a.png`, `x/../a.png`, or an absolute
    one; and `x\a.png` and `a%20b.png` where no file has just that name. Steps upwards are taken
    out of the text, so that no link leads them elsewhere.
    """
    path = os.path.abspath(os.path.join(folder, name))
    if not ("\\" in name or "%" in name) or os.path.lexists(path):
        return path
    slashed = name.replace("\\", "/")
    others = [os.path.abspath(os.path.join(folder, n)) for n in (slashed, unquote(slashed))]
    return next(filter(os.path.lexists, others), others[0])


@dataclass(frozen=True)
class ImageReader:
    """How picture files become members of a sample.

    Attributes:
        size: side in pixels of the centre square that is kept; None keeps the file as it is.
        format: what a resized picture is saved as; `jpeg` has quality 95 and full colour.
    """

    size: int | None = None
    format: Literal["jpeg", "png"] = "jpeg"

    def read(self, path: Path) -> tuple[str, bytes]:
        """The member's extension, from what the file holds and not from its name, and its bytes."""
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
                raise OSError("no plain file, or a very large one")
            data = path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            raise CorruptSample(
                "picture", f"picture {path}: cannot be read ({first_line(error)})"
            ) from None
        return self.member(data, f"picture {path}")

    def member(self, data: bytes, where: str) -> tuple[str, bytes]:
        """The same of a picture's bytes."""
        picture = open_image(data, where)
        try:
            if self.size is not None:
                return self._small(prepare(picture, self.size, 3))
            flat(picture)
        except CorruptSample as error:
            raise error.at(where) from None
        if picture.format in EXTENSION:
            return EXTENSION[picture.format], data
        file = io.BytesIO()
        picture.save(file, "png")  # a GIF, BMP or PPM
        return "png", file.getvalue()

    def _small(self, pixels: np.ndarray) -> tuple[str, bytes]:
        file, small = io.BytesIO(), PILImage.fromarray(pixels)
        if self.format == "png":
            small.save(file, "png")
        else:
            small.save(file, "jpeg", quality=95, subsampling=0)
        return EXTENSION[self.format.upper()], file.getvalue()
