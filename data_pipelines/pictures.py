"""Picture files on their way into a shard: as they are, or cut square and made small."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image as Picture

from mmfusion.codecs.image import open_picture, prepare
from mmfusion.errors import Damage

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".gif", ".bmp")  # of picture files
EXTENSION = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp"}


@dataclass(frozen=True)
class PictureReader:
    """How picture files become members of a sample.

    Attributes:
        size: side in pixels of the centre square that is kept; None keeps the file as it is.
        format: what a resized picture is saved as; `jpeg` has quality 95 and full colour.
    """

    size: int | None = None
    format: Literal["jpeg", "png"] = "jpeg"

    def read(self, path: Path) -> tuple[str, bytes]:
        """The member's extension, from what the file holds and not from its name, and its bytes.

        Raises:
            Damage: the file is missing or not a whole picture.
        """
        try:
            data = path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            raise Damage("picture", f"picture {path}: cannot be read ({error})") from None
        return self.member(data, f"picture {path}")

    def member(self, data: bytes, where: str) -> tuple[str, bytes]:
        """The same of a picture's bytes.

        Raises:
            Damage: they are not a whole picture.
        """
        picture = open_picture(data, where)
        if self.size is None and picture.format in EXTENSION:
            return EXTENSION[picture.format], data
        file = io.BytesIO()
        if self.size is None:  # a GIF, BMP or PPM
            picture.save(file, "png")
            return "png", file.getvalue()
        small = Picture.fromarray(prepare(picture, self.size, 3))
        if self.format == "png":
            small.save(file, "png")
        else:
            small.save(file, "jpeg", quality=95, subsampling=0)
        return EXTENSION[self.format.upper()], file.getvalue()
