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
from collections.abc import Collection, Container, Iterable, Sequence
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from PIL import Image as PILImage

from mmfusion.codecs.image import open_image
from mmfusion.codecs.text import clean
from mmfusion.errors import CorruptSample, first_line, shown
from mmfusion.texts import UTF8, is_utf16

PICTURES = ("png", "jpg", "jpeg", "webp")
FACTS = {"json": "json", "txt": "caption", "cls": "label"}  # with the reason of their loss
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


def serves(members: Sequence[str], facts: Collection[str]) -> bool:
    """Whether a sample is of use: to a task, or as a picture by itself, as evaluations take them.

    Facts of any name may be captions or labels: the commands that make shards take their names.
    """
    own = [ext in PICTURES or ext == MOMENTS for ext in members]
    return "content" in facts or (any(own) and (bool(facts) or all(own)))


def shown_members(members: Iterable[str]) -> str:
    """Extensions for a message on what a sample lacks, and if it may be so, why it does."""
    names = sorted(members)
    shown = ", ".join(names[:MOST_SHOWN]) + (", ..." if len(names) > MOST_SHOWN else "")
    why = ""
    if any("." in name and not is_moments(name) for name in names):
        why = ": a name is cut at its first dot, docs/data.md"
    elif not any(map(is_image, names)):
        why = f"; pictures are {', '.join(PICTURES)}"
    return f" (it has the members {shown or '-'}{why})"


class Sample(dict[str, bytes]):
    """Members of one sample by extension, with its key, and where it is for error messages.

    `extensions` are those of all its members, also of those that were not asked for.
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

    def corrupt(self, reason: str, what: str) -> CorruptSample:
        """That the sample, or a member of it, cannot be used: `: no picture`, `.json: no list`."""
        return CorruptSample(reason, self.where + what)

    def json(self) -> dict[str, Any]:
        """The sample's facts, `txt` and `cls` members among them; parsed once, empty without any.

        This and what follows raise CorruptSample where a member is not what it should be.
        """
        if self._facts is not None:
            return self._facts
        for ext, reason in FACTS.items():
            if (size := len(self.get(ext, b""))) > MOST_TEXT:
                raise self.corrupt(reason, f".{ext}: {size:,} bytes are more than {MOST_TEXT:,}")
        try:
            facts = json.loads(self.get("json", b"{}"))
        except (ValueError, RecursionError) as error:
            raise self.corrupt("json", f".json: not valid JSON ({error})") from None
        if not isinstance(facts, dict):
            raise self.corrupt("json", ".json: expected an object of facts")
        if is_utf16(self.get("txt", b"")):
            raise self.corrupt("caption", ".txt: is UTF-16 text; save it as UTF-8")
        if "txt" in self:
            facts.setdefault("captions", [self["txt"].decode("utf-8-sig", "replace")])
        elif isinstance(facts.get("caption"), str):
            facts.setdefault("captions", [facts["caption"]])
        if "cls" in self and "label" not in facts:
            number = self["cls"].removeprefix(UTF8)
            if not re.fullmatch(rb"\s*\d{1,9}\s*", number):
                raise self.corrupt("label", ".cls: expected the number of a class")
            facts["label"] = int(number)
        self._facts = facts
        return facts

    def picture(self, name: str | None = None) -> PILImage.Image:
        """The picture under an extension such as `png` or `0.png`; default: the sample's own."""
        found = next((e for e in PICTURES if e in self), None) if name is None else name
        if found is None or found not in self:
            named = f" {name}" if name else ""
            lacking = f": no picture{named} in this sample{shown_members(self.extensions)}"
            raise self.corrupt("picture", lacking)
        return open_image(self[found], f"{self.where}.{found}")

    def array(self, name: str) -> np.ndarray:
        """The plain array under an extension such as `moments.npy`; nothing is unpickled."""
        if name not in self:
            raise self.corrupt("latents", f": no `{name}` in this sample")
        try:
            # Not numpy's load: it would also take archives, and pickles if asked.
            file = io.BytesIO(self[name])
            npy_header(file, len(self[name]))
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:  # a damaged header can raise anything
            what = f".{name}: not a plain array ({first_line(error)})"
            raise self.corrupt("latents", what) from None

    def moments(self, name: str, cells: tuple[int, int, int] | None = None) -> np.ndarray:
        """Latents under an extension: means and deviations (F, 2, c, h, w), F being 1 or 2.

        `cells` is the (c, h, w) that a config needs; None takes any.
        """
        array = self.array(name)
        fits = array.ndim == 5 and len(array) in (1, 2) and array.shape[1] == 2
        if array.dtype.kind != "f" or not fits or array.shape[2:] != (cells or array.shape[2:]):
            needed = ", ".join(map(str, cells or ("channels", "height", "width")))
            who = "the config's image section needs" if cells else "expected"
            what = (
                f"{array.dtype} latents of shape {array.shape}; {who} (1 or 2, 2, {needed}) floats"
            )
            raise self.corrupt("latents", f".{name}: {what}")
        if not (np.abs(array) <= MOST_LATENT).all():
            what = f".{name}: holds numbers that are not finite, or above {MOST_LATENT:g}"
            raise self.corrupt("latents", f"{what}; normalised latents have about unit variance")
        return array

    def label(self, classes: int | None = None) -> int:
        """The number of a class: of `classes` many, or of any number of them."""
        label = self.json().get("label")
        if type(label) is not int or label < 0 or (classes is not None and label >= classes):
            last = "" if classes is None else f" to {classes - 1} (the config's `classes`)"
            raise self.corrupt(
                "label", f".json: `label` is {shown(label)}; expected a number from 0{last}"
            )
        return label

    def captions(self) -> list[str]:
        """The captions that hold text, on one line each; at least one."""
        captions = self.json().get("captions")
        if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
            lacking = "" if "captions" in self.json() else shown_members(self.extensions)
            raise self.corrupt("caption", f".json: `captions` must be a list of strings{lacking}")
        cut = (caption[:MOST_CHARACTERS] for caption in captions[:MOST_CAPTIONS])
        found = [line for caption in cut if (line := " ".join(clean(caption).split()))]
        if not found:
            raise self.corrupt("caption", ".json: `captions` holds no text")
        return found

    def content(self) -> list[ContentPart]:
        """The parts of an interleaved document; at least one."""
        content = self.json().get("content")
        if not isinstance(content, list) or not content:
            raise self.corrupt("content", ".json: an interleaved sample needs a `content` list")
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
                    raise self.corrupt(
                        "content",
                        f".json: content {place} is {shown(part)}; expected "
                        '{"text": ...}, {"answer": ...} or {"image": ..., "target": true|false}',
                    )
        return parts


def npy_header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type of a `.npy` of `size` bytes, before memory is taken for it.

    A ValueError where it holds objects, or is not as long as it says; a damaged header raises more.
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
