"""Features of a set of pictures, made in parts by any number of processes and kept.

A part's place in the cache says all that it depends on: the pictures' contents and size, the
extractor and its weights. So the same pictures are never run through the same network twice, and
what was stopped goes on.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mmfusion.errors import UserError
from mmfusion.home import cache_folder

from .extractors import Extractor
from .pictures import PictureSet
from .rows import Arrays, Rows

PART = 256
"""Pictures in a file: a multiple of every extractor's batch."""
VERSION = 3
"""Of how pictures are read and of what a part looks like."""
MOST_WORKERS = 8  # each has a batch in memory
NAMES = ("features", "spatial", "logits")
SIZES = "sizes"


@dataclass(frozen=True)
class Features:
    """Rows of float32 numbers, one a picture: (n, d), (n, 2023) and (n, 1008).

    `sizes` (n, 2) has the pictures' height and width. `source` and `extractor` say what they were
    made of, with the SHA-256 of both.
    """

    features: np.ndarray
    spatial: np.ndarray | None
    logits: np.ndarray | None
    sizes: np.ndarray
    n: int
    extractor: str
    extractor_sha256: str
    source: str
    source_sha256: str


def extract(pictures: PictureSet, extractor: Extractor, work: Path | None = None) -> Features:
    """The features of all pictures: those that `work` (default: the user's cache) lacks are made.

    Under a launcher every rank calls this, makes some of the parts and gets them all.

    Raises:
        UserError: there are no pictures, one of them is damaged, or `work` cannot be used.
    """
    found = _rows(pictures, extractor, work).read()
    arrays: dict[str, np.ndarray | None] = dict.fromkeys((*NAMES, SIZES))
    for name in (*extractor.gives, SIZES):
        parts = found.pop(name)
        if len({part.shape[1:] for part in parts}) > 1:
            raise UserError(
                f"features {extractor.name}: pictures of {pictures.name} differ in size; make them "
                "one size with --size"
            )
        arrays[name] = np.concatenate(parts)
    about = (extractor.name, extractor.sha256, pictures.name, pictures.digest)
    features, spatial, logits, sizes = (arrays[name] for name in (*NAMES, SIZES))
    return Features(features, spatial, logits, sizes, len(pictures), *about)  # type: ignore[arg-type]


def make(pictures: PictureSet, extractor: Extractor, work: Path | None = None) -> None:
    """Make the parts that are not there, with all other ranks, and hold none.

    Raises:
        UserError: as `extract`.
    """
    _rows(pictures, extractor, work).fill()


def _rows(pictures: PictureSet, extractor: Extractor, work: Path | None) -> Rows:
    if not len(pictures):
        raise UserError(f"{pictures.name}: holds moments alone, and no pictures")
    known = (VERSION, PART, pictures.digest, pictures.size, extractor.identity)
    name = hashlib.sha256(repr(known).encode()).hexdigest()[:32]
    folder = (work or cache_folder() / "features") / name
    what = f"{extractor.kind} of {'/'.join(Path(pictures.name).parts[-2:])}"
    compute = partial(_make, pictures, extractor)
    return Rows(folder, "", len(pictures), PART, compute, what, "picture")


def _make(pictures: PictureSet, extractor: Extractor, span: range) -> Arrays:
    """One part; on a CPU by threads that compute alone, so that bits do not depend on cores.

    Pictures are read here, in their order, which a compressed file needs.
    """
    batches = [span[at : at + extractor.batch] for at in range(0, len(span), extractor.batch)]
    cores = torch.get_num_threads()  # a launcher gives each rank one
    workers = min(cores, MOST_WORKERS) if extractor.device == "cpu" else 1
    try:
        with ThreadPoolExecutor(workers, "features", torch.set_num_threads, (1,)) as pool:
            made = list(pool.map(partial(_batch, extractor), map(pictures.read, batches)))
    finally:
        torch.set_num_threads(cores)
    return {
        name: np.concatenate([part[name] for part in made]) for name in (*extractor.gives, SIZES)
    }


def _batch(extractor: Extractor, pictures: list[np.ndarray]) -> dict[str, np.ndarray]:
    sizes = np.array([picture.shape[:2] for picture in pictures], np.int32)
    return {**extractor(pictures), SIZES: sizes}
