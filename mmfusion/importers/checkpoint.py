"""Pickled checkpoints, read as tensors and plain data alone: nothing in them is ever run."""

import argparse
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmfusion.errors import UserError, first_line

WRAPPERS = (
    "_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module",
    "_fpw_module",
)  # fmt: skip
"""Parts of names that torch.compile and the parallel wrappers put in, in any order and place."""


def read(path: Path) -> Mapping[str, Any]:
    """What a file written by `torch.save` holds: tensors, plain data, an `argparse.Namespace`.

    NumPy's numbers and texts come as plain ones, paths as texts; of its arrays, as random states
    are, nothing is read.

    Tensors of today's zip format are mapped, not read, so that a checkpoint with optimizer states
    costs no more memory than what is used of it.
    """
    if not path.is_file():
        what = "is a folder; give the file in it" if path.is_dir() else "no such file"
        raise UserError(f"checkpoint {path}: {what}")
    try:
        with (
            torch.serialization.safe_globals([*PLAIN, *STAND_INS]),
            warnings.catch_warnings(),
        ):
            # Who was given a checkpoint cannot choose its pickle protocol.
            warnings.simplefilter("ignore", UserWarning)
            held = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # a damaged file ends in any of a dozen kinds, some without a word
        raise UserError(
            f"checkpoint {path}: cannot be read as tensors and plain data alone; {_why(error)}"
        ) from None
    if not isinstance(held, Mapping):
        raise UserError(f"checkpoint {path}: holds a {type(held).__name__}, not named tensors")
    return held


def tensors(held: Mapping[str, Any], keys: Sequence[str], where: str) -> dict[str, Tensor]:
    """The tensors under the first of `keys` that has some, or else the file's own.

    They have the names of the model itself, without those of what it was wrapped in.
    """
    inner = next((held[key] for key in keys if isinstance(held.get(key), Mapping)), held)
    found: dict[str, Tensor] = {}
    for name, tensor in inner.items():
        own = ".".join(part for part in str(name).split(".") if part not in WRAPPERS)
        if own in found:
            raise UserError(f"checkpoint {where}: holds {own} twice, once as {name}")
        if isinstance(tensor, Tensor):
            found[own] = tensor
    if not found:
        raise UserError(f"checkpoint {where}: holds no named tensors")
    return found


def check_tensors(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Make sure that a model's tensors are all there, finite, in its shapes, and no others."""
    for name in {**shapes, **tensors}:
        found, wanted = tensors.get(name), shapes.get(name)
        if found is None:
            what = f"is missing; expected {wanted}"
        elif wanted is None:
            what = "is unknown; the model would not be the same without it"
        elif found.layout != torch.strided or not found.is_floating_point():
            what = "is not a dense tensor of real numbers"
        elif found.shape != wanted:
            what = f"has the shape {tuple(found.shape)}; expected {wanted}"
        elif not found.isfinite().all():
            what = "is not finite"
        else:
            continue
        raise UserError(f"checkpoint {where}: {name} {what}")


def _why(error: Exception) -> str:
    """What is wrong with a file. Torch's own words advise to load it all the same."""
    text = str(error)
    refused = re.search(r"GLOBAL (\S+)|<(?:class|function) '?(\S+?)'?[ >]", text)
    if refused:
        return f"it asks for {refused[1] or refused[2]}, which is code and is never run"
    # Of protocols above 2, which torch.save writes by itself, torch knows some.
    if re.search(r"Unsupported operand (6[67]|1[3-5]\d)\b", text):
        return "it has another pickle protocol than torch.save's own; save it anew with that"
    wordless = "weights_only" in text or " " not in text
    told = type(error).__name__ if wordless else first_line(error)
    return f"it is damaged, no checkpoint, or holds code, which is never run ({told})"


@dataclass(frozen=True)
class _Kind:
    """What a checkpoint says of a NumPy number's type, in place of `numpy.dtype`."""

    code: str
    align: Any = False
    copy: Any = True

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Its byte order, which is little in all that is read here."""
        if state[1] not in ("<", "|"):
            raise ValueError(f"a number of byte order {state[1]}")


def _number(kind: _Kind, data: bytes) -> int | float | complex | bool | str | bytes:
    """In place of NumPy's scalar: the plain number or text."""
    if not re.fullmatch(r"[biufc]\d{1,2}|[US][1-9]\d*", kind.code):
        raise ValueError(f"a number of type {kind.code}")
    (number,) = np.frombuffer(data, f"<{kind.code}")
    return number.item()


class _Array:
    """In place of a NumPy array, of which nothing is read."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _bytes(text: str, encoding: str) -> bytes:
    """In place of `_codecs.encode`, which NumPy's numbers are written with."""
    if encoding != "latin1":
        raise ValueError(f"bytes written as {encoding}")
    return text.encode("latin1")


def _path(kind: type[PurePath]) -> Callable[..., str]:
    """In place of a path: its text."""
    return lambda *parts: str(kind(*parts))


PLAIN = [
    argparse.Namespace, SimpleNamespace, frozenset, date, datetime, time, timedelta, timezone
]  # fmt: skip
# Other plain data's classes, each by all its names, and what of ours makes plain data in its place.
STAND_INS: list[Any] = [
    (_Kind, "numpy.dtype"),
    (_bytes, "_codecs.encode"),
    *((_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_Array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    (_Array, "numpy.ndarray"),
    *(
        (make, f"{module}.{pure}{kind}Path")
        for module in ("pathlib", "pathlib._local")
        for pure in ("", "Pure")
        for kind, make in (("Posix", _path(PurePosixPath)), ("Windows", _path(PureWindowsPath)))
    ),
]
