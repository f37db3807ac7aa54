"""Pickled checkpoints, read as tensors and plain data alone: nothing in them is ever run."""

import argparse
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmfusion.errors import UserError


def read(path: Path) -> Mapping[str, Any]:
    """What a file written by `torch.save` holds: tensors, plain data, an `argparse.Namespace`.

    Tensors of today's zip format are mapped, not read, so that a checkpoint with optimizer states
    costs no more memory than what is used of it.

    Raises:
        UserError: no such file, damaged, not a mapping, or one that asks for any other class or
            function, which a pickle would call on loading.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path}: no such file")
    try:
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            warnings.catch_warnings(),
        ):
            # Who was given a checkpoint cannot choose its pickle protocol.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            held = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # a damaged file ends in any of a dozen kinds, some without a word
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise UserError(
            f"checkpoint {path}: cannot be read as tensors and plain data alone; it is damaged, "
            f"no checkpoint, or holds code, which is never run ({said})"
        ) from None
    if not isinstance(held, Mapping):
        raise UserError(f"checkpoint {path}: holds a {type(held).__name__}, not named tensors")
    return held
