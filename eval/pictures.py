"""Sets of pictures to be measured: a folder, shards, or the npz files of the ADM suite.

Nothing is in memory but what is asked for, and nothing is left out: a distance over a set with
silent holes would be wrong, so a damaged picture is an error that names it.

npz files are those of openai/guided-diffusion (Dhariwal & Nichol 2021): `arr_0` holds samples,
uint8 (N, H, W, 3); a reference file also has the moments of Inception's features, `mu` and `sigma`
of pool_3, `mu_s` and `sigma_s` of the spatial ones.
"""

import hashlib
import math
import os
import socket
import struct
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from mmfusion.data_pipelines.pictures import SUFFIXES
from mmfusion.data_pipelines.samples import PICTURES
from mmfusion.data_pipelines.shards import Shards
from mmfusion.data_pipelines.storage import is_remote
from PIL import Image as Picture
from tqdm import tqdm

from mmfusion.codecs.image import flat, open_picture, prepare
from mmfusion.errors import Damage, UserError, first_line
from mmfusion.manifest import sha256

THREADS = min(8, os.cpu_count() or 1)  # reading and decoding run outside Python's lock
MOST_DIMENSIONS = 1 << 14  # of moments


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d) of Inception's pool features, and of its spatial ones."""

    mu: np.ndarray
    sigma: np.ndarray
    mu_s: np.ndarray | None = None
    sigma_s: np.ndarray | None = None


class PictureSet(ABC):
    """Pictures by number, each uint8 (H, W, 3), upright, transparent ones laid on white.

    Attributes:
        name: where they are.
        size: side in pixels that they are resized and cut to, as for training; None keeps theirs.
        moments: of a reference file.
    """

    moments: Moments | None = None

    def __init__(self, name: str, size: int | None) -> None:
        if size is not None and size < 1:
            raise UserError(f"size {size}: pictures have one pixel or more")
        self.name, self.size = name, size

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def picture(self, number: int) -> Picture.Image:
        """A picture as it is stored."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the contents."""

    def __getitem__(self, number: int) -> np.ndarray:
        """Picture `number`.

        Raises:
            UserError: it is damaged; the message names it.
        """
        if not 0 <= number < len(self):
            raise IndexError(number)
        try:
            picture = self.picture(number)
            if self.size is not None:
                return prepare(picture, self.size, 3)
            return np.asarray(flat(picture).convert("RGB"))
        except Damage as error:
            raise UserError(
                f"{error.at(self.place(number))}; mend it or take it out of the set: a figure over "
                "the others alone could not be compared"
            ) from None

    def place(self, number: int) -> str:
        """Where a picture is, for messages."""
        return f"{self.name}, picture {number}"

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self.__getitem__, range(len(self)))

    def read(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """Some of the pictures, decoded side by side."""
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(self.__getitem__, numbers))


def open_pictures(path: str, size: int | None = None) -> PictureSet:
    """The pictures of a folder and the folders in it, of shards (glob, braces, URL), or of an npz.

    Raises:
        UserError: there is nothing, or nothing that can be used.
    """
    path = str(path)
    if Path(path).is_dir():
        return FolderPictures(path, size)
    if path.endswith(".npz"):
        return NpzPictures(path, size)
    if path.endswith(".tar") or is_remote(path) or any(c in path for c in "*?[{"):
        return ShardPictures(path, size)
    if Path(path).exists():
        raise UserError(f"{path}: no set of pictures; give a folder, shards (.tar) or an .npz")
    raise UserError(f"{path}: no such file or folder")


