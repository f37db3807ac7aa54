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
from collections.abc import Container, Iterable, Sequence
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from PIL import Image as PILImage

from mmfusion.codecs.image import open_image
from mmfusion.codecs.text import clean
from mmfusion.errors import CorruptSample, first_line

PICTURES = ("png", "jpg", "jpeg", "webp")
FACTS = ("json", "txt", "cls")
MOMENTS = "moments.npy"
MOST_SHOWN = 4  # members that a message names
MOST_CHARACTERS = 1_000_000  # of a text are looked at
MOST_CAPTIONS = 1000  # of a sample are looked at
MOST_TEXT = 1 << 24  # bytes of a member that is text
MOST_LATENT = 1000.0  # latents have about unit variance; one 1e30 would ruin the model's weights


class ContentPart(NamedTuple):
    """One part of an interleaved document: a text, an answer, or the name of a picture."""

    kind: Literal["text", "answer", "image"]
    value: str
    target: bool = False


def is_image(ext: str) -> bool:
    """Whether a member is a picture: `png`, `0.png`."""
    return ext.rpartition(".")[2] in PICTURES


def is_moments(ext: str) -> bool:
    """Whether a member is latents: `moments.npy`, `0.moments.npy`."""
    return ext == MOMENTS or ext.endswith(f".{MOMENTS}")


class _Used(Container[str]):
    """The members that training reads; a sample may hold others, and they are left alone."""

    def __contains__(self, ext: object) -> bool:
        return ext in FACTS or is_image(str(ext)) or is_moments(str(ext))


USED = _Used()


def moments_name(picture: str | None = None) -> str:
    """The member with the latents of a picture: `0.moments.npy` of `0.png`."""
    head = (picture or "").rpartition(".")[0]
    return f"{head}.{MOMENTS}" if head else MOMENTS


