"""Where the pictures of classes lie: in folders, in tars of tars, or in a flat tar with labels.

They are listed, and read one by one where they lie; nothing is unpacked.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from mmfusion import launcher
from mmfusion.errors import CorruptSample, UserError, printable

from .. import storage
from ..images import SUFFIXES, ImageReader
from ..tar_index import Contents, plain_files
from .devkit import WNID, stem

FACTS = (".cls", ".json", ".txt")
LISTED = 1 << 16  # names at a time
SNIFFED = 16  # members that say what a tar is


@dataclass
class ClassFiles:
    """Pictures by number: sorted by class and name, wherever they lie.

    Attributes:
        classes: their folders' names, by label.
        labels: (N,) the class of each picture.
        files: its name in the class's folder.
        read: number, reader -> the member's extension and bytes.
        lost: what could not be listed; stands after the pictures.
    """

    classes: list[str]
    labels: np.ndarray
    files: pa.Array
    read: Callable[[int, ImageReader], tuple[str, bytes]]
    lost: list[CorruptSample] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels) + len(self.lost)

    def file(self, number: int) -> str:
        """Class and name, as n01440764/n01440764_10026.JPEG."""
        return printable(f"{self.classes[self.labels[number]]}/{_name(self.files, number)}")

    def names(self) -> Iterator[str]:
        """That of all pictures."""
        return map(self.file, range(len(self.labels)))

    def numbered(self, classes: list[str], source: str) -> "ClassFiles":
        """The same with the numbers that all `classes` have, by the file `source`."""
        numbers = {place: number for number, place in enumerate(classes)}
        missing = [place for place in self.classes if place not in numbers]
        if missing:
            raise UserError(f"{source}: has no name for the folder {missing[0]}")
        new = np.array([numbers[place] for place in self.classes], np.int32)
        return replace(self, classes=classes, labels=new[self.labels])

    def listing(self) -> Iterator[bytes]:
        """The names of classes and files, for a digest."""
        yield from map(os.fsencode, self.classes)
        yield self.labels.tobytes()
        for start in range(0, len(self.files), LISTED):
            yield b"\0".join(self.files[start : start + LISTED].to_pylist())


class Place(NamedTuple):
    """A picture in a tar."""

    file: str
    tar: int
    offset: int
    size: int


def folders(folder: Path, empty_too: bool = False) -> ClassFiles:
    """Pictures in one folder a class; what is hidden is passed over."""
    found: dict[str, list[str]] = {}
    empty: list[str] = []
    for place in sorted(_scan(folder)):
        if (folder / place).is_dir():
            files = [f for f in _scan(folder / place) if f.lower().endswith(SUFFIXES)]
            if files:
                found[place] = sorted(files)
            else:
                empty.append(place)
    if found and empty and not empty_too:
        raise UserError(
            f"{folder / empty[0]}: holds no pictures; fetch them anew, give --names with all "
            "classes, or delete the folder if it is no class"
        )
    if not found:
        raise UserError(
            f"{folder}: no folders of pictures; expected one a class, as n01440764/, or tars, as "
            f"'{folder}/*.tar'"
        )
    classes, labels, files = _columns(found, lambda file: file)

    def read(number: int, reader: ImageReader) -> tuple[str, bytes]:
        return reader.read(folder / classes[labels[number]] / _name(files, number))

    return ClassFiles(classes, labels, files, read)


def kind_of(tar: str) -> str:
    """What a tar holds: `tars`, `samples` or `pictures`."""
    contents = Contents(storage.size(tar))
    try:
        with storage.open_file(tar) as file:
            names = [m.name.lower() for m in islice(plain_files(file, contents), SNIFFED)]
    except OSError as error:
        raise UserError(f"{tar}: cannot be read ({error.strerror})") from None
    if any(name.endswith(".tar") for name in names):
        return "tars"
    if any(name.endswith(FACTS) for name in names):
        return "samples"
    if any(name.endswith(SUFFIXES) for name in names):
        return "pictures"
    raise UserError(f"{tar}: not a tar of pictures, of tars, or of samples with labels")


def class_tars(tars: list[str]) -> ClassFiles:
    """Pictures in tars named by their class, which lie in other tars or on the disk themselves."""
    found: dict[str, list[Place]] = {}
    lost: list[CorruptSample] = []
    for number, tar in enumerate(tars):
        own = PurePosixPath(tar).stem
        if WNID.fullmatch(own):
            found.setdefault(own, []).extend(_members(tar, number, SUFFIXES, lost))
            continue
        broken: list[CorruptSample] = []
        for inner in _members(tar, number, (".tar",), broken):
            end, where = inner.offset + inner.size, f"{tar}:{inner.file}"
            places = _members(tar, number, SUFFIXES, lost, inner.offset, end, where)
            found.setdefault(stem(inner.file), []).extend(places)
        if broken:
            raise UserError(f"{broken[0]}; copy or fetch the tar anew")
    empty = [place for place in found if not found[place]]
    if empty:
        raise UserError(f"{tars[0]}: the tar of {empty[0]} holds no pictures; fetch it anew")
    return _in_tars(tars, dict(sorted(found.items())), lost)


def flat_tars(tars: list[str], of: dict[str, str], classes: Iterable[str]) -> ClassFiles:
    """Pictures in flat tars, their class by their name; `classes` are all that there are."""
    found: dict[str, list[Place]] = {place: [] for place in sorted(classes)}
    lost: list[CorruptSample] = []
    for number, tar in enumerate(tars):
        for place in _members(tar, number, SUFFIXES, lost):
            label = of.get(stem(place.file))
            if label is None:
                lost.append(
                    CorruptSample("label", f"{tar}:{place.file}: the labels do not name it")
                )
            else:
                found[label].append(place)
    return _in_tars(tars, found, lost)


def _in_tars(
    tars: list[str], found: dict[str, list[Place]], lost: list[CorruptSample]
) -> ClassFiles:
    for places in found.values():
        places.sort()
    classes, labels, files = _columns(found, lambda place: place.file)
    if not len(labels):
        raise UserError(f"{tars[0]}: holds no pictures{f' ({lost[0]})' if lost else ''}")
    every = (place for places in found.values() for place in places)
    at = np.array([place[1:] for place in every], np.int64)

    def read(number: int, reader: ImageReader) -> tuple[str, bytes]:
        tar, offset, size = at[number].tolist()
        data = storage.read(tars[tar], offset, offset + size)
        return reader.member(data, f"picture {tars[tar]}:{_name(files, number)}")

    return ClassFiles(classes, labels, files, read, lost)


def _members(
    tar: str,
    number: int,
    endings: tuple[str, ...],
    lost: list[CorruptSample],
    start: int = 0,
    end: int | None = None,
    where: str = "",
) -> Iterator[Place]:
    """Members of tar `number`, of which only the headers are read; what is damaged, to `lost`."""
    contents = Contents(storage.size(tar) if end is None else end)
    quiet = end is not None or launcher.place().rank > 0
    told = {"desc": f"listing {tar}", "unit": "B", "unit_scale": True, "leave": False}
    bar = tqdm(total=contents.bytes, disable=quiet, **told)
    with storage.open_file(tar) as file, bar:
        for member in plain_files(file, contents, start):
            name = printable(member.name).rpartition("/")[2]
            if name.lower().endswith(endings) and not name.startswith("."):
                yield Place(name, number, member.offset_data, member.size)
            bar.update(member.offset_data + member.size - bar.n)
    for entry in contents.lost:
        what = f"{where or tar}{entry.name and ':'}{entry.name}: {entry.what}"
        lost.append(CorruptSample(entry.reason, what))


def _columns(found: dict[str, list], name: Callable) -> tuple[list[str], np.ndarray, pa.Array]:
    labels = np.repeat(np.arange(len(found), dtype=np.int32), [len(f) for f in found.values()])
    names = [pa.array([os.fsencode(name(f)) for f in some], pa.binary()) for some in found.values()]
    return list(found), labels, pa.concat_arrays(names)


def _name(files: pa.Array, number: int) -> str:
    return os.fsdecode(files[number].as_py())


def _scan(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