class FolderPictures(PictureSet):
    """Picture files, sorted by their path; hidden files and others are passed over."""

    def __init__(self, name: str, size: int | None) -> None:
        super().__init__(name, size)
        self._root = Path(name)
        self._names = sorted(_picture_files(name))
        if not self._names:
            tars = any(self._root.glob("*.tar"))
            remedy = f"; for the shards in it, give '{self._root}/*.tar'" if tars else ""
            raise UserError(f"{name}: no pictures in this folder ({' '.join(SUFFIXES)}){remedy}")

    def __len__(self) -> int:
        return len(self._names)

    def place(self, number: int) -> str:
        return str(self._root / self._names[number])

    def picture(self, number: int) -> Picture.Image:
        place = self.place(number)
        try:
            data = Path(place).read_bytes()
        except OSError as error:
            raise Damage("picture", f"{place}: cannot be read ({first_line(error)})") from None
        return open_picture(data, place)

    @cached_property
    def digest(self) -> str:
        total = hashlib.sha256()
        paths = [self._root / name for name in self._names]
        with ThreadPoolExecutor(THREADS) as pool:
            found = tqdm(pool.map(sha256, paths), "hashing", len(paths), leave=False, delay=2)
            for name, digest in zip(self._names, found, strict=True):
                total.update(f"{digest} {name}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest()


def _picture_files(root: str) -> Iterator[str]:
    """Paths below `root`; linked folders are followed, each once."""
    seen = set()
    for folder, inner, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in files:
            path = os.path.join(folder, name)
            hidden = name.startswith(".")
            if not hidden and name.lower().endswith(SUFFIXES) and os.path.isfile(path):
                yield Path(os.path.relpath(path, root)).as_posix()


class ShardPictures(PictureSet):
    """The samples' own pictures of webdataset shards."""

    def __init__(self, name: str, size: int | None) -> None:
        super().__init__(name, size)
        self._shards = Shards(name)
        if self._shards.lost:
            path, lost = self._shards.lost[0]
            raise UserError(
                f"{name}: {len(self._shards.lost)} samples or shards cannot be used, the first in "
                f"{path}: {lost.what}; mend or remove them (`mmfusion data verify`)"
            )

    def __len__(self) -> int:
        return len(self._shards)

    def place(self, number: int) -> str:
        return ":".join(self._shards.place(number))

    def picture(self, number: int) -> Picture.Image:
        return self._shards.sample(number, PICTURES).picture()

    @property
    def digest(self) -> str:
        return self._shards.digest


class NpzPictures(PictureSet):
    """`arr_0` of an npz and the moments beside it: mapped, or streamed where it is compressed.

    Going on from picture to picture a stream is read once; going back starts it anew.
    """

    def __init__(self, name: str, size: int | None) -> None:
        super().__init__(name, size)
        self._pixels: np.ndarray | None = None
        self._count, self._shape = 0, (0, 0, 3)
        try:
            with zipfile.ZipFile(name) as archive:
                there = {info.filename: info for info in archive.infolist()}
                if "mu.npy" in there:
                    self.moments = _moments(archive, there, name)
                if "arr_0.npy" in there:
                    self._open(archive, there["arr_0.npy"])
        except UserError:
            raise
        except FileNotFoundError:
            raise UserError(f"{name}: no such file or folder") from None
        except Exception as error:  # zip and npy headers can raise anything
            raise UserError(
                f"{name}: not a readable npz; it is cut short, damaged or something else "
                f"({first_line(error)})"
            ) from None
        if self.moments is None and not self._count:
            raise UserError(
                f"{name}: neither pictures (`arr_0`) nor moments (`mu`, `sigma`) in this npz, but "
                f"{', '.join(sorted(there)) or 'nothing'}"
            )

    def _open(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        shape, dtype, self._start = _header(archive, info, self.name)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not math.prod(shape):
            raise UserError(
                f"{self.name}: arr_0 is {dtype} of shape {shape}; expected pictures, uint8 of "
                "shape (N, H, W, 3)"
            )
        self._count, self._shape = shape[0], shape[1:]
        if info.compress_type == zipfile.ZIP_STORED:
            with open(self.name, "rb") as file:
                file.seek(info.header_offset)
                name, extra = struct.unpack("<26x2H", file.read(30))
            start = info.header_offset + 30 + name + extra + self._start
            self._pixels = np.memmap(self.name, np.uint8, "r", start, shape)

    def __len__(self) -> int:
        return self._count

    def picture(self, number: int) -> Picture.Image:
        if self._pixels is not None:
            return Picture.fromarray(np.array(self._pixels[number]))
        length = math.prod(self._shape)
        try:
            with self._lock:
                self._stream.seek(self._start + number * length)
                data = self._stream.read(length)
            return Picture.fromarray(np.frombuffer(data, np.uint8).reshape(self._shape))
        except Exception as error:  # of a damaged stream
            raise Damage(
                "picture", f"{self.place(number)}: cannot be read ({first_line(error)})"
            ) from None

    def read(self, numbers: Sequence[int]) -> list[np.ndarray]:
        return [self[number] for number in numbers]  # a stream has an order

    @cached_property
    def _lock(self) -> threading.Lock:
        return threading.Lock()

    @cached_property
    def _stream(self) -> Any:
        return zipfile.ZipFile(self.name).open("arr_0.npy")

    @cached_property
    def digest(self) -> str:
        return sha256(Path(self.name))


def _header(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str
) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type and first byte of an array in an npz, which is as long as it says."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{info.filename} has version {version}")
        read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        shape, fortran, dtype = read(file)
        start = file.tell()
    if dtype.hasobject:
        raise UserError(
            f"{name}: {info.filename} holds pickled objects, which are never read; save plain "
            "numbers"
        )
    if fortran and len(shape) > 2:
        raise ValueError(f"{info.filename} is in Fortran order")
    declared = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or start + declared != info.file_size:
        told = f"{declared:,} bytes are declared, {info.file_size - start:,} are there"
        raise ValueError(f"{info.filename}: {told}")
    return shape, dtype, start


def _moments(
    archive: zipfile.ZipFile, there: dict[str, zipfile.ZipInfo], name: str
) -> Moments | None:
    found = {}
    for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s")):
        pair = [there.get(f"{key}.npy") for key in (mean, covariance)]
        if mean == "mu_s" and pair == [None, None]:
            continue
        shapes = []
        for key, info in zip((mean, covariance), pair, strict=True):
            if info is None:
                raise UserError(f"{name}: has moments but no `{key}`; get the file anew")
            shape, dtype, _ = _header(archive, info, name)
            if dtype.kind != "f":
                raise UserError(f"{name}: `{key}` is {dtype}; expected floats")
            shapes.append(shape)
        (d,) = shapes[0] if len(shapes[0]) == 1 else (0,)
        if not 0 < d <= MOST_DIMENSIONS or shapes[1] != (d, d):
            raise UserError(
                f"{name}: `{mean}` and `{covariance}` have the shapes {shapes[0]} and {shapes[1]}; "
                "expected (d,) and (d, d)"
            )
        for key, info in zip((mean, covariance), pair, strict=True):
            with archive.open(str(info and info.filename)) as file:
                array = np.lib.format.read_array(file, allow_pickle=False).astype(np.float64)
            if not np.isfinite(array).all():
                raise UserError(f"{name}: `{key}` holds numbers that are not finite")
            found[key] = array
    return Moments(**found)


def write_npz(
    path: Path, pictures: Sequence[np.ndarray] | PictureSet, labels: np.ndarray | None = None
) -> Path:
    """Write pictures one after another, as the ADM suite takes samples.

    The same pictures give the same bytes.

    Args:
        path: appears when it is complete.
        pictures: uint8 (H, W, 3), all of one size.
        labels: (N,) class numbers, kept as `arr_1`.

    Raises:
        UserError: no pictures, of different sizes, other labels, or no room.
    """
    if not len(pictures):
        raise UserError(f"{path}: no pictures to write")
    if labels is not None and np.shape(labels) != (len(pictures),):
        raise UserError(f"{path}: {len(pictures)} pictures, and labels of {np.shape(labels)}")
    part = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.part")
    shape = np.shape(pictures[0])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(part, "w") as archive:
            with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (len(pictures), *shape)}
                np.lib.format.write_array_header_1_0(file, header)
                for number, pixels in enumerate(pictures):
                    if pixels.dtype != np.uint8 or pixels.shape != shape or shape[2:] != (3,):
                        raise UserError(
                            f"{path}: picture {number} is {pixels.dtype} of shape {pixels.shape}; "
                            f"expected uint8 (H, W, 3), all of the first one's size (`size=`)"
                        )
                    file.write(np.ascontiguousarray(pixels).tobytes())
            if labels is not None:
                with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as file:
                    np.lib.format.write_array(file, np.asarray(labels), allow_pickle=False)
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            raise UserError(f"{path}: cannot be written ({first_line(error)})") from None
        raise
    return path
