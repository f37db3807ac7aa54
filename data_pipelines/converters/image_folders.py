"""Where the pictures of classes lie: in folders, in tars of tars, or in a flat tar with labels.

They are listed, and read one by one where they lie; nothing is unpacked.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mmfusion import launcher
from mmfusion.errors import CorruptSample, UserError, printable, user_error

from .. import storage
from ..images import SUFFIXES, ImageReader
from ..tar_index import Contents, plain_files
from .devkit import WNID, stem

FACTS = (".cls", ".json", ".txt")
log = logging.getLogger("mmfusion")
LISTED = 1 << 16  # names at a time
SNIFFED = 16  # members that say what a tar is


class Place(NamedTuple):
    """A picture: its file, which is in a folder or in one of the tars."""

    file: str
    tar: str = ""
    offset: int = 0
    size: int = 0


@dataclass
class ClassFiles:
    """Pictures by number: sorted by class and name, wherever they lie."""

    source: str  # the folder of classes, or the first tar
    found: dict[str, list[Place]]  # by the folder of a class
    lost: list[CorruptSample] = field(default_factory=list)  # numbered after the pictures

    def __post_init__(self) -> None:
        self.classes = list(self.found)
        sizes = [len(places) for places in self.found.values()]
        self.labels = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        in_order = (sorted(places, key=attrgetter("file")) for places in self.found.values())
        self.places = list(chain.from_iterable(in_order))
        if not self.places:
            why = f" ({self.lost[0]})" if self.lost else ""
            raise UserError(f"{self.source}: holds no pictures{why}")

    def __len__(self) -> int:
        return len(self.places) + len(self.lost)

    def file(self, number: int) -> str:
        """Class and name, as n01440764/n01440764_10026.JPEG."""
        return printable(f"{self.classes[self.labels[number]]}/{self.places[number].file}")

    def names(self) -> Iterator[str]:
        """That of all pictures."""
        return map(self.file, range(len(self.places)))

    def number(self, classes: list[str], source: Path) -> None:
        """Take the numbers that all `classes` have, by the file `source`."""
        for place in self.classes:
            if place not in classes:
                raise UserError(f"{source}: has no name for the folder {place}")
        new = np.array([classes.index(place) for place in self.classes], np.int32)
        self.classes, self.labels = classes, new[self.labels]

    def read(self, number: int, reader: ImageReader) -> tuple[str, bytes]:
        """The member's extension and bytes."""
        place = self.places[number]
        if not place.tar:
            return reader.read(Path(self.source) / self.classes[self.labels[number]] / place.file)
        data = storage.read(place.tar, place.offset, place.offset + place.size)
        return reader.member(data, f"picture {place.tar}:{place.file}")

    def listing(self) -> Iterator[bytes]:
        """The names of classes and files in folders, for a digest."""
        yield from map(os.fsencode, self.classes)
        yield self.labels.tobytes()
        for start in range(0, len(self.places), LISTED):
            yield b"\0".join(os.fsencode(p.file) for p in self.places[start : start + LISTED])


def folders(folder: Path, empty_too: bool = False) -> ClassFiles:
    """Pictures in one folder a class; what is hidden is passed over."""
    found: dict[str, list[Place]] = {}
    others: list[str] = []
    for place in sorted(_scan(folder)):
        if (folder / place).is_dir():
            files = _scan(folder / place)
            found[place] = [Place(file) for file in files if file.lower().endswith(SUFFIXES)]
            others += [f"{place}/{f}" for f in files if not f.lower().endswith(SUFFIXES)]
    if others:
        told = "%s: passes over %d files, such as %s; pictures end in %s"
        log.warning(told, folder, len(others), printable(others[0]), ", ".join(SUFFIXES))
    empty = [place for place, places in found.items() if not places]
    if len(empty) == len(found):
        raise UserError(
            f"{folder}: no folders of pictures; expected one a class, as n01440764/, or tars, as "
            f"'{folder}/*.tar'"
        )
    if empty and not empty_too:
        raise UserError(
            f"{folder / empty[0]}: holds no pictures; fetch them anew, give --names with all "
            "classes, or delete the folder if it is no class"
        )
    return ClassFiles(str(folder), {place: some for place, some in found.items() if some})


