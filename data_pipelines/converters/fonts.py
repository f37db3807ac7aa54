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
    """Every character or sequence that the font has a picture of, and the largest PNG of it."""
    try:
        with TTFont(path, lazy=True) as font:
            if not {"CBDT", "sbix"} & set(font.keys()):
                raise UserError(
                    f"font {path}: has no bitmaps (tables CBDT or sbix); give a bitmap colour font "
                    "such as Debian's NotoColorEmoji.ttf"
                )
            pictures = _bitmaps(font)
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


def _bitmaps(font: Any) -> dict[str, bytes]:
    """Glyphs and their PNGs in the largest size."""
    glyphs: dict[str, Any] = {}
    if "CBDT" in font:
        sizes = [strike.bitmapSizeTable.ppemY for strike in font["CBLC"].strikes]
        if sizes:
            glyphs = font["CBDT"].strikeData[sizes.index(max(sizes))]
    elif strikes := font["sbix"].strikes:
        glyphs = strikes[max(strikes)].glyphs
    found = {name: getattr(glyph, "imageData", None) or b"" for name, glyph in glyphs.items()}
    return {name: data for name, data in found.items() if data.startswith(PNG)}


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