def shown(value: Any) -> str:
    """A value as an error message shows it: not at any length."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # a number of many digits; very deep lists
        text = type(value).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def serves(members: Sequence[str], facts: Container[str]) -> bool:
    """Whether a sample is of use: to a task, or as a picture by itself, as evaluations take them.

    Args:
        members: its extensions.
        facts: which facts it has.
    """
    own = [ext in PICTURES or ext == MOMENTS for ext in members]
    message = any(ext in FACTS for ext in members)
    return "content" in facts or (any(own) and (message or all(own)))


def shown_members(members: Iterable[str]) -> str:
    """Extensions for a message on what a sample lacks, if dots in names may be why."""
    names = sorted(members)
    if not any("." in name and not is_moments(name) for name in names):
        return ""
    shown = ", ".join(names[:MOST_SHOWN]) + (", ..." if len(names) > MOST_SHOWN else "")
    return f" (it has the members {shown}: a name is cut at its first dot, docs/data.md)"


class Sample(dict[str, bytes]):
    """Members of one sample by extension, with its key, and where it is for error messages.

    Attributes:
        extensions: of all its members, also of those that were not asked for.
    """

    def __init__(
        self,
        members: dict[str, bytes],
        where: str,
        key: str = "",
        extensions: Sequence[str] | None = None,
    ) -> None:
        super().__init__(members)
        self.where, self.key = where, key
        self.extensions = list(members) if extensions is None else extensions
        self._facts: dict[str, Any] | None = None

    def json(self) -> dict[str, Any]:
        """The sample's facts, `txt` and `cls` members among them; empty without any.

        They are parsed once. CorruptSample: a member is not what its name says.
        """
        if self._facts is not None:
            return self._facts
        for ext, reason in (("json", "json"), ("txt", "caption"), ("cls", "label")):
            if (size := len(self.get(ext, b""))) > MOST_TEXT:
                raise CorruptSample(
                    reason, f"{self.where}.{ext}: {size:,} bytes are more than {MOST_TEXT:,}"
                )
        try:
            facts = json.loads(self.get("json", b"{}"))
        except (ValueError, RecursionError) as error:
            raise CorruptSample("json", f"{self.where}.json: not valid JSON ({error})") from None
        if not isinstance(facts, dict):
            raise CorruptSample("json", f"{self.where}.json: expected an object of facts")
        if "txt" in self:
            facts.setdefault("captions", [self["txt"].decode("utf-8-sig", "replace")])
        elif isinstance(facts.get("caption"), str):
            facts.setdefault("captions", [facts["caption"]])
        if "cls" in self and "label" not in facts:
            if not re.fullmatch(rb"\s*\d{1,9}\s*", self["cls"]):
                raise CorruptSample("label", f"{self.where}.cls: expected the number of a class")
            facts["label"] = int(self["cls"])
        self._facts = facts
        return facts

    def picture(self, name: str | None = None) -> PILImage.Image:
        """The picture under an extension such as `png` or `0.png`; default: the sample's own."""
        if name is None:
            name = next((e for e in PICTURES if e in self), None)
            named = ""
        else:
            named = f" {name}"
        if name is None or name not in self:
            lacking = f"no picture{named} in this sample{shown_members(self.extensions)}"
            raise CorruptSample("picture", f"{self.where}: {lacking}")
        return open_image(self[name], f"{self.where}.{name}")

    def array(self, name: str) -> np.ndarray:
        """The plain array under an extension such as `moments.npy`.

        Raises:
            Damage: there is none, or it is cut short, pickled or no `.npy` file.
        """
        if name not in self:
            raise CorruptSample("latents", f"{self.where}: no `{name}` in this sample")
        try:
            # Not numpy's load: it would also take archives, and pickles if asked.
            file = io.BytesIO(self[name])
            npy_header(file, len(self[name]))
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:  # a damaged header can raise anything
            raise CorruptSample(
                "latents", f"{self.where}.{name}: not a plain array ({first_line(error)})"
            ) from None

    def moments(self, name: str, cells: tuple[int, int, int] | None = None) -> np.ndarray:
        """Latents under an extension: means and deviations (F, 2, c, h, w), F being 1 or 2.

        Args:
            name: such as `0.moments.npy`.
            cells: the (c, h, w) that a config needs; None takes any.

        Raises:
            Damage: they are something else, or hold numbers that are not finite.
        """
        array = self.array(name)
        fits = array.ndim == 5 and len(array) in (1, 2) and array.shape[1] == 2
        if array.dtype.kind != "f" or not fits or array.shape[2:] != (cells or array.shape[2:]):
            needed = ", ".join(map(str, cells or ("channels", "height", "width")))
            who = "the config's image section needs" if cells else "expected"
            raise CorruptSample(
                "latents",
                f"{self.where}.{name}: {array.dtype} latents of shape {array.shape}; {who} "
                f"(1 or 2, 2, {needed}) floats",
            )
        if not (np.abs(array) <= MOST_LATENT).all():
            raise CorruptSample(
                "latents",
                f"{self.where}.{name}: holds numbers that are not finite, or above "
                f"{MOST_LATENT:g}; normalised latents have about unit variance",
            )
        return array

    def label(self, classes: int | None = None) -> int:
        """The number of a class: of `classes` many, or of any number of them.

        Raises:
            Damage: it is missing, or something else.
        """
        label = self.json().get("label")
        if type(label) is not int or label < 0 or (classes is not None and label >= classes):
            wanted = "a number from 0"
            if classes is not None:
                wanted = f"0 to {classes - 1} (the config's `classes`)"
            raise CorruptSample(
                "label", f"{self.where}.json: `label` is {shown(label)}; expected {wanted}"
            )
        return label

    def captions(self) -> list[str]:
        """The captions that hold text, on one line each.

        Raises:
            Damage: there are none.
        """
        facts = self.json()
        captions = facts.get("captions")
        if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
            lacking = "" if "captions" in facts else shown_members(self.extensions)
            raise CorruptSample(
                "caption", f"{self.where}.json: `captions` must be a list of strings{lacking}"
            )
        captions = [
            " ".join(clean(caption[:MOST_CHARACTERS]).split())
            for caption in captions[:MOST_CAPTIONS]
        ]
        captions = [caption for caption in captions if caption]
        if not captions:
            raise CorruptSample("caption", f"{self.where}.json: `captions` holds no text")
        return captions

    def content(self) -> list[ContentPart]:
        """The parts of an interleaved document.

        Raises:
            Damage: it is no such list, or a part is something else.
        """
        content = self.json().get("content")
        if not isinstance(content, list) or not content:
            raise CorruptSample(
                "content", f"{self.where}.json: an interleaved sample needs a `content` list"
            )
        parts = []
        for place, part in enumerate(content):
            match part:
                case {"text": str(text)} if len(text) <= MOST_CHARACTERS:
                    parts.append(ContentPart("text", text))
                case {"answer": str(text)} if len(text) <= MOST_CHARACTERS:
                    parts.append(ContentPart("answer", text))
                case {"image": str(name)}:
                    parts.append(ContentPart("image", name, bool(part.get("target"))))
                case _:
                    raise CorruptSample(
                        "content",
                        f"{self.where}.json: content {place} is {shown(part)}; expected "
                        '{"text": ...}, {"answer": ...} or {"image": ..., "target": true|false}',
                    )
        return parts


def npy_header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type of a `.npy` of `size` bytes, before memory is taken for it.

    Raises:
        ValueError: it holds objects, or is not as long as it says; damaged headers can raise more.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version}")
    read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("holds pickled objects, which are never read")
    declared, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or declared != there:
        raise ValueError(f"{declared:,} bytes are declared, {there:,} are there")
    return shape, fortran, dtype
