"""npz files of the ADM suite: pictures read one by one, and written so; moments.

They are those of openai/guided-diffusion (Dhariwal & Nichol 2021): `arr_0` holds samples, uint8
(N, H, W, 3); a reference file also has the moments of Inception's features, `mu` and `sigma` of
pool_3, `mu_s` and `sigma_s` of the spatial ones. Nothing is unpickled.
"""

import math
import struct
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmfusion import files
from mmfusion.errors import UserError, first_line

MOST_DIMENSIONS = 1 << 14  # of moments


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d) of Inception's pool features, and of its spatial ones."""

    mu: np.ndarray
    sigma: np.ndarray
    mu_s: np.ndarray | None = None
    sigma_s: np.ndarray | None = None


class Pictures(Protocol):
    """Pictures by number."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> np.ndarray: ...
    def __iter__(self) -> Iterator[np.ndarray]: ...


class Npz:
    """The pictures of an npz: mapped, or streamed where they are compressed.

    Going on from picture to picture a stream is read once; going back starts it anew.

    Attributes:
        count: how many pictures it holds.
        side: height and width of each, or None.
        moments: those beside them, or None.
    """

    def __init__(self, name: str) -> None:
        """Open a file.

        Raises:
            UserError: it is damaged, or holds something else.
        """
        self.name, self.count = name, 0
        self.moments: Moments | None = None
        self.side: tuple[int, int] | None = None
        self._mapped: np.ndarray | None = None
        self._lock = threading.Lock()
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
        if self.moments is None and not self.count:
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
        self.count, self._shape = shape[0], shape[1:]
        self.side = (shape[1], shape[2])
        if info.compress_type == zipfile.ZIP_STORED:
            with open(self.name, "rb") as file:
                file.seek(info.header_offset)
                name, extra = struct.unpack("<26x2H", file.read(30))
            start = info.header_offset + 30 + name + extra + self._start
            self._mapped = np.memmap(self.name, np.uint8, "r", start, shape)

    def picture(self, number: int) -> np.ndarray:
        """Picture `number`, uint8 (H, W, 3); where the stream is damaged, any error."""
        if self._mapped is not None:
            return np.array(self._mapped[number])
        length = math.prod(self._shape)
        with self._lock:
            self._stream.seek(self._start + number * length)
            data = self._stream.read(length)
        return np.frombuffer(data, np.uint8).reshape(self._shape)

    @cached_property
    def _stream(self) -> Any:
        return zipfile.ZipFile(self.name).open("arr_0.npy")


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


def write_npz(path: Path, pictures: Pictures, labels: np.ndarray | None = None) -> Path:
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
    shape = np.shape(pictures[0])
    with files.writing(path) as part, zipfile.ZipFile(part, "w") as archive:
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
    return path
