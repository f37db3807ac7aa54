"""Sets of pictures to be measured: a folder, shards, or the npz files of the ADM suite.

Nothing is in memory but what is asked for, and nothing is left out: a distance over a set with
silent holes would be wrong, so a damaged picture is an error that names it.
"""

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage
from tqdm import tqdm

from mmfusion.codecs.image import flat, open_image, prepare
from mmfusion.data_pipelines.images import SUFFIXES
from mmfusion.data_pipelines.samples import PICTURES
from mmfusion.data_pipelines.shards import Shards
from mmfusion.data_pipelines.storage import beside, expand, is_remote
from mmfusion.errors import CorruptSample, UserError, first_line
from mmfusion.manifest import sha256

from .metrics import Moments

THREADS = min(8, os.cpu_count() or 1)  # reading and decoding run outside Python's lock


class ImageSet(Sequence[np.ndarray]):
    """Pictures by number, each uint8 (H, W, 3), upright, transparent ones laid on white.

    With a `size` they are resized and cut to a square of that side, as for training.
    """

    side: tuple[int, int] | None = None  # height and width of those that the moments are of
    passed_over = 0  # files in a folder that are no pictures

    def __init__(self, name: str, size: int | None) -> None:
        self.name, self.size = name, size
        self.moments: dict[str, Moments] = {}  # of a reference file: "features" and "spatial"

    @abstractmethod
    def picture(self, number: int) -> PILImage.Image:
        """A picture as it is stored."""

    @cached_property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the contents."""

    def __getitem__(self, number: Any) -> Any:
        """Picture `number`; one that is damaged is a UserError that names it."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        try:
            picture = self.picture(number)
            if self.size is not None:
                return prepare(picture, self.size, 3)
            return np.asarray(flat(picture).convert("RGB"))
        except CorruptSample as error:
            raise UserError(
                f"{error.at(self.place(number))}; mend it or take it out of the set: a figure over "
                "the others alone could not be compared"
            ) from None

    def place(self, number: int) -> str:
        """Where a picture is, for messages."""
        return f"{self.name}, picture {number}"

    def read(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """Some of the pictures, decoded side by side."""
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(self.__getitem__, numbers))


class Pictures(ImageSet):
    """Pictures that are at hand, or that a sequence reads one by one."""

    def __init__(self, name: str, pictures: Sequence[PILImage.Image]) -> None:
        super().__init__(name, None)
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def picture(self, number: int) -> PILImage.Image:
        return self.pictures[number]

    @cached_property
    def digest(self) -> str:
        total = hashlib.sha256()
        for picture in self.pictures:
            total.update(f"{picture.mode} {picture.size} ".encode() + picture.tobytes())
        return total.hexdigest()


def open_images(path: str, size: int | None = None) -> ImageSet:
    """The pictures of a folder and those in it, of shards (glob, braces, URL), or of an npz."""
    found = expand(path)
    if (found or [path])[0].endswith(".tar") or is_remote(path):
        return ShardImages(path, size)
    if not found:
        raise UserError(f"{path}: no such file or folder; {beside(path)}")
    if len(found) == 1 and Path(found[0]).is_dir():
        return FolderImages(found[0], size)
    if len(found) == 1 and found[0].endswith(".npz"):
        from .npz import NpzImages

        return NpzImages(found[0], size)
    raise UserError(f"{path}: no set of pictures; give a folder, shards (.tar) or an .npz")


class FolderImages(ImageSet):
    """Picture files, sorted by their path; hidden ones and others, which are counted, are not."""

    def __init__(self, name: str, size: int | None = None) -> None:
        super().__init__(name, size)
        files = sorted(_files(name))
        self.names = [name for name in files if name.lower().endswith(SUFFIXES)]
        self.passed_over = len(files) - len(self.names)
        if not self.names:
            tars = any(Path(name).glob("*.tar"))
            remedy = f"; for the shards in it, give '{name}/*.tar'" if tars else ""
            raise UserError(f"{name}: no pictures in this folder ({' '.join(SUFFIXES)}){remedy}")

    def __len__(self) -> int:
        return len(self.names)

    def place(self, number: int) -> str:
        return str(Path(self.name, self.names[number]))

    def picture(self, number: int) -> PILImage.Image:
        place = self.place(number)
        try:
            data = Path(place).read_bytes()
        except OSError as error:
            raise CorruptSample(
                "picture", f"{place}: cannot be read ({first_line(error)})"
            ) from None
        return open_image(data, place)

    @cached_property
    def digest(self) -> str:
        total = hashlib.sha256()
        paths = [Path(self.name, name) for name in self.names]
        with ThreadPoolExecutor(THREADS) as pool:
            found = tqdm(pool.map(sha256, paths), "hashing", len(paths), leave=False, delay=2)
            for name, digest in zip(self.names, found, strict=True):
                total.update(f"{digest} {name}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest()


def _files(root: str) -> Iterator[str]:
    """Paths of files below `root` that are not hidden; linked folders are followed, each once."""
    seen = set()
    for folder, inner, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in files:
            path = os.path.join(folder, name)
            if not name.startswith(".") and os.path.isfile(path):
                yield Path(os.path.relpath(path, root)).as_posix()


def whole_shards(pattern: str) -> Shards:
    """Shards without damage: a hole in what is measured would go unseen."""
    shards = Shards(pattern)
    if shards.lost:
        path, lost = shards.lost[0]
        raise UserError(
            f"{pattern}: {len(shards.lost)} places are damaged, such as {path} ({lost.what}); an "
            "evaluation needs all of it: see `mmfusion data verify`"
        )
    return shards


class ShardImages(ImageSet):
    """The samples' own pictures of webdataset shards."""

    def __init__(self, name: str, size: int | None, shards: Shards | None = None) -> None:
        super().__init__(name, size)
        self._shards = shards or whole_shards(name)

    def __len__(self) -> int:
        return len(self._shards)

    def place(self, number: int) -> str:
        return ":".join(self._shards.place(number))

    def picture(self, number: int) -> PILImage.Image:
        return self._shards.sample(number, PICTURES).picture()

    @cached_property
    def digest(self) -> str:
        return self._shards.digest
