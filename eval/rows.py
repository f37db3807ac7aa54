"""Arrays with a row for each of many items, made in parts by any number of processes, and kept.

A part is an npz, whose checksums tell of a flipped bit: one that is damaged is made again.
"""

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mmfusion import files
from mmfusion.errors import UserError, first_line

from .work import share

Arrays = dict[str, np.ndarray]
REMEDY = "make room, or name another folder with --work or $MMFUSION_CACHE"


@dataclass(frozen=True)
class Rows:
    """Rows 0 to `count`, `size` of them a file.

    Attributes:
        folder: of the files; its name says all that the rows depend on.
        name: begins the files' names.
        make: the rows of some items: the same arrays each time, as many rows as items.
        what, unit: shown beside the bar, and what it counts.
    """

    folder: Path
    name: str
    count: int
    size: int
    make: Callable[[range], Arrays]
    what: str
    unit: str

    @property
    def parts(self) -> dict[Path, range]:
        """The items of each file."""
        return {
            self.folder / f"{self.name}{start:08d}.npz": range(
                start, min(start + self.size, self.count)
            )
            for start in range(0, self.count, self.size)
        }

    def fill(self) -> None:
        """Make the files that are not there, with all other ranks.

        Raises:
            UserError: the folder cannot be used.
        """
        makers = {path: partial(self._write, span) for path, span in self.parts.items()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            share(makers, self.what, self.unit, self.count, self.size)
        except OSError as error:
            why = f"features and embeddings cannot be kept there ({first_line(error)})"
            raise UserError(f"{self.folder}: {why}; {REMEDY}") from None

    def read(self) -> dict[str, list[np.ndarray]]:
        """Each array's parts, made where they are not there or damaged.

        Raises:
            UserError: as `fill`.
        """
        held: dict[Path, Arrays] = {}
        while len(held) < len(self.parts):
            self.fill()
            for path, span in self.parts.items():
                if path not in held and (arrays := _read(path, len(span))) is not None:
                    held[path] = arrays
        names = next(iter(held.values()))
        return {name: [held[path].pop(name) for path in self.parts] for name in list(names)}

    def _write(self, span: range, path: Path) -> None:
        arrays, file = self.make(span), io.BytesIO()
        with files.room(path, REMEDY):
            np.savez(file, **arrays)  # type: ignore[arg-type]
            files.write(path, file.getvalue(), REMEDY)


def _read(path: Path, count: int) -> Arrays | None:
    """A part; a damaged one is removed, and made again by whoever comes first."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in kept.files}
        if not arrays or any(len(array) != count for array in arrays.values()):
            raise ValueError("not as many rows")
    except FileNotFoundError:  # another rank found it damaged, too
        return None
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile):
        files.remove(path)
        return None
    return arrays
