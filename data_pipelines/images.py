"""Picture files on their way into a shard: as they are, or cut square and made small."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unicodedata import normalize
from urllib.parse import unquote

from PIL import Image as PILImage

from mmfusion.codecs.image import encoded, flat, open_image, prepare
from mmfusion.errors import CorruptSample, first_line

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".gif", ".bmp")  # of picture files
EXTENSION = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp"}
MOST_BYTES = 1 << 28  # of a file that is read into memory


def spelled(name: str, folder: str | Path) -> str:
    r"""The absolute path that a name in a list stands for, which begins in `folder`.

    It is one path however the name is spelled: `./a.png`, `x//a.png`, `x/../a.png`, or an absolute
    one; and, where no file has just that name, `x\a.png`, `a%20b.png`, with white space around it,
    and with letters composed of others, as macOS writes them, or not. Steps upwards are taken out
    of the text, so that no link leads them elsewhere.
    """
    path = os.path.abspath(os.path.join(folder, name))
    plain = name.isascii() and not ("\\" in name or "%" in name) and name == name.strip()
    if plain or os.path.lexists(path):
        return path
    slashed = name.strip().replace("\\", "/")
    forms = (normalize(form, n) for n in (slashed, unquote(slashed)) for form in ("NFC", "NFD"))
    others = [os.path.abspath(os.path.join(folder, n)) for n in (slashed, *forms)]
    return next(filter(os.path.lexists, others), others[1])


@dataclass(frozen=True)
class ImageReader:
    """How picture files become members of a sample."""

    size: int | None = None  # of the centre square that is kept; None keeps the file as it is
    format: Literal["jpeg", "png"] = "jpeg"  # of a resized one; quality 95 and full colour

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
                small = PILImage.fromarray(prepare(picture, self.size, 3))
                return EXTENSION[self.format.upper()], encoded(small, self.format)
            flat(picture)
        except CorruptSample as error:
            raise error.at(where) from None
        if picture.format in EXTENSION:
            return EXTENSION[picture.format], data
        return "png", encoded(picture)  # a GIF, BMP or PPM
