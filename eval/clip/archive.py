"""TorchScript archives, as OpenAI published CLIP: their tensors and activation, nothing run."""

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mmfusion.errors import UserError, first_line

NO_WEIGHTS = {"input_resolution", "context_length", "vocab_size", "attn_mask"}
"""Tensors of OpenAI's archives that are settings."""


def is_archive(path: Path) -> bool:
    """Whether a file is TorchScript, as OpenAI's weights are."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(name.endswith("/constants.pkl") for name in file.namelist())


def uses_quick_gelu(path: Path) -> bool:
    """Whether a TorchScript archive's code has QuickGELU: plain GELU is called by its name."""
    with zipfile.ZipFile(path) as file:
        code = [file.read(n) for n in file.namelist() if "/code/" in n and n.endswith(".py")]
    return not any(re.search(rb"\bgelu\(", part) for part in code)


class _Module:
    """Stands in for a class of a TorchScript archive: it has attributes and does nothing."""


def read_archive(path: Path) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a TorchScript archive; its code is left out before reading.

    `torch.jit.load` would run what the archive's classes do when they are loaded. Without the code
    the rest is a checkpoint as `torch.save` writes it, whose classes `_Module` stands in for.

    Raises:
        UserError: it is damaged, or asks for any other class or function.
    """
    held = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as given, zipfile.ZipFile(held, "w") as kept:
            for name in given.namelist():
                if "/code/" not in name and not name.endswith("/constants.pkl"):
                    kept.writestr(name, given.read(name))
        held.seek(0)
        asked = torch.serialization.get_unsafe_globals_in_checkpoint(held)
        stand_ins: list[Any] = [(_Module, n) for n in asked if n.startswith("__torch__.")]
        held.seek(0)
        with torch.serialization.safe_globals(stand_ins):
            module = torch.load(held, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive ends in any of a dozen kinds
        raise UserError(
            f"{path}: cannot be read as tensors alone; it is damaged, or holds code beside the "
            f"model's own, which is never run ({type(error).__name__}: {first_line(error)})"
        ) from None
    return {n: t for n, t in _tensors(module, "") if n not in NO_WEIGHTS}


def _tensors(module: Any, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in getattr(module, "__dict__", {}).items():
        if isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value.float() if value.is_floating_point() else value
