"""npz files of the ADM suite: pictures read one by one, and written so; moments.

They are those of openai/guided-diffusion (Dhariwal & Nichol 2021): `arr_0` holds samples, uint8
(N, H, W, 3); a reference file also has the moments of Inception's features, `mu` and `sigma` of
pool_3, `mu_s` and `sigma_s` of the spatial ones. Nothing is unpickled.
"""

import math
import struct
import threading
import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from mmfusion import files
from mmfusion.data_pipelines.samples import npy_header
from mmfusion.errors import CorruptSample, UserError, first_line
from mmfusion.manifest import sha256

from .image_sets import ImageSet
from .metrics import Moments

MOMENTS = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
"""Names of the mean and covariance of Inception's arrays."""
MOST_DIMENSIONS = 1 << 14  # of moments


class NpzImages(ImageSet):
    """`arr_0` of an npz, mapped, or streamed where it is compressed; and the moments beside it.

    Going on from picture to picture a stream is read once; going back starts it anew.
    """

    def __init__(self, name: str, size: int | None) -> None:
        """Open a file.

        Raises:
            UserError: it is damaged, or holds something else.
        """
        super().__init__(name, size)
        self._mapped: np.ndarray | None = None
        self._shape: tuple[int, ...] = (0,)
        self._lock = threading.Lock()
        try:
            with zipfile.ZipFile(name) as archive:
                there = {info.filename: info for info in archive.infolist()}
                self.moments = _moments(archive, there)
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
        if not self.moments and not len(self):
            raise UserError(
                f"{name}: neither pictures (`arr_0`) nor moments (`mu`, `sigma`) in this npz, but "
                f"{', '.join(sorted(there)) or 'nothing'}"
            )

    def _open(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        with archive.open(info) as opened:
            shape, fortran, dtype = npy_header(opened, info.file_size)
            self._start = opened.tell()
        if fortran or dtype != np.uint8 or shape[3:] != (3,) or not math.prod(shape):
            order = " in Fortran order" if fortran else ""
            raise UserError(
                f"{self.name}: arr_0 is {dtype} of shape {shape}{order}; expected pictures, uint8 "
                "of shape (N, H, W, 3)"
            )
        self._shape, self.side = shape, (shape[1], shape[2])
        if info.compress_type == zipfile.ZIP_STORED:
            with open(self.name, "rb") as file:
                file.seek(info.header_offset)
                name, extra = struct.unpack("<26x2H", file.read(30))
            start = info.header_offset + 30 + name + extra + self._start
            self._mapped = np.memmap(self.name, np.uint8, "r", start, shape)

    def __len__(self) -> int:
        return self._shape[0]

    def picture(self, number: int) -> PILImage.Image:
        try:
            if self._mapped is not None:
                return PILImage.fromarray(np.array(self._mapped[number]))
            length = math.prod(self._shape[1:])
            with self._lock:
                self._stream.seek(self._start + number * length)
                data = self._stream.read(length)
            return PILImage.fromarray(np.frombuffer(data, np.uint8).reshape(self._shape[1:]))
        except Exception as error:  # of a damaged stream
            raise CorruptSample(
                "picture", f"{self.place(number)}: cannot be read ({first_line(error)})"
            ) from None

    def read(self, numbers: Sequence[int]) -> list[np.ndarray]:
        return [self[number] for number in numbers]  # a stream has an order

    @cached_property
    def _stream(self) -> Any:
        return zipfile.ZipFile(self.name).open("arr_0.npy")

    @cached_property
    def digest(self) -> str:
        return sha256(Path(self.name))


def _moments(archive: zipfile.ZipFile, there: dict[str, zipfile.ZipInfo]) -> dict[str, Moments]:
    found = {}
    for key, (mean, covariance) in MOMENTS.items():
        if there.keys() & {f"{mean}.npy", f"{covariance}.npy"}:
            mu = _floats(archive, there, mean)
            found[key] = mu, _floats(archive, there, covariance, mu.shape * 2)
    return found


def _floats(
    archive: zipfile.ZipFile,
    there: dict[str, zipfile.ZipInfo],
    key: str,
    expected: tuple[int, ...] | None = None,
) -> np.ndarray:
    """An array of an npz in float64, of the shape that is expected, or else (d,)."""
    info, name = there.get(f"{key}.npy"), archive.filename
    if info is None:
        raise UserError(f"{name}: has moments but no `{key}`; get the file anew")
    with archive.open(info) as file:
        shape, fortran, dtype = npy_header(file, info.file_size)
        shaped = shape == expected if expected else len(shape) == 1
        if dtype.kind != "f" or not shaped or not 0 < shape[0] <= MOST_DIMENSIONS:
            raise UserError(
                f"{name}: `{key}` is {dtype} of shape {shape}; expected floats of shape "
                f"{expected or '(d,)'}"
            )
        order: Any = "F" if fortran else "C"
        array = np.frombuffer(file.read(), dtype).reshape(shape, order=order).astype(np.float64)
    if not np.isfinite(array).all():
        raise UserError(f"{name}: `{key}` holds numbers that are not finite")
    return array


def write_npz_samples(
    path: Path, pictures: ImageSet | Sequence[np.ndarray], labels: np.ndarray | None = None
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
