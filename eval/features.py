"""Rows of arrays, one for each of many items: made in parts by any number of processes, and kept.

So are the features of pictures: a part's place in the cache says all that it depends on, the
pictures' contents and size, the extractor and its weights. The same pictures are never run through
the same network twice, and what was stopped goes on.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mmfusion import files
from mmfusion.device import one_thread
from mmfusion.errors import UserError, first_line
from mmfusion.home import cache_folder

from .extractors import Extractor
from .image_sets import ImageSet
from .work import share

PART = 256
"""Pictures in a file: a multiple of every extractor's batch."""
VERSION = 3
"""Of how pictures are read and of what a part looks like."""
MOST_WORKERS = 8  # each has a batch in memory
REMEDY = "make room, or name another folder with --work or $MMFUSION_CACHE"

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Rows:
    """Rows 0 to `count`, `size` of them a file.

    A file is an npz, whose checksums tell of a flipped bit: one that is damaged is made again.

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
        spans = (range(self.count)[at : at + self.size] for at in range(0, self.count, self.size))
        return {self.folder / f"{self.name}{span.start:08d}.npz": span for span in spans}

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


def extract(
    pictures: ImageSet, extractor: Extractor, work: Path | None = None, hold: bool = True
) -> Arrays:
    """What the extractor gives of all pictures, and their "sizes" (n, 2), height and width.

    Those that `work` (default: the user's cache) lacks are made. Under a launcher every rank calls
    this and makes some of the parts; those that are not to `hold` the arrays get none.

    Raises:
        UserError: there are no pictures, one of them is damaged, or `work` cannot be used.
    """
    if not len(pictures):
        raise UserError(f"{pictures.name}: holds moments alone, and no pictures")
    known = (VERSION, PART, pictures.digest, pictures.size, extractor.identity)
    name = hashlib.sha256(repr(known).encode()).hexdigest()[:32]
    folder = (work or cache_folder() / "features") / name
    what = f"{extractor.kind} of {'/'.join(Path(pictures.name).parts[-2:])}"
    compute = partial(_make, pictures, extractor)
    rows = Rows(folder, "", len(pictures), PART, compute, what, "picture")
    if not hold:
        rows.fill()
        return {}
    found = rows.read()
    for parts in found.values():
        if len({part.shape[1:] for part in parts}) > 1:
            raise UserError(
                f"features {extractor.name}: pictures of {pictures.name} differ in size; make them "
                "one size with --size"
            )
    return {name: np.concatenate(found.pop(name)) for name in list(found)}


def _make(pictures: ImageSet, extractor: Extractor, span: range) -> Arrays:
    """One part; on a CPU by threads that compute alone, so that bits do not depend on cores.

    Pictures are read here, in their order, which a compressed file needs.
    """
    batches = [span[at : at + extractor.batch] for at in range(0, len(span), extractor.batch)]
    cores = torch.get_num_threads() if extractor.device == "cpu" else 1  # a launcher gives one
    workers = min(cores, MOST_WORKERS)
    with (
        one_thread(),
        ThreadPoolExecutor(workers, "features", torch.set_num_threads, (1,)) as pool,
    ):
        made = list(pool.map(partial(_batch, extractor), map(pictures.read, batches)))
    return {name: np.concatenate([part[name] for part in made]) for name in made[0]}


def _batch(extractor: Extractor, pictures: list[np.ndarray]) -> Arrays:
    sizes = np.array([picture.shape[:2] for picture in pictures], np.int32)
    return {**extractor(pictures), "sizes": sizes}
