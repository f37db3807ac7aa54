"""Every emoji of a colour font as a picture, captioned by the Unicode names of its characters.

A data set in colour that needs no hub: about 3,500 pictures with Debian's Noto font. A tenth is
held out; whatever looks the same is on one side. Names are those of Python's own Unicode table.
"""

import hashlib
import unicodedata
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from mmfusion.codecs.image import open_image
from mmfusion.errors import CorruptSample

from ..shard_writer import Made, Sample, claim, cut, shuffled, write_parts
from ..tokenizer import train_tokenizer
from .digits import png
from .fonts import read_font

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
HELD_OUT = 10  # one picture of so many
VOCABULARY = 1024
TEMPLATES = (
    "{name}",
    "an emoji of {a} {name}",
    "{a} {name}, drawn as an emoji",
    "the emoji: {name}",
    "a small picture of {a} {name}",
)
JOINER, KEYCAP, FLAG = "\u200d", "\u20e3", "\U0001f3f4"
SELECTORS = "\ufe0e\ufe0f"  # text or picture: no difference here
LETTERS = {chr(0x1F1E6 + i): chr(ord("A") + i) for i in range(26)}
TAGS = {chr(0xE0000 + code): chr(code).upper() for code in range(0x20, 0x7F)}
END_OF_TAGS = "\U000e007f"
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
SKIN = {chr(0x1F3FB + i): f"{tone} skin tone" for i, tone in enumerate(TONES)}
# Spaces, controls, joiners, selectors and private code points: nothing to see, or nothing known.
INVISIBLE = ("Zs", "Zl", "Zp", "Cc", "Cf", "Co", "Cs", "Mn", "Me")


def write_emoji(output: Path, font: Path = FONT, size: int = 32) -> Made:
    """Write `train-*.tar` and `held_out-*.tar`, and a tokenizer of the training captions.

    Args:
        output: folder of the shards.
        font: a bitmap colour font.
        size: side of the pictures in pixels; they lie on white.
    """
    drawn = {s: data for s, data in read_font(font).items() if is_emoji(s)}
    parts: dict[str, list[str]] = {"train": [], "held_out": []}
    for sequence, held_out in split(drawn).items():
        parts["held_out" if held_out else "train"].append(sequence)
    digest = hashlib.sha256(font.read_bytes()).hexdigest()
    settings = {"font": digest, "size": size, "unicode": unicodedata.unidata_version}
    total = Made()
    for name, sequences in parts.items():
        if sequences:
            make = partial(_sample, sequences, drawn, size)
            shards = cut(output, name, shuffled(len(sequences), 0), make)
            # A new font may well know emoji that an old Python does not.
            made = write_parts(shards, name, f"emoji, {name}", settings, most_lost=0.5)
            total = Made(*(getattr(total, field) + of for field, of in vars(made).items()))
    with claim(output / "tokenizer.model") as mine:
        if mine:
            named = (s for s in parts["train"] if describe(s) is not None)
            corpus = [caption for s in named for caption in captions(s)]
            train_tokenizer(corpus, output / "tokenizer.model", VOCABULARY)
    return total


def is_emoji(sequence: str) -> bool:
    """Whether there is something to see, and no plain character: not "1", a joiner, half a flag."""
    if sequence.isascii():
        return False
    if FLAG in sequence and END_OF_TAGS in sequence and not set(sequence) & set(TAGS):
        return False  # what stands for any unknown flag
    return not all(unicodedata.category(c) in INVISIBLE for c in sequence)


def split(drawn: dict[str, bytes]) -> dict[str, bool]:
    """Which sequences are held out: by a hash of the first among those of the same picture."""
    first: dict[bytes, str] = {}
    held_out = {}
    for sequence in sorted(drawn, key=lambda s: (len(s), s)):
        name = first.setdefault(drawn[sequence], sequence)
        digest = hashlib.sha256(name.encode()).digest()
        held_out[sequence] = int.from_bytes(digest[:8], "big") % HELD_OUT == 0
    return held_out


def describe(sequence: str) -> str | None:
    """The names of a sequence's parts, joined; None where Python's Unicode table lacks one."""
    tags = "".join(TAGS.get(c, "") for c in sequence)
    letters = "".join(LETTERS.get(c, "") for c in sequence)
    if len(letters) > 1 or tags:
        return f"flag, {' '.join(tags or letters)}"
    names = ["keycap"] if KEYCAP in sequence else []
    for character in sequence:
        if character in (JOINER, KEYCAP, *SELECTORS):
            continue
        name = SKIN.get(character) or unicodedata.name(character, "").lower()
        if not name:
            return None
        names.append(name)
    return ", ".join(names)


def captions(sequence: str) -> list[str]:
    """Differently worded captions of a sequence that has a name; the last is its words alone."""
    name = describe(sequence)
    assert name is not None
    article = "an" if name[0] in "aeiou" else "a"
    worded = [template.format(name=name, a=article) for template in TEMPLATES]
    words = ", ".join(dict.fromkeys(name.replace(",", "").split()))
    return list(dict.fromkeys([*worded, words]))


def picture(data: bytes, size: int, where: str) -> bytes:
    """A glyph's PNG in the middle of a white square, as a PNG of `size` pixels a side."""
    glyph = open_image(data, where).convert("RGBA")
    side = max(glyph.size)
    square = PILImage.new("RGBA", (side, side), "white")
    square.alpha_composite(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    small = square.convert("RGB").resize((size, size), PILImage.Resampling.LANCZOS)
    return png(np.asarray(small))


def _sample(sequences: list[str], drawn: dict[str, bytes], size: int, number: int) -> list[Sample]:
    sequence = sequences[number]
    codes = "_".join(f"{ord(c):x}" for c in sequence)
    if describe(sequence) is None:
        version = unicodedata.unidata_version
        raise CorruptSample(
            "caption", f"emoji {codes}: this Python's Unicode {version} has no name of it"
        )
    described = {"captions": captions(sequence), "emoji": sequence}
    return [(codes, {"json": described, "png": picture(drawn[sequence], size, f"emoji {codes}")})]
