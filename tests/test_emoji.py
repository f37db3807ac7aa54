"""Emoji of a colour font: a small one, made here."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fontTools.feaLib.builder import addOpenTypeFeaturesFromString
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib import TTFont, newTable
from fontTools.ttLib.tables.BitmapGlyphMetrics import SmallGlyphMetrics
from fontTools.ttLib.tables.C_B_D_T_ import cbdt_bitmap_format_17
from fontTools.ttLib.tables.E_B_L_C_ import (
    BitmapSizeTable,
    SbitLineMetrics,
    Strike,
    eblc_index_sub_table_1,
)
from fontTools.ttLib.tables.sbixGlyph import Glyph
from fontTools.ttLib.tables.sbixStrike import Strike as SbixStrike
from material import REAL, encoded, run, save
from PIL import Image as PILImage

from mmfusion.codecs.text import Tokenizer
from mmfusion.config import load
from mmfusion.data_pipelines.converters import emoji as module
from mmfusion.data_pipelines.converters.emoji import (
    captions,
    describe,
    is_emoji,
    split,
    write_emoji,
)
from mmfusion.data_pipelines.converters.fonts import read_font
from mmfusion.data_pipelines.preflight import check_data
from mmfusion.data_pipelines.shard_writer import lost_items
from mmfusion.data_pipelines.shards import Shards
from mmfusion.errors import UserError

GRIN, ROCKET, MAN, WAVE, TONE = "\U0001f600", "\U0001f680", "\U0001f468", "\U0001f44b", "\U0001f3fc"
GERMANY, ENGLAND = (
    "\U0001f1e9\U0001f1ea",
    "\U0001f3f4" + "".join(chr(0xE0000 + ord(c)) for c in "gbeng\x7f"),
)
ASTRONAUT, HEART = f"{MAN}\u200d{ROCKET}", "\u2764"


def png(red: int, width: int = 6, height: int = 4) -> bytes:
    """A half transparent rectangle, one side opaque red."""
    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[:, : width // 2] = (red, 0, 0, 255)
    file = io.BytesIO()
    PILImage.fromarray(pixels).save(file, "png")
    return file.getvalue()


def make_font(path: Path, pictures: dict[str, bytes], table: str = "CBDT") -> Path:
    """A font whose characters and ligatures have these pictures; parts have glyphs without any."""
    codes = sorted({ord(c) for sequence in pictures for c in sequence} | set(map(ord, " 1\u200d")))
    glyph = {s: f"g{i}" for i, s in enumerate([*map(chr, codes), *(s for s in pictures if s[1:])])}
    names = [".notdef", *glyph.values()]
    font = FontBuilder(unitsPerEm=1000)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({code: glyph[chr(code)] for code in codes})
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    font.setupHorizontalHeader()
    font.setupNameTable({"familyName": "Test"})
    font.setupOS2()
    font.setupPost()
    joined = "".join(
        f"sub {' '.join(glyph[c] for c in s)} by {glyph[s]};\n" for s in pictures if s[1:]
    )
    if joined:
        features = f"feature ccmp {{ lookup A useExtension {{\n{joined}}} A; }} ccmp;"
        addOpenTypeFeaturesFromString(font.font, features)
    drawn = {glyph[s]: data for s, data in pictures.items()}
    if table == "CBDT":
        _cbdt(font.font, {name: drawn[name] for name in names if name in drawn})
    elif table == "sbix":
        sbix = font.font["sbix"] = newTable("sbix")
        strike = sbix.strikes[96] = SbixStrike(ppem=96, resolution=72)
        for name in names:
            data = drawn.get(name)
            kind = "png " if data else None
            strike.glyphs[name] = Glyph(name, graphicType=kind, imageData=data)
    path.parent.mkdir(parents=True, exist_ok=True)
    font.save(path)
    return path


def _cbdt(font: TTFont, drawn: dict[str, bytes]) -> None:
    """Two sizes; the first and smaller one has another picture."""
    location, data = newTable("CBLC"), newTable("CBDT")
    location.version = data.version = 3.0
    location.strikes, data.strikeData = [], []
    for ppem in (20, 109):
        strike, size = Strike(), BitmapSizeTable()
        for key, value in {
            "colorRef": 0, "flags": 1, "bitDepth": 32, "ppemX": ppem, "ppemY": ppem,
            "startGlyphIndex": 0, "endGlyphIndex": 0,
        }.items():  # fmt: skip
            setattr(size, key, value)
        for direction in ("hori", "vert"):
            line = SbitLineMetrics()
            for key in (
                "ascender", "descender", "widthMax", "caretSlopeNumerator", "caretOffset",
                "caretSlopeDenominator", "minOriginSB", "minAdvanceSB", "maxBeforeBL",
                "minAfterBL", "pad1", "pad2",
            ):  # fmt: skip
                setattr(line, key, 0)
            setattr(size, direction, line)
        strike.bitmapSizeTable = size
        index = eblc_index_sub_table_1(b"", None)
        index.names, index.indexFormat, index.imageFormat = list(drawn), 1, 17
        strike.indexSubTables = [index]
        location.strikes.append(strike)
        glyphs: dict[str, Any] = {}
        for name, bytes_ in drawn.items():
            bitmap = cbdt_bitmap_format_17(b"", font)
            bitmap.metrics = SmallGlyphMetrics()
            for key in ("height", "width", "BearingX", "BearingY", "Advance"):
                setattr(bitmap.metrics, key, 1)
            bitmap.imageData = bytes_ if ppem > 20 else png(1, 2, 2)
            glyphs[name] = bitmap
        data.strikeData.append(glyphs)
    font["CBLC"], font["CBDT"] = location, data


SEQUENCES = (GRIN, HEART, WAVE, f"{WAVE}{TONE}", ASTRONAUT, GERMANY, ENGLAND, "#\u20e3")


@pytest.fixture(scope="module")
def font(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight emoji, and what is none: a digit, a private character, a flag without a country."""
    odd = ("1", "\ue000", "\U0001f3f4\U000e007f")
    pictures = {s: png(20 + 20 * i) for i, s in enumerate((*SEQUENCES, *odd))}
    return make_font(tmp_path_factory.mktemp("font") / "test.ttf", pictures)


