"""The real emoji that a model is measured against, and the cells that it is asked for.

The cells of the test are drawn by seed, none picked: kept ones (`held_out`, or `validation`), a
trained cell of each of their names, and what restyles, analogies and cheats need beside them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image as PILImage

from mmfusion.codecs.image import flat
from mmfusion.data_pipelines.converters.emoji import Cell, captions
from mmfusion.data_pipelines.shards import Shards
from mmfusion.errors import UserError
from mmfusion.rng import generator

PARTS = "train", "validation", "held_out"


@dataclass(frozen=True)
class Real:
    """The pictures of all cells, as `mmfusion data emoji` wrote them.

    Attributes:
        pictures: by cell, a name in a style; RGB.
        trained: the cells that tasks are made of.
        kept: the cells of each other set.
        digest: of all.
    """

    pictures: dict[Cell, PILImage.Image]
    trained: dict[Cell, None]
    kept: dict[str, list[Cell]]
    digest: list[str]


def read_real(data: Path) -> Real:
    """All sets of a folder.

    Raises:
        UserError: shards are missing, or a sample has no name or style.
    """
    pictures: dict[Cell, PILImage.Image] = {}
    parts: dict[str, list[Cell]] = {}
    digest = []
    for part in PARTS:
        shards = Shards(str(data / f"{part}-*.tar"), "make them with `mmfusion data emoji`")
        digest.append(shards.digest)
        for sample in shards:
            facts = sample.json()
            name, style = facts.get("name"), facts.get("style")
            if not (isinstance(name, str) and isinstance(style, str)):
                raise UserError(f"{sample.where}: no emoji with a name and a style")
            cell = name, style
            pictures[cell] = flat(sample.picture()).convert("RGB")
            parts.setdefault(part, []).append(cell)
    trained = dict.fromkeys(parts.pop("train"))
    return Real(pictures, trained, parts, digest)


class Asked(NamedTuple):
    """What is asked about one name."""

    kept: Cell
    trained: Cell  # the same name in a style that was trained on
    example: str  # a name that was trained on in both styles, for an analogy


class Test:
    """The cells of a test, in an order of their seed; the first ones are those of a smaller test.

    Attributes:
        asked: an entry a name.
        names: that are in it.
    """

    def __init__(self, real: Real, part: str, count: int, seed: int) -> None:
        self.real, self.seed = real, seed
        cells = sorted(real.kept[part])
        order = generator("emoji", "test", seed).permutation(len(cells))
        self.asked = [self._asked(cells[number]) for number in order[:count]]
        self.names = {each.kept[0] for each in self.asked}

    @property
    def kept(self) -> list[Cell]:
        """The kept cells of all entries."""
        return [each.kept for each in self.asked]

    @property
    def trained(self) -> list[Cell]:
        """The trained cells of all entries."""
        return [each.trained for each in self.asked]

    def _asked(self, cell: Cell) -> Asked:
        name, style = cell
        same = self._drawn("trained", cell, [c for c in self.real.trained if c[0] == name])
        others = self._drawn("example", cell, [c for c in self.real.trained if c[1] == style])
        both = [n for n, _ in others if same and (n, same[0][1]) in self.real.trained]
        if not both:
            raise UserError(
                f"emoji {name}, {style}: its name has no trained cell, or no name is trained on "
                "in both styles; give `mmfusion data emoji` more names"
            )
        return Asked(cell, same[0], both[0])

    def _drawn(self, what: str, cell: Cell, cells: list[Cell]) -> list[Cell]:
        """Cells in an order of what they are for."""
        order = generator("emoji", what, self.seed, *cell).permutation(len(cells))
        return [cells[number] for number in order]

    def other_style(self, cell: Cell) -> Cell:
        """The same name in another style: what one draws who cannot change the style."""
        return self._drawn("style", cell, [c for c in self.real.pictures
                                           if c[0] == cell[0] and c != cell])[0]  # fmt: skip

    def other_name(self, cell: Cell) -> Cell:
        """Another name in the same style: what one draws who does not know the thing."""
        return self._drawn("name", cell, [c for c in self.real.trained
                                          if c[1] == cell[1] and c[0] != cell[0]])[0]  # fmt: skip


def prompt(cell: Cell) -> str:
    """What asks for a cell, and what says it: its whole caption."""
    return captions(cell)[0]
