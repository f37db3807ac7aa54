"""The pictures of a table, each with all of its captions: rows of one picture are joined."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmfusion.errors import CorruptSample, UserError

from ..images import spelled
from .annotations import Table, Wanted


class Captioned(NamedTuple):
    """A picture as a table describes it."""

    image: str
    captions: list[str]
    label: int | None


class CaptionTable:
    """The pictures of a table by number, in the order in which it first names them."""

    def __init__(self, table: Table, source: str, wanted: Wanted, folder: Path) -> None:
        """Find which rows belong together; paths begin in `folder`.

        Raises:
            UserError: no row is of the splits that are wanted.
        """
        self.table = table
        hashes = np.zeros(len(table), np.uint64)
        keep = np.ones(len(table), bool)
        splits: set[str] = set()
        for row, entry in enumerate(table.rows()):
            image = _image(entry)
            hashes[row] = _digest(image and spelled(image, folder), row)
            if wanted.splits:
                split = (entry or {}).get("split")
                if split is not None:
                    splits.add(_text(split))
                keep[row] = split is not None and _text(split) in wanted.splits
        lacking = [name for name in wanted.splits if name not in splits]
        if lacking:
            raise UserError(
                f"{source}: has no rows of the split {lacking[0]}; it has "
                + (", ".join(sorted(splits)[:10]) or "no splits, so leave out --split")
            )
        rows = np.flatnonzero(keep)
        _, first, group = np.unique(hashes[rows], return_index=True, return_inverse=True)
        place = np.empty(len(first), np.int64)
        place[np.argsort(first)] = np.arange(len(first))
        group = place[group]
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
        return compress(map(_image, self.table.rows()), first)

    def __getitem__(self, number: int) -> Captioned:
        """A picture with the captions of all its rows.

        Raises:
            Damage: it is a row that cannot be used.
        """
        rows = self._rows[self._starts[number] : self._starts[number + 1]].tolist()
        found = [read_row(self.table[row], self.table.where(row)) for row in rows]
        captions = [caption for one in found for caption in one.captions]
        label = next((one.label for one in found if one.label is not None), None)
        return Captioned(found[0].image, list(dict.fromkeys(captions)), label)


def read_row(entry: dict[str, Any], where: str) -> Captioned:
    """A row of a table.

    Raises:
        Damage: it lacks a caption or its picture, or has a label that is none.
    """
    captions = texts(entry.get("captions"), where)
    label = label_of(entry.get("label"), where)
    image = entry.get("image")
    image = os.fsdecode(image) if isinstance(image, bytes) else image
    if not image or not isinstance(image, str):
        raise CorruptSample("picture", f"{where}: names no picture; expected its path")
    return Captioned(image, captions, label)


def texts(value: Any, where: str) -> list[str]:
    """Captions: a text or a list of texts, of which those that say nothing are dropped.

    Raises:
        Damage: it is neither, or none says anything.
    """
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


def image_path(image: str, images: Path | None, folder: Path, where: str) -> Path:
    """Where a picture lies: `image` begins in `images`, or else in the table's `folder`.

    However it is spelled, as `spelled` says.

    A table is a list that users make of files on their disk, so absolute paths and `..` mean what
    they say; no more of a file than a whole picture can get into a shard. Users who did not make
    the table themselves give --images, and what leads out of that folder is left out. Links in it
    are followed: they are the users' own.

    Raises:
        Damage: it leads out of `images`, or there is no plain file.
    """
    path = Path(spelled(image, images or folder))
    if images is not None and not path.is_relative_to(os.path.abspath(images)):
        raise CorruptSample("picture", f"{where}: picture {image!r} leads out of {images}")
    # A device or pipe could be read forever. This is False for any odd path, too.
    if not os.path.isfile(path):
        given = str((images or folder) / image)
        other = _in_other_case(str(path.parent)).get(path.name.lower())
        remedy = f"there is {other!r}" if other else "--images names another folder"
        told = f"no file {given!r}; paths begin in {images or folder}, {remedy}"
        raise CorruptSample("picture", f"{where}: {told}")
    return path


@lru_cache(maxsize=8)
def _in_other_case(folder: str) -> dict[str, str]:
    """The names in a folder by themselves in small letters."""
    try:
        return {name.lower(): name for name in sorted(os.listdir(folder))}
    except (OSError, ValueError):
        return {}


def label_of(value: Any, where: str) -> int | None:
    """The number of a class, which a table of text has as text.

    Raises:
        Damage: it is something else.
    """
    with suppress(ValueError):
        value = int(value) if value and isinstance(value, bytes) else value
    if value is None or value == b"":
        return None
    if type(value) is not int:
        raise CorruptSample("label", f"{where}: `label` must be the number of a class")
    return value


def _image(entry: dict[str, Any] | None) -> str | None:
    """What a row calls its picture; None if the row cannot be used, and stands for itself."""
    try:
        return None if entry is None else read_row(entry, "").image
    except CorruptSample:
        return None


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _digest(image: str | None, row: int) -> int:
    """64 bits that two rows have in common if they name the same picture."""
    named = b"+" + image.encode("utf-8", "surrogatepass") if image else b"-%d" % row
    return int.from_bytes(hashlib.blake2b(named, digest_size=8).digest(), "little")
