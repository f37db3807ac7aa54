"""Colour fonts: which sequences of code points have a picture, and the pictures as PNG files.

Only bitmap fonts are read (tables CBDT or sbix). Their pictures need no drawing and no shaping: the
character map says which code points have a glyph, and the ligatures (table GSUB) which sequences.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fontTools.ttLib import TTFont

from mmfusion.errors import UserError, first_line

PNG = b"\x89PNG"
LIGATURES, EXTENSION = 4, 7  # kinds of lookup in GSUB


def read_font(path: Path) -> dict[str, bytes]:
    """Every character or sequence that the font has a picture of, and the PNG, the largest there.

    Raises:
        UserError: the file is missing, damaged, no font, or has no bitmaps.
    """
    try:
        with TTFont(path, lazy=True) as font:
            if not {"CBDT", "sbix"} & set(font.keys()):
                raise UserError(
                    f"font {path}: has no bitmaps (tables CBDT or sbix); give a bitmap colour font "
                    "such as Debian's NotoColorEmoji.ttf"
                )
            pictures = dict(_cbdt(font) if "CBDT" in font else _sbix(font))
            found = {s: pictures[glyph] for s, glyph in _sequences(font) if glyph in pictures}
    except FileNotFoundError:
        raise UserError(
            f"font {path}: no such file; `apt install fonts-noto-color-emoji`, or give --font FILE"
        ) from None
    except UserError:
        raise
    except Exception as error:  # the tables of a damaged font raise anything
        why = first_line(error)
        raise UserError(f"font {path}: not a whole TrueType or OpenType font ({why})") from None
    if not found:
        raise UserError(f"font {path}: has no PNG pictures of any character")
    return found


def _cbdt(font: Any) -> Iterator[tuple[str, bytes]]:
    """Glyphs and their PNGs in the largest size."""
    sizes = [strike.bitmapSizeTable.ppemY for strike in font["CBLC"].strikes]
    if sizes:
        for glyph, bitmap in font["CBDT"].strikeData[sizes.index(max(sizes))].items():
            data = getattr(bitmap, "imageData", b"")  # decoded when it is asked for
            if data.startswith(PNG):
                yield glyph, data


def _sbix(font: Any) -> Iterator[tuple[str, bytes]]:
    strikes = font["sbix"].strikes
    if strikes:
        for name, glyph in strikes[max(strikes)].glyphs.items():
            if (glyph.imageData or b"").startswith(PNG):
                yield name, glyph.imageData


def _sequences(font: Any) -> Iterator[tuple[str, str]]:
    """Sequences of code points and their glyphs, shorter ones of a glyph first.

    A ligature's parts may be ligatures of an earlier lookup.
    """
    spelled: dict[str, list[str]] = {}
    for code, glyph in sorted(font.getBestCmap().items()):
        spelled.setdefault(glyph, []).append(chr(code))
    for ligatures in _ligatures(font):
        for first, found in ligatures.items():
            for ligature in found:
                parts = [spelled.get(part) for part in (first, *ligature.Component)]
                if all(parts):
                    sequence = "".join(part[0] for part in parts if part)
                    spelled.setdefault(ligature.LigGlyph, []).append(sequence)
    for glyph, sequences in spelled.items():
        for sequence in sequences:
            yield sequence, glyph


def _ligatures(font: Any) -> Iterator[dict[str, list[Any]]]:
    if "GSUB" not in font or not font["GSUB"].table.LookupList:
        return
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            table = table.ExtSubTable if table.LookupType == EXTENSION else table
            if table.LookupType == LIGATURES:
                yield table.ligatures