# The font


@pytest.mark.parametrize("table", ["CBDT", "sbix"])
def test_characters_and_ligatures_have_their_largest_picture(tmp_path: Path, table: str):
    pictures = {GRIN: png(10), ASTRONAUT: png(20), GERMANY: png(30)}
    found = read_font(make_font(tmp_path / "a.ttf", pictures, table))
    assert found == pictures  # parts of sequences have none here


def test_fonts_that_cannot_be_read_say_what_to_do(
    tmp_path: Path, font: Path, monkeypatch: pytest.MonkeyPatch
):
    outlines = make_font(tmp_path / "outlines.ttf", {GRIN: png(1)}, table="none")
    empty = make_font(tmp_path / "empty.ttf", {GRIN: b"no png"})
    for path, said in (
        (tmp_path / "none.ttf", r"no such file; `apt install fonts-noto-color-emoji`, or give --f"),
        (tmp_path, r"not a whole TrueType"),
        (save(tmp_path / "a.png", encoded(0)), r"a\.png: not a whole TrueType or OpenType font"),
        (outlines, r"outlines\.ttf: has no bitmaps \(tables CBDT or sbix\)"),
        (empty, r"empty\.ttf: has no PNG pictures"),
    ):
        with pytest.raises(UserError, match=said):
            write_emoji(tmp_path / "out", path)
    whole = font.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 40):
        with pytest.raises(UserError, match=r"cut\.ttf: not a whole"):
            read_font(save(tmp_path / "cut.ttf", whole[:size]))
    monkeypatch.setattr(module, "FONT", tmp_path / "none.ttf")
    assert run("data", "emoji", "-o", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


def test_damaged_bytes_are_an_error_or_another_picture(tmp_path: Path, font: Path):
    """Never anything but UserError."""
    rng = np.random.default_rng(0)
    whole = bytearray(font.read_bytes())
    for _ in range(60):
        broken = whole.copy()
        for place in rng.integers(0, len(whole), 8):
            broken[place] = rng.integers(256)
        try:
            read_font(save(tmp_path / "broken.ttf", bytes(broken)))
        except UserError:
            continue


# Names


@pytest.mark.parametrize(
    ("sequence", "name"),
    [
        (GRIN, "grinning face"),
        (f"{HEART}\ufe0f", "heavy black heart"),
        (f"{WAVE}{TONE}", "waving hand sign, medium-light skin tone"),
        (TONE, "medium-light skin tone"),
        (ASTRONAUT, "man, rocket"),
        ("#\ufe0f\u20e3", "keycap, number sign"),
        (GERMANY, "flag, D E"),
        (ENGLAND, "flag, G B E N G"),
        ("\U0001f1e9", "regional indicator symbol letter d"),
        ("\U0001f3f4", "waving black flag"),
        ("\U0001ffff", None),
        (f"{GRIN}\u200d\U0001ffff", None),
    ],
)
def test_names(sequence: str, name: str | None):
    assert describe(sequence) == name
    assert is_emoji(sequence)


def test_captions():
    assert captions(GRIN) == [
        "grinning face", "an emoji of a grinning face", "a grinning face, drawn as an emoji",
        "the emoji: grinning face", "a small picture of a grinning face", "grinning, face",
    ]  # fmt: skip
    assert captions("\U0001f47d")[1] == "an emoji of an extraterrestrial alien"
    assert captions(ASTRONAUT).count("man, rocket") == 1  # its words alone are the same


@pytest.mark.parametrize(
    "sequence", ["1", "#", " ", "\u00a0", "\u200d", "\ufe0f", "\u20e3", "\ue000", "\U000fe4e5",
                 "\U000e0062", "\U0001f3f4\U000e007f"]
)  # fmt: skip
def test_what_is_no_emoji(sequence: str):
    assert not is_emoji(sequence)


def test_a_tenth_is_held_out_and_what_looks_the_same_is_on_one_side():
    drawn = {chr(0x1F000 + i): b"%d" % (i // 2) for i in range(2000)}
    sides = split(drawn)
    assert 60 < sum(sides.values()) / 2 < 140
    assert all(sides[chr(0x1F000 + i)] == sides[chr(0x1F001 + i)] for i in range(0, 2000, 2))
    fewer = {s: data for s, data in drawn.items() if ord(s) % 4 < 2}
    assert all(sides[s] == side for s, side in split(fewer).items())  # others change nothing


# The data set


def test_the_shards_hold_pictures_captions_and_the_emoji(
    font: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "HELD_OUT", 2)  # so that of eight some are
    command = ("data", "emoji", "--font", font, "--size", 12, "-o", tmp_path / "out")
    assert run(*command) == 0
    assert "wrote 2 of 2 shards" in capsys.readouterr().out
    found = {}
    for name in ("train", "held_out"):
        for sample in Shards(f"{tmp_path}/out/{name}-*.tar"):
            facts = sample.json()
            assert facts["captions"] == captions(facts["emoji"])
            found[facts["emoji"]] = sample.picture()
    assert set(found) == set(SEQUENCES)
    for place, sequence in enumerate(SEQUENCES):
        drawn = np.asarray(found[sequence])
        assert drawn.shape == (12, 12, 3)
        # A picture of 6 x 4 in a white square of 6: white above, red on the left, white elsewhere.
        assert (drawn[0] > 250).all()
        assert (drawn[4:8, 8:] > 240).all()
        assert np.abs(drawn[4:8, 1:3].astype(int) - [20 + 20 * place, 0, 0]).max() < 30
    tokenizer = Tokenizer(tmp_path / "out/tokenizer.model")
    assert tokenizer.decode(tokenizer.encode("a grinning face")) == "a grinning face"
    before = (tmp_path / "out/tokenizer.model").stat().st_mtime_ns
    assert run(*command) == 0
    assert "wrote 0 of 2 shards" in capsys.readouterr().out
    assert (tmp_path / "out/tokenizer.model").stat().st_mtime_ns == before
    assert run(*command[:4], "--size", 16, *command[6:]) == 2
    assert "with other settings (size: 12, now 16)" in capsys.readouterr().err


def test_what_has_no_name_or_no_whole_picture_is_left_out_and_counted(tmp_path: Path):
    pictures = {GRIN: png(1), HEART: png(2), ROCKET: png(3)[:-30], "\U0001ffff": png(4)}
    made = write_emoji(tmp_path / "out", make_font(tmp_path / "a.ttf", pictures))
    assert made.lost == {"picture": 1, "caption": 1}
    told = {e["what"] for p in (tmp_path / "out").glob("*.tar") for e in lost_items(p)}
    assert any("emoji 1ffff: this Python's Unicode" in what and "no name" in what for what in told)
    assert any("emoji 1f680: not a readable picture" in what for what in told)


# The config


def test_the_config_names_its_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = load("emoji")
    with pytest.raises(UserError) as caught:
        check_data(config, "emoji")
    told = str(caught.value).splitlines()
    commands = {line.strip() for line in told if "mmfusion data" in line}
    assert commands == {"mmfusion data emoji -o runs/emoji/data"}
    assert (config.image.tokens, config.image.latent_dim) == (64, 48)
    for name in ("train-00000.tar", "tokenizer.model"):
        save(tmp_path / "runs/emoji/data" / name, b"")
    check_data(config, "emoji")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL}")
def test_real_pictures_have_names_and_fit_the_font_format(tmp_path: Path):
    """The pictures of Noto's font, laid into a font and taken out again."""
    pictures, names = {}, {}
    for sample in Shards(shutil.copy(REAL / "noto_emoji/noto_emoji_72.tar", tmp_path)):
        facts = sample.json()
        pictures[facts["emoji"].replace("\ufe0f", "")] = sample["png"]
        names[facts["emoji"].replace("\ufe0f", "")] = facts["name"]
    found = read_font(make_font(tmp_path / "noto.ttf", pictures))
    assert found == pictures
    unknown = [s for s in found if describe(s) is None]
    assert len(unknown) < 0.1 * len(found)
    assert describe("\U0001f600") == names["\U0001f600"]
