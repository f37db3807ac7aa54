"""The pictures of a table, each with all of its captions: rows of one picture are joined.

They may also be the captions of pictures that are listed elsewhere, as of a recaptioned ImageNet.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import compress
from pathlib import Path
from posixpath import normpath
from typing import Any, NamedTuple

import numpy as np

from mmfusion.errors import CorruptSample, UserError

from ..images import spelled
from .annotations import Wanted, read_table
from .devkit import stem


class Captioned(NamedTuple):
    """A picture as a table describes it."""

    image: str
    captions: list[str]
    label: int | None

    def facts(self) -> dict[str, Any]:
        """Those of its sample."""
        return {
            "captions": self.captions, **({} if self.label is None else {"label": self.label})
        }  # fmt: skip


class CaptionTable:
    """The pictures of a table by number, in the order in which it first names them."""

    def __init__(self, files: list[Path], wanted: Wanted) -> None:
        """Read the table, and find which of its rows belong together."""
        self.table = read_table(files, wanted.columns)
        folder = wanted.images or files[0].parent
        hashes = np.zeros(len(self.table), np.uint64)
        keep = np.ones(len(self.table), bool)
        splits: set[str] = set()
        for row, entry in enumerate(self.table.scan()):
            image = _image(entry)
            hashes[row] = _hash(f"+{spelled(image, folder)}" if image else f"-{row}")
            if wanted.splits:
                split = _text((entry or {}).get("split"))
                splits.add(split)
                keep[row] = split in wanted.splits
        splits.discard("")
        for name in wanted.splits:
            if name not in splits:
                has = ", ".join(sorted(splits)[:10]) or "no splits, so leave out --split"
                raise UserError(f"{files[0]}: has no rows of the split {name}; it has {has}")
        rows = np.flatnonzero(keep)
        _, first, group = np.unique(hashes[rows], return_index=True, return_inverse=True)
        group = np.argsort(np.argsort(first))[group]  # numbered by their first rows
        self._rows = rows[np.argsort(group, kind="stable")]
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=len(first)))])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def where(self, number: int) -> str:
        """File and first row of a picture."""
        return self.table.where(int(self._rows[self._starts[number]]))

    def images(self) -> Iterator[str | None]:
        """What each picture is called in the table; None where it is not."""
        first = np.zeros(len(self.table), bool)
        first[self._rows[self._starts[:-1]]] = True
        return compress(map(_image, self.table.scan()), first)

    def __getitem__(self, number: int) -> Captioned:
        """A picture with the captions of all its rows."""
        rows = self._rows[self._starts[number] : self._starts[number + 1]].tolist()
        found = [read_row(self.table[row], self.table.where(row)) for row in rows]
        captions = [caption for one in found for caption in one.captions]
        label = next((one.label for one in found if one.label is not None), None)
        return Captioned(found[0].image, list(dict.fromkeys(captions)), label)


def read_row(entry: dict[str, Any], where: str) -> Captioned:
    """A row of a table."""
    captions = texts(entry.get("captions"), where)
    label = label_of(entry.get("label"), where)
    image = entry.get("image")
    image = os.fsdecode(image) if isinstance(image, bytes) else image
    if not image or not isinstance(image, str):
        raise CorruptSample("picture", f"{where}: names no picture; expected its path")
    return Captioned(image, captions, label)


def texts(value: Any, where: str) -> list[str]:
    """Captions: a text or a list of texts, of which those that say nothing are dropped."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise CorruptSample("caption", f"{where}: the caption is not UTF-8 text") from None
        if value.startswith('["'):  # a list in a cell
            with suppress(ValueError):
                value = json.loads(value)
    found = value if isinstance(value, list) else [value]
    found = [entry.get("raw") if isinstance(entry, dict) else entry for entry in found]
    if not all(isinstance(entry, str) for entry in found):
        raise CorruptSample(
            "caption", f"{where}: expected a caption, or a list of captions, as text"
        )
    found = [entry for entry in found if entry.strip()]
    if not found:
        raise CorruptSample("caption", f"{where}: the captions hold no text")
    return found


def label_of(value: Any, where: str) -> int | None:
    """The number of a class, which a table of text has as text."""
    with suppress(ValueError):
        value = int(value) if value and isinstance(value, bytes) else value
    if value is None or value == b"":
        return None
    if type(value) is not int:
        raise CorruptSample("label", f"{where}: `label` must be the number of a class")
    return value


def image_path(image: str, images: Path | None, folder: Path, where: str) -> Path:
    """Where a picture lies: `image` begins in `images`, or else in the table's `folder`.

    A table is a list that users make of files on their disk, so absolute paths and `..` mean what
    they say; no more of a file than a whole picture can get into a shard. Users who did not make
    the table themselves give --images, and what leads out of that folder is left out. Links in it
    are followed: they are the users' own.
    """
    path = Path(spelled(image, images or folder))
    if images is not None and not path.is_relative_to(os.path.abspath(images)):
        raise CorruptSample("picture", f"{where}: picture {image!r} leads out of {images}")
    if not os.path.isfile(path):  # nor a device or pipe, which could be read forever
        told = f"no file {str((images or folder) / image)!r}; paths begin in {images or folder}"
        raise CorruptSample("picture", f"{where}: {told}, --images names another folder")
    return path


def _image(entry: dict[str, Any] | None) -> str | None:
    """What a row calls its picture; None if the row cannot be used, and stands for itself."""
    try:
        return None if entry is None else read_row(entry, "").image
    except CorruptSample:
        return None


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _hash(text: str) -> int:
    """64 bits that two rows have in common if they name the same picture."""
    encoded = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


class Recaptions:
    """The captions of each picture by its number, or none."""

    def __init__(self, table: Path, files: Iterable[str]) -> None:
        """Find the table's picture for each file: by folder and name, or else by the name alone.

        Endings do not count. A name that stands for several pictures finds none.
        """
        self._table = CaptionTable([table], Wanted())
        images, wanted = list(self._table.images()), list(files)
        of = _places(image and _key(image) for image in images)
        named = _places(image and stem(image) for image in images)
        once = _places(map(stem, wanted))
        self._places = [
            of.get(_key(file), named.get(name) if (name := stem(file)) in once else None)
            for file in wanted
        ]
        self.missing = self._places.count(None)
        """Pictures that the table does not name."""
        if self.missing == len(wanted):
            raise UserError(
                f"{table}: has no captions for these pictures; expected their paths, as "
                "n01440764/n01440764_10026.JPEG, or names"
            )

    def of(self, number: int) -> list[str]:
        """Captions of a picture; none where the table has none."""
        place = self._places[number]
        return [] if place is None else self._table[place].captions


def _key(file: str) -> str:
    """Folder and name without ending: n01440764/n01440764_10026."""
    folder, _, _ = normpath(file.replace("\\", "/")).rpartition("/")
    return f"{folder.rpartition('/')[2]}/{stem(file)}"


def _places(names: Iterable[str | None]) -> dict[str, int]:
    """Where each name is that is there once."""
    listed = list(names)
    times = Counter(listed)
    return {name: at for at, name in enumerate(listed) if name is not None and times[name] == 1}
