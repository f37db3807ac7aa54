"""Pictures that are odd but fine, and pictures that are not, as bytes."""

import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from material import saved
from PIL import Image as PILImage
from PIL import PngImagePlugin

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
Colour = tuple[int, int, int]


def solid(mode: str, colour: Any, size: tuple[int, int] = (12, 10)) -> PILImage.Image:
    return PILImage.new(mode, size, colour)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, kind: int, line: bytes, *more: bytes) -> bytes:
    """A PNG written by hand: each row is `line`; `more` are chunks before the pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + line) * min(height, 16)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + pixels + chunk(b"IEND", b"")


def palette() -> PILImage.Image:
    picture = solid("P", 1)
    picture.putpalette([0, 0, 255, 255, 0, 0])
    return picture


def rotated() -> bytes:
    """Stored on its side: upright, the upper half is red."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8], pixels[:, 8:] = RED, BLUE
    picture = PILImage.fromarray(pixels)
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    return saved(picture, "jpeg", exif=exif, quality=95, subsampling=0)


def with_exif(exif: bytes, format: str = "jpeg") -> bytes:
    return saved(solid("RGB", RED), format, exif=b"Exif\0\0" + exif)


def exif_bomb() -> bytes:
    """Five thousand notes that each claim to be most of the block."""
    entries = (struct.pack("<HHII", tag, 7, 30_000, 8) for tag in range(5000))
    block = b"II*\0" + struct.pack("<IH", 8, 5000) + b"".join(entries)
    return with_exif(block.ljust(65_000, b"x"))


def text_bomb(kind: bytes, name: bytes) -> bytes:
    """A kilobyte in the file, 100 MB of text when it is unpacked."""
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(100)) + packer.flush()
    return png(4, 4, 8, 0, b"\1" * 4, chunk(kind, name + b"\0\0" + bomb))


def many_texts() -> bytes:
    notes = PngImagePlugin.PngInfo()
    for number in range(50):
        notes.add_text(f"note {number}", "x" * 1000, zip=True)
    return saved(solid("RGB", RED), pnginfo=notes)


def animation(format: str) -> bytes:
    return saved(
        solid("RGB", RED), format, save_all=True, append_images=[solid("RGB", BLUE)], lossless=True
    )


def spoiled(data: bytes, at: float) -> bytes:
    """One byte changed, at a share of the whole."""
    place = int(len(data) * at)
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


noise = PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
SIXTEEN = struct.pack(">H", 257 * 100)

# Those that are used: bytes, and the colour of the upper left corner.
FINE: dict[str, tuple[Callable[[], bytes], Colour]] = {
    "grey": (lambda: saved(solid("L", 100)), (100, 100, 100)),
    "black and white": (lambda: saved(solid("1", 1)), WHITE),
    "CMYK JPEG": (lambda: saved(solid("CMYK", (0, 255, 255, 0)), "jpeg"), RED),
    "palette": (lambda: saved(palette()), RED),
    "palette with alpha": (lambda: saved(palette(), transparency=1), WHITE),
    "grey with alpha": (lambda: saved(solid("LA", (0, 0))), WHITE),
    "half transparent": (lambda: saved(solid("RGBA", (*RED, 127))), (255, 128, 128)),
    "transparent colour": (lambda: saved(solid("RGB", BLUE), transparency=BLUE), WHITE),
    "16-bit grey": (lambda: png(8, 8, 16, 0, SIXTEEN * 8), (100, 100, 100)),
    "16-bit grey with a transparent one": (
        lambda: png(8, 8, 16, 0, SIXTEEN * 8, chunk(b"tRNS", b"\1\2")),
        (100, 100, 100),
    ),
    "16-bit colour": (lambda: png(8, 8, 16, 2, (SIXTEEN + bytes(4)) * 8), (100, 0, 0)),
    "2 bits a pixel": (lambda: png(8, 8, 2, 0, b"\xff\xff"), WHITE),
    "animated GIF": (lambda: animation("gif"), RED),
    "animated WebP": (lambda: animation("webp"), RED),
    "animated PNG": (lambda: animation("png"), RED),
    "EXIF-rotated": (rotated, RED),
    "1x1": (lambda: saved(solid("RGB", RED, (1, 1))), RED),
    "ribbon": (lambda: saved(solid("RGB", RED, (1, 60_000))), RED),
    "progressive JPEG": (lambda: saved(solid("RGB", RED), "jpeg", progressive=True), RED),
    "damaged EXIF": (lambda: with_exif(b"II*\0\xff\xff\xff\x7f" + b"\xff" * 40), RED),
    "EXIF that points to itself": (
        lambda: with_exif(b"MM\0*\0\0\0\x08\0\1" + b"\x87\x69" * 9),
        RED,
    ),
    "huge EXIF": (lambda: with_exif(bytes(65_000)), RED),
    "huge EXIF in WebP": (lambda: with_exif(bytes(3_000_000), "webp"), RED),
    "EXIF bomb": (exif_bomb, RED),
    "ICC profile that is none": (lambda: saved(solid("RGB", RED), icc_profile=b"x" * 9999), RED),
    "many notes": (many_texts, RED),
    "BMP": (lambda: saved(solid("RGB", RED), "bmp"), RED),
    "bytes after its end": (lambda: saved(solid("RGB", RED)) + b"PK\3\4" * 1000, RED),
}

NONE = "no picture format"
# Those that are lost: bytes, and a part of what is said.
LOST: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero bytes": (lambda: b"", NONE),
    "a web page": (lambda: b"<html>404 not found</html>", NONE),
    "SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg" onload="x()"/>', NONE),
    "PostScript": (lambda: saved(noise, "eps"), NONE),
    "TIFF": (lambda: saved(noise, "tiff"), NONE),
    "float TIFF": (lambda: saved(solid("F", 0.5), "tiff"), NONE),
    "PDF": (lambda: saved(noise, "pdf"), NONE),
    "float PFM": (lambda: b"Pf\n2 2\n-1.0\n" + bytes(16), "no known range"),
    "PGM of 16 bits": (lambda: b"P5\n4 4\n65535\n" + bytes(32), "no known range"),
    "20,000x20,000": (lambda: png(20_000, 20_000, 8, 0, bytes(20_000)), "400000000 pixels"),
    "10,001x10,000": (lambda: png(10_001, 10_000, 1, 0, bytes(1251)), "more than 100,000,000"),
    "GIF of 65,535x65,535": (
        lambda: b"GIF89a\xff\xff\xff\xff" + saved(solid("P", 1), "gif")[10:],
        "pixels",
    ),
    "no pixels": (lambda: png(0, 8, 8, 0, b""), "not a readable"),
    "PNG text bomb": (lambda: text_bomb(b"zTXt", b"a"), "not a readable"),
    "PNG profile bomb": (lambda: text_bomb(b"iCCP", b"a"), "not a readable"),
    "PNG with a wrong sum": (lambda: spoiled(saved(noise), 0.5), "not a readable"),
    "palette index out of range": (
        lambda: png(
            4, 4, 8, 3, b"\xff" * 4, chunk(b"PLTE", b"\1\2\3"), chunk(b"tRNS", b"\1" * 600)
        ),
        "colours cannot be read",
    ),
    "JPEG without its tables": (lambda: saved(noise, "jpeg")[:20] + b"\xff\xd9", "not a readable"),
    "WebP of lies": (lambda: spoiled(saved(noise, "webp", lossless=True), 0.01), "not a readable"),
}
