"""A sample: the members that share a key in a shard, and how each kind of member is read.

`json` holds the facts: `label`, `captions` and, for interleaved samples, `content`. webdataset's
own `txt` and `cls` members stand in for `captions` and `label`, img2dataset's `caption` for
`captions`. Nothing in a sample is ever run: pictures are decoded, arrays are read without pickle,
and only raster formats are opened.
"""

import io
import json
import math
import re
from typing import Any

import numpy as np
from PIL import Image as Picture

from mmfusion.codecs.image import open_picture
from mmfusion.errors import Damage, first_line

PICTURES = ("png", "jpg", "jpeg", "webp")
MOST_TEXT = 1 << 24  # bytes of a member that is text


class Sample(dict[str, bytes]):
    """Members of one sample by extension, with its key, and where it is for error messages."""

    def __init__(self, members: dict[str, bytes], where: str, key: str = "") -> None:
        super().__init__(members)
        self.where, self.key = where, key

    def json(self) -> dict[str, Any]:
        """The sample's facts, `txt` and `cls` members among them; empty without any.

        Raises:
            Damage: a member is not what its name says.
        """
        for ext, reason in (("json", "json"), ("txt", "caption"), ("cls", "label")):
            if (size := len(self.get(ext, b""))) > MOST_TEXT:
                told = f"{self.where}.{ext}: {size:,} bytes are more than {MOST_TEXT:,}"
                raise Damage(reason, told)
        try:
            facts = json.loads(self.get("json", b"{}"))
        except (ValueError, RecursionError) as error:
            raise Damage("json", f"{self.where}.json: not valid JSON ({error})") from None
        if not isinstance(facts, dict):
            raise Damage("json", f"{self.where}.json: expected an object of facts")
        if "txt" in self:
            facts.setdefault("captions", [self["txt"].decode("utf-8", "replace")])
        elif isinstance(facts.get("caption"), str):
            facts.setdefault("captions", [facts["caption"]])
        if "cls" in self and "label" not in facts:
            if not re.fullmatch(rb"\s*\d{1,9}\s*", self["cls"]):
                raise Damage("label", f"{self.where}.cls: expected the number of a class")
            facts["label"] = int(self["cls"])
        return facts

    def picture(self, name: str | None = None) -> Picture.Image:
        """The picture under an extension such as `png` or `0.png`; default: the sample's own."""
        if name is None:
            name = next((e for e in PICTURES if e in self), None)
            named = ""
        else:
            named = f" {name}"
        if name is None or name not in self:
            raise Damage("picture", f"{self.where}: no picture{named} in this sample")
        return open_picture(self[name], f"{self.where}.{name}")

    def array(self, name: str) -> np.ndarray:
        """The plain array under an extension such as `moments.npy`.

        Raises:
            Damage: there is none, or it is cut short, pickled or no `.npy` file.
        """
        if name not in self:
            raise Damage("latents", f"{self.where}: no `{name}` in this sample")
        try:
            # Not numpy's load: it would also take archives, and pickles if asked.
            file = io.BytesIO(self[name])
            _check_size(file)
            return np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:  # a damaged header can raise anything
            raise Damage(
                "latents", f"{self.where}.{name}: not a plain array ({first_line(error)})"
            ) from None


def _check_size(file: io.BytesIO) -> None:
    """Make sure that a `.npy` file is as long as its header says, before memory is taken for it."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version}")
    read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, _, dtype = read(file)
    declared, there = math.prod(shape) * dtype.itemsize, len(file.getbuffer()) - file.tell()
    if min(shape, default=0) < 0 or declared != there:
        raise ValueError(f"{declared:,} bytes are declared, {there:,} are there")
    file.seek(0)