def kind_of(tars: list[str]) -> str:
    """What tars hold, by the first one: `tars`, `samples` or `pictures`; `folders` without any."""
    if not tars:
        return "folders"
    contents = Contents(storage.size(tars[0]))
    with storage.open_file(tars[0]) as file:
        names = [m.name.lower() for m in islice(plain_files(file, contents), SNIFFED)]
    for endings, kind in (((".tar",), "tars"), (FACTS, "samples"), (SUFFIXES, "pictures")):
        if any(name.endswith(endings) for name in names):
            named = kind == "pictures" and all(WNID.fullmatch(Path(tar).stem) for tar in tars)
            return "tars" if named else kind
    raise UserError(f"{tars[0]}: not a tar of pictures, of tars, or of samples with labels")


def class_tars(tars: list[str]) -> ClassFiles:
    """Pictures in tars named by their class, which lie in other tars or on the disk themselves."""
    found: dict[str, list[Place]] = {}
    lost: list[CorruptSample] = []
    for tar in tars:
        own = PurePosixPath(tar).stem
        if WNID.fullmatch(own):
            found.setdefault(own, []).extend(_members(tar, SUFFIXES, lost))
            continue
        broken: list[CorruptSample] = []
        for inner in _members(tar, (".tar",), broken):
            found.setdefault(stem(inner.file), []).extend(_members(tar, SUFFIXES, lost, inner))
        if broken:
            raise UserError(f"{broken[0]}; copy or fetch the tar anew")
    for place, places in found.items():
        if not places:
            raise UserError(f"{tars[0]}: the tar of {place} holds no pictures; fetch it anew")
    return ClassFiles(tars[0], dict(sorted(found.items())), lost)


def flat_tars(tars: list[str], of: dict[str, str], classes: Iterable[str]) -> ClassFiles:
    """Pictures in flat tars, their class by their name; `classes` are all that there are."""
    found: dict[str, list[Place]] = {place: [] for place in sorted(classes)}
    lost: list[CorruptSample] = []
    for tar in tars:
        for place in _members(tar, SUFFIXES, lost):
            label = of.get(stem(place.file))
            if label is None:
                told = f"{tar}:{place.file}: the labels do not name it"
                lost.append(CorruptSample("label", told))
            else:
                found[label].append(place)
    return ClassFiles(tars[0], found, lost)


def _members(
    tar: str, endings: tuple[str, ...], lost: list[CorruptSample], inner: Place | None = None
) -> Iterator[Place]:
    """Members of a tar, or of one in it, of which only the headers are read.

    What is damaged goes to `lost`.
    """
    start = inner.offset if inner else 0
    contents = Contents(start + inner.size if inner else storage.size(tar))
    told = {"desc": f"listing {tar}", "unit": "B", "unit_scale": True, "leave": False}
    quiet = inner is not None or launcher.place().rank > 0
    with storage.open_file(tar) as file, tqdm(total=contents.bytes, disable=quiet, **told) as bar:
        for member in plain_files(file, contents, start):
            name = printable(member.name).rpartition("/")[2]
            if name.lower().endswith(endings) and not name.startswith("."):
                yield Place(name, tar, member.offset_data, member.size)
            bar.update(member.offset_data + member.size - bar.n)
    where = f"{tar}:{inner.file}" if inner else tar
    for entry in contents.lost:
        what = f"{where}{entry.name and ':'}{entry.name}: {entry.what}"
        lost.append(CorruptSample(entry.reason, what))


def _scan(folder: Path) -> list[str]:
    with user_error(f"{folder}: cannot be read", OSError):
        return [name for name in os.listdir(folder) if not name.startswith(".")]
