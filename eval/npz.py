"""npz files of the ADM suite: pictures read one by one, and written so; moments.

They are those of openai/guided-diffusion (Dhariwal & Nichol 2021): `arr_0` holds samples, uint8
(N, H, W, 3); a reference file also has the moments of Inception's features, `mu` and `sigma` of
pool_3, `mu_s` and `sigma_s` of the spatial ones. Nothing is unpickled.
"""

import math
import threading
import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from mmfusion import files
from mmfusion.data_pipelines.samples import npy_header
from mmfusion.errors import CorruptSample, UserError, first_line
from mmfusion.manifest import sha256

from .image_sets import ImageSet
from .metrics import Moments

MOMENTS = {"features": ("mu", "sigma", 2048), "spatial": ("mu_s", "sigma_s", 2023)}
"""Of Inception's arrays: names of the mean and covariance, and their dimensions."""


class NpzImages(ImageSet):
    """`arr_0` of an npz, and the moments beside it.

    Going on from picture to picture the file is read once; going back starts it anew.
    """

    def __init__(self, name: str, size: int | None) -> None:
        super().__init__(name, size)
        self._shape: tuple[int, ...] = (0,)
        self._lock = threading.Lock()
        try:
            with np.load(name, allow_pickle=False) as arrays:
                there = arrays.files
                self.moments = {
                    key: _moments(arrays, mean, covariance, d)
                    for key, (mean, covariance, d) in MOMENTS.items()
                    if {mean, covariance} & {*there}
                }
            if "arr_0" in there:
                self._open()
        except FileNotFoundError:
            raise UserError(f"{name}: no such file or folder") from None
        except Exception as error:  # zip and npy headers can raise anything
            raise UserError(
                f"{name}: not an npz of the ADM suite, cut short or damaged ({first_line(error)})"
            ) from None
        if not self.moments and not len(self):
            raise UserError(
                f"{name}: neither pictures (`arr_0`) nor moments (`mu`, `sigma`) in this npz, but "
                f"{', '.join(sorted(there)) or 'nothing'}"
            )

    def _open(self) -> None:
        archive = zipfile.ZipFile(self.name)
        self._stream = archive.open("arr_0.npy")
        size = archive.getinfo("arr_0.npy").file_size
        shape, fortran, dtype = npy_header(self._stream, size)
        if fortran or dtype != np.uint8 or shape[3:] != (3,) or not math.prod(shape):
            raise ValueError(
                f"arr_0 is {dtype} of shape {shape}{' in Fortran order' if fortran else ''}; "
                "expected pictures, uint8 of shape (N, H, W, 3)"
            )
        self._start, self._shape, self.side = self._stream.tell(), shape, (shape[1], shape[2])

    def __len__(self) -> int:
        return self._shape[0]

    def picture(self, number: int) -> PILImage.Image:
        length = math.prod(self._shape[1:])
        try:
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
    def digest(self) -> str:
        return sha256(Path(self.name))


def _moments(arrays: np.lib.npyio.NpzFile, mean: str, covariance: str, d: int) -> Moments:
    found = []
    for key, shape in ((mean, (d,)), (covariance, (d, d))):
        array = arrays[key]
        if array.dtype.kind != "f" or array.shape != shape or not np.isfinite(array).all():
            raise ValueError(
                f"`{key}` is {array.dtype} of shape {array.shape}; expected finite floats of "
                f"shape {shape}, as Inception gives them"
            )
        found.append(array.astype(np.float64))
    return found[0], found[1]


def write_npz_samples(
    path: Path, pictures: Sequence[np.ndarray], labels: np.ndarray | None = None
) -> Path:
    """Write pictures one after another, as the ADM suite takes samples.

    The same pictures give the same bytes.

    Args:
        pictures: uint8 (H, W, 3), all of one size.
        labels: (N,) class numbers, kept as `arr_1`.
    """
    shape = pictures[0].shape
    with files.writing(path) as part, zipfile.ZipFile(part, "w") as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(pictures), *shape)}
            np.lib.format.write_array_header_1_0(file, header)
            for number, pixels in enumerate(pictures):
                if pixels.shape != shape:
                    raise UserError(
                        f"{path}: picture {number} is of shape {pixels.shape}, the first one of "
                        f"{shape}; bring them to one size (`size=`)"
                    )
                file.write(np.ascontiguousarray(pixels).tobytes())
        if labels is not None:
            with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as file:
                np.lib.format.write_array(file, np.asarray(labels), allow_pickle=False)
    return path
