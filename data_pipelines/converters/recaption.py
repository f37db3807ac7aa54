"""Captions from a table for pictures that are listed elsewhere, such as a recaptioned ImageNet."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from posixpath import normpath

import numpy as np

from mmfusion.errors import UserError

from .annotations import Wanted, read_table
from .caption_table import CaptionTable
from .devkit import stem

NONE = -1


class Recaptions:
    """The captions of each picture by its number, or none."""

    def __init__(self, table: Path, files: Iterable[str]) -> None:
        """Find the table's picture for each file: by folder and name, or else by the name alone.

        Endings do not count. A name that stands for several pictures finds none.

        Raises:
            UserError: the table cannot be read, or has captions for none of the files.
        """
        self.pictures = CaptionTable(
            read_table([table], Wanted()), str(table), Wanted(), table.parent
        )
        keys, stems = [], []
        for number, image in enumerate(self.pictures.images()):
            keys.append(_hash(_key(image) if image else f"\0{number}"))
            stems.append(_hash(stem(image) if image else f"\0{number}"))
        wanted = [(_hash(_key(file)), _hash(stem(file))) for file in files]
        sought = np.array(wanted, np.uint64).reshape(-1, 2)
        found = _places(np.array(keys, np.uint64), sought[:, 0])
        named = _places(np.array(stems, np.uint64), sought[:, 1])
        _, inverse, times = np.unique(sought[:, 1], return_inverse=True, return_counts=True)
        self._rows = np.where(found == NONE, np.where(times[inverse] == 1, named, NONE), found)
        self.missing = int((self._rows == NONE).sum())
        """Pictures that the table does not name."""
        if self.missing == len(self._rows):
            raise UserError(
                f"{table}: has no captions for these pictures; expected their paths, as "
                "n01440764/n01440764_10026.JPEG, or names"
            )

    def of(self, number: int) -> list[str]:
        """Captions of a picture; none where the table has none.

        Raises:
            Damage: the table's row is damaged.
        """
        row = int(self._rows[number])
        return [] if row == NONE else self.pictures[row].captions


def _key(file: str) -> str:
    """Folder and name without ending: n01440764/n01440764_10026."""
    folder, _, _ = normpath(file.replace("\\", "/")).rpartition("/")
    return f"{folder.rpartition('/')[2]}/{stem(file)}"


def _hash(text: str) -> int:
    encoded = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


def _places(keys: np.ndarray, sought: np.ndarray) -> np.ndarray:
    """Where each sought key is, if it is there once; else NONE."""
    distinct, first, times = np.unique(keys, return_index=True, return_counts=True)
    at = np.minimum(np.searchsorted(distinct, sought), len(distinct) - 1)
    return np.where((distinct[at] == sought) & (times[at] == 1), first[at], NONE)
