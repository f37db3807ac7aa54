"""A network of one's own as an extractor: a TorchScript, the saved form that holds no Python.

Pickled modules would run what they say when they are loaded, and so, today, would torch.export's
`.pt2` files, whose reader falls back on pickle; both are refused. A TorchScript's program can ask
for operations of torch alone, and for none that reads or writes files. Loading runs some of it:
`__setstate__`, and what arguments have by default; so its text is looked through before.
"""

import io
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmfusion.errors import UserError, first_line
from mmfusion.manifest import sha256

from .base import Extractor

REMEDY = "save it with `torch.jit.trace(module, example).save(FILE)`"
FILES = ("aten::save", "aten::from_file", "prim::save", "aten::load")
"""Operations that touch files."""
BOUND = rb"torch\W+classes"
REFUSED = re.compile(rb"\b(?:__setstate__|from_file|save|load)\b|" + BOUND)
"""In a program's text: what runs when it is loaded, touches files, or is bound to C++."""
KEPT = re.compile(
    r"[^/]+/(code/.+\.py|constants\.pkl|data\.pkl|(data|constants)/\d+|version|byteorder)"
)
"""Members of an archive that make up a program; others, for debugging or of old forms, are not."""


class ModuleExtractor(Extractor):
    """Features (n, d): what a TorchScript makes of float32 pictures (n, 3, H, W) in 0..255.

    Of several outputs the first one counts; more than two dimensions are flattened.
    """

    name = "module"
    one_size = True

    def __init__(self, file: str, device: str) -> None:
        """Load a TorchScript.

        Raises:
            UserError: no file, another kind of file, or one that touches files.
        """
        path = Path(file)
        if not file or not path.is_file():
            raise UserError(f"features module:{file}: no such file; {REMEDY}")
        if path.suffix == ".pt2":
            raise UserError(
                f"features module:{file}: a file of torch.export, which torch reads with pickle; "
                f"{REMEDY}"
            )
        archive = _checked(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript is going out of use
                self.network: Any = torch.jit.load(archive, map_location=device).eval()
                asked = torch.jit.export_opnames(self.network)
        except Exception as error:  # damaged, pickled, or of another version: many kinds
            raise _none(file, error) from None
        touching = [name for name in asked if name.partition(".")[0] in FILES]
        if touching:
            raise UserError(f"features module:{file}: asks for {touching[0]}, which is refused")
        self.sha256, self.device = sha256(path), device

    def extract(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device).float().contiguous()
        try:
            made = self.network(x)
        except Exception as error:  # whatever its author put there
            last = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"features module: it fails on float32 pictures {tuple(x.shape)} in 0..255 "
                f"({last[-1][:200]}); wrap what it needs into the module"
            ) from None
        if isinstance(made, dict):
            made = next(iter(made.values()), None)
        elif isinstance(made, list | tuple):
            made = made[0] if made else None
        if not isinstance(made, Tensor) or made.ndim < 2 or len(made) != len(x):
            shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise UserError(f"features module: gives {shape}; expected features ({len(x)}, d)")
        return {"features": made.flatten(1).float().cpu().numpy()}


def _checked(path: Path) -> io.BytesIO:
    """What torch is to read of an archive: only what was looked through here, and is harmless.

    Raises:
        UserError: it is no archive, or its program asks for something that is refused.
    """
    held = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as given, zipfile.ZipFile(held, "w") as kept:
            members = {m.filename: given.read(m) for m in given.infolist() if _kept(m.filename)}
            if not any(name.endswith("/constants.pkl") for name in members):
                raise ValueError("it has no program")
            for name, data in members.items():
                kept.writestr(name, data)
    except Exception as error:  # damaged archives raise many kinds
        raise _none(str(path), error) from None
    for name, data in members.items():
        looked_for = REFUSED if name.endswith(".py") else re.compile(BOUND)
        found = None if "/data/" in name or "/constants/" in name else looked_for.search(data)
        if found:
            raise UserError(
                f"features module:{path}: {name} asks for {found[0].decode()}, which is refused: "
                "it could touch files or run when it is loaded; take it out, or rename it"
            )
    held.seek(0)
    return held


def _kept(name: str) -> bool:
    return bool(KEPT.fullmatch(name))


def _none(file: str, error: Exception) -> UserError:
    return UserError(
        f"features module:{file}: not a TorchScript ({first_line(error)[:200]}); pickled modules "
        f"are never loaded; {REMEDY}"
    )
