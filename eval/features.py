"""Rows of arrays, one for each of many items: made in parts by any number of processes, and kept.

So are the features of pictures: a part's place in the cache says all that it depends on, the
pictures' contents and size, the extractor and its weights. The same pictures are never run through
the same network twice, and what was stopped goes on.
"""

import hashlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mmfusion import files
from mmfusion.device import one_thread
from mmfusion.errors import UserError, first_line
from mmfusion.home import cache_folder

from .extractors import Arrays, Extractor, joined
from .image_sets import ImageSet
from .work import share

PART = 256
"""Pictures in a file: a multiple of every extractor's batch."""
VERSION = 3
"""Of how pictures are read and of what a part looks like."""
MOST_WORKERS = 8  # each has a batch in memory
REMEDY = "make room, or name another folder with --work or $MMFUSION_CACHE"


def rows(
    parts: dict[Path, range], make: Callable[[range], Arrays], what: str, unit: str, hold: bool
) -> Arrays:
    """The arrays that `make` gives of some items, a row an item; of all parts.

    Those that are not there are made with all other ranks, which get none unless they `hold` them.
    A part is an npz, whose checksums tell of a flipped bit: one that is damaged is made again.
    """

    def write(span: range, path: Path) -> None:
        arrays, file = make(span), io.BytesIO()
        with files.room(path, REMEDY):
            np.savez(file, **arrays)  # type: ignore[arg-type]
            files.write(path, file.getvalue(), REMEDY)

    makers = {path: partial(write, span) for path, span in parts.items()}
    folder, spans = next(iter(parts)).parent, [*parts.values()]
    held: dict[Path, Arrays | None] = dict.fromkeys(parts)
    while None in held.values():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            share(makers, what, unit, spans[-1].stop, len(spans[0]))
        except OSError as error:
            why = f"features and embeddings cannot be kept there ({first_line(error)})"
            raise UserError(f"{folder}: {why}; {REMEDY}") from None
        if not hold:
            return {}
        held = {path: held[path] or _read(path, len(span)) for path, span in parts.items()}
    return joined([arrays for arrays in held.values() if arrays], what)


def _read(path: Path, count: int) -> Arrays | None:
    """A part; a damaged one is removed, and made again by whoever comes first."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in kept.files}
        if arrays and all(len(array) == count for array in arrays.values()):
            return arrays
    except Exception:  # of zip and npy headers, in many kinds, or another rank has removed it
        pass
    files.remove(path)
    return None


def parts_of(folder: Path, name: str, count: int, size: int) -> dict[Path, range]:
    """Files `name00000000.npz` and so on, and the items of each: `size`, the last may have less."""
    spans = (range(count)[at : at + size] for at in range(0, count, size))
    return {folder / f"{name}{span.start:08d}.npz": span for span in spans}


def extract(
    pictures: ImageSet, extractor: Extractor, work: Path | None = None, hold: bool = True
) -> Arrays:
    """What the extractor gives of all pictures, and their "sizes" (n, 2), height and width.

    Those that `work` (default: the user's cache) lacks are made. Under a launcher every rank calls
    this and makes some of the parts; those that are not to `hold` the arrays get none.
    """
    if not len(pictures):
        raise UserError(f"{pictures.name}: holds moments alone, and no pictures")
    known = (VERSION, PART, pictures.digest, pictures.size, extractor.identity)
    name = hashlib.sha256(repr(known).encode()).hexdigest()[:32]
    parts = parts_of((work or cache_folder() / "features") / name, "", len(pictures), PART)
    what = f"{extractor.kind} of {'/'.join(Path(pictures.name).parts[-2:])}"
    return rows(parts, partial(_make, pictures, extractor), what, "picture", hold)


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
        made = pool.map(partial(_batch, extractor), map(pictures.read, batches))
        return joined(list(made), f"features {extractor.name}")


def _batch(extractor: Extractor, pictures: list[np.ndarray]) -> Arrays:
    sizes = np.array([picture.shape[:2] for picture in pictures], np.int32)
    return {**extractor(pictures), "sizes": sizes}
