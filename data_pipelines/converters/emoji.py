"""Emoji of several designers: the same things in several styles, aligned, rendered and captioned.

A cell is a name in a style ("a rocket, twemoji style"). Most cells are trained on, in four tasks;
`validation` and `held_out` cells stand in none, but their names are seen in other styles, and their
styles with other names.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mmfusion.errors import CorruptSample, UserError, first_line
from mmfusion.rng import generator
from mmfusion.texts import read_text

from ..shard_writer import Made, Output, Sample, claim, shuffled, write_parts
from ..tokenizer import train_tokenizer
from .icon_sets import IconSet, read_set

WITHOUT = ("Flags", "People & Body", "Symbols")
NAMES = Path(__file__).with_name("emoji_names.txt")  # 130 well-known things
HELD_OUT, VALIDATION = 0.15, 0.05  # shares of the cells
ANALOGIES = 2  # for each trained cell and other style of its name
VOCABULARY = 2048
FULL = "{a}{name}, {style} style"
VARIANTS = (FULL, FULL, FULL, "{a}{name} in {style} style", "{a}{name}", "{style} style")
RESTYLE = "the same in {style} style"
Cell = tuple[str, str]  # a name in a style


def write_emoji(
    packages: list[Path],
    output: Path,
    size: int = 64,
    listed: Path = NAMES,
    most: int | None = None,
    without: tuple[str, ...] = WITHOUT,
    seed: int = 0,
) -> Made:
    """Write the shards of all tasks and of both kept sets, and a tokenizer of the captions.

    Args:
        packages: icon sets as npm packs them.
        output: folder of the shards.
        size: side of the pictures in pixels; they lie on white.
        listed: file of the names to take, one a line.
        most: so many names, drawn by `seed` from those that all sets have, in place of the list.
        without: categories that are left out.
        seed: of names, split, pairs and order.

    Raises:
        UserError: too few sets, or a listed name that not all sets have.
    """
    _renderer()  # or each picture would be lost for the want of it
    sets = distinct([read_set(path) for path in packages])
    drawings = align(sets, without)
    if len(sets) < 2 or not drawings:
        raise UserError(
            f"emoji: {len(drawings)} names are in all of {', '.join(s.style for s in sets)}; give "
            "two or more sets that share names"
        )
    names = _drawn(drawings, most, seed) if most else _listed(listed, drawings)
    cells = split({name: sorted(drawings[name]) for name in names}, seed)

    @cache
    def picture(name: str, style: str) -> bytes:
        return render(drawings[name][style], size, f"emoji {name}, {style}")

    settings = {
        "sets": {s.style: s.digest[:16] for s in sets},
        "size": size,
        **({"most": most} if most else {"names": names}),
        "without": sorted(without),
        "seed": seed,
    }
    total = Made()
    for part, items in _tasks(cells, picture, seed).items():
        if not items.count:
            continue
        shards = Output(output, part).cut(shuffled(items.count, seed), items.make)
        made = write_parts(shards, part, f"emoji, {part}", settings)
        total = Made(*(getattr(total, key) + of for key, of in vars(made).items()))
    with claim(output / "tokenizer.model") as mine:
        if mine:
            texts = [caption for cell in cells.train for caption in captions(cell)]
            texts += [RESTYLE.format(style=s.style) for s in sets]
            train_tokenizer(texts, output / "tokenizer.model", VOCABULARY)
    return total


def _drawn(drawings: dict[str, Any], most: int, seed: int) -> list[str]:
    rng = generator("emoji", "names", seed)
    return sorted(rng.permutation(sorted(drawings))[:most].tolist())


def _listed(file: Path, drawings: dict[str, Any]) -> list[str]:
    lines = [line.strip() for line in read_text(file).split("\n")]
    for number, name in enumerate(lines, 1):
        if name and name not in drawings:
            raise UserError(
                f"{file}:{number}: {name!r} is not in all sets, or of a category left out; give a "
                "list of your own by --names, or draw names by --most"
            )
    return sorted(set(filter(None, lines)))


def distinct(sets: list[IconSet]) -> list[IconSet]:
    """One set of each style, those that know code points first.

    `fluent-emoji` and `fluent-emoji-flat` are one style: their drawings are the same.
    """
    ordered = sorted(sets, key=lambda s: (not s.codes, s.prefix != f"{s.style}", s.prefix))
    found: dict[str, IconSet] = {}
    for each in ordered:
        found.setdefault(each.style, each)
    return list(found.values())


def align(sets: list[IconSet], without: tuple[str, ...] = ()) -> dict[str, dict[str, str]]:
    """Name -> style -> SVG, of what all sets have; the first set's names are taken.

    A drawing's identity is its code point, or its name where no set knows one.
    """
    known: dict[str, str] = {}
    for each in sets:
        for name, code in each.codes.items():
            known.setdefault(name, code)
    names: dict[str, str] = {}
    drawings: dict[str, dict[str, str]] = {}
    for each in sets:
        for name, icon in each.icons.items():
            called = (name, *each.other_names.get(name, ()))
            codes = (each.codes.get(n) or known.get(n) for n in called)
            key = next((code for code in codes if code), name)
            first = names.setdefault(key, name)
            drawings.setdefault(first, {}).setdefault(each.style, icon)
    gone = {name for each in sets for c in without for name in each.categories.get(c, ())}
    whole = {name: found for name, found in drawings.items() if len(found) == len(sets)}
    return {name.replace("-", " "): found for name, found in whole.items() if name not in gone}


@dataclass
class Split:
    """Cells by what they are for."""

    train: list[Cell] = field(default_factory=list)
    validation: list[Cell] = field(default_factory=list)
    held_out: list[Cell] = field(default_factory=list)


def split(names: dict[str, list[str]], seed: int) -> Split:
    """At most one cell of a name is kept from training, by a draw of the name's own.

    So each of them is seen in other styles, whatever other names there are.
    """
    cells = Split()
    for name, styles in names.items():
        rng = generator("emoji", "split", seed, name)
        chosen, draw = rng.choice(styles), rng.random() / len(styles)
        kept = cells.held_out if draw < HELD_OUT else cells.validation
        for style in styles:
            away = style == chosen and draw < HELD_OUT + VALIDATION and len(styles) > 1
            (kept if away else cells.train).append((name, style))
    return cells


def captions(cell: Cell) -> list[str]:
    """Captions of a cell, the whole one first and most often; some lack its name or style."""
    name, style = cell
    plural = name.endswith("s") and not name.endswith(("ss", "us", "is"))
    article = "" if plural else "an " if name[0] in "aeiou" else "a "
    return [form.format(a=article, name=name, style=style) for form in VARIANTS]


def _renderer() -> Callable[..., bytes]:
    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        raise UserError("emoji: needs resvg to draw; pip install 'mmfusion[emoji]'") from None
    return svg_to_bytes


def render(svg: str, size: int, where: str) -> bytes:
    """A square SVG as a PNG of `size` pixels a side, on white; no file or font is read for it."""
    try:
        drawn = _renderer()(
            svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True
        )
    except ValueError as error:
        raise CorruptSample("picture", f"{where}: not drawn ({first_line(error)})") from None
    return bytes(drawn)


@dataclass
class _Items:
    count: int
    make: Callable[[int], list[Sample]]


def _tasks(cells: Split, picture: Callable[[str, str], bytes], seed: int) -> dict[str, _Items]:
    """Shards by name: `draw`, `train` (captions), `restyle`, `analogy`, and both kept sets."""
    of_name: dict[str, list[str]] = {}
    of_style: dict[str, set[str]] = {}
    for name, style in cells.train:
        of_name.setdefault(name, []).append(style)
        of_style.setdefault(style, set()).add(name)
    pairs = [(n, a, b) for n, styles in of_name.items() for a in styles for b in styles if a != b]
    analogies = [
        (place, example)
        for place, (name, before, after) in enumerate(pairs)
        for example in _examples(of_style[before] & of_style[after] - {name}, seed, place)
    ]

    def captioned(part: list[Cell], whole: bool) -> _Items:
        def make(number: int) -> list[Sample]:
            cell = part[number]
            facts = {"name": cell[0], "style": cell[1]}
            described = {"captions": captions(cell)[:1] if whole else captions(cell), **facts}
            return [(_key(*cell), {"json": described, "png": picture(*cell)})]

        return _Items(len(part), make)

    def restyle(number: int) -> list[Sample]:
        name, before, after = pairs[number]
        said = {"text": RESTYLE.format(style=after)}
        shown = [picture(name, before), picture(name, after)]
        return [_interleaved(_key(name, before, after), [shown[0], said, shown[1]])]

    def analogy(number: int) -> list[Sample]:
        place, example = analogies[number]
        name, before, after = pairs[place]
        shown = [picture(n, style) for n in (example, name) for style in (before, after)]
        return [_interleaved(_key(example, name, before, after), shown)]

    return {
        "draw": captioned(cells.train, whole=False),
        "train": captioned(cells.train, whole=True),
        "restyle": _Items(len(pairs), restyle),
        "analogy": _Items(len(analogies), analogy),
        "validation": captioned(cells.validation, whole=True),
        "held_out": captioned(cells.held_out, whole=True),
    }


def _examples(names: set[str], seed: int, place: int) -> list[str]:
    rng = generator("emoji", "analogy", seed, place)
    return [str(name) for name in rng.permutation(np.array(sorted(names)))[:ANALOGIES]]


def _key(*parts: str) -> str:
    """A sample's key: without dots, where webdataset would cut it."""
    return "_".join(part.replace(" ", "-").replace(".", "") for part in parts)


def _interleaved(key: str, parts: list[Any]) -> Sample:
    """Pictures and texts in their order; the last picture is to be drawn."""
    content: list[dict[str, Any]] = []
    members: dict[str, Any] = {}
    for part in parts:
        if isinstance(part, bytes):
            content.append({"image": f"{len(members)}.png"})
            members[f"{len(members)}.png"] = part
        else:
            content.append(part)
    content[-1]["target"] = True
    return key, {"json": {"content": content}, **members}
