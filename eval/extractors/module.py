"""A network of one's own as an extractor: a TorchScript, the saved form that holds no Python.

Pickled modules would run what they say when they are loaded, and so, today, would torch.export's
`.pt2` files, whose reader falls back on pickle; both are refused. A TorchScript's program can ask
for operations of torch alone. Loading runs some of it: `__setstate__`, and what arguments have by
default; so its text is looked through before for what reads or writes files.
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

from . import Extractor

REMEDY = "save it with `torch.jit.trace(module, example).save(FILE)`"
BOUND = rb"torch\W+classes"
REFUSED = re.compile(rb"\b(?:__setstate__|from_file|save|load)\b|" + BOUND)
"""In a program's text: what runs when it is loaded, touches files, or is bound to C++."""
KEPT = re.compile(
    r"[^/]+/(code/.+\.py|(constants|data)\.pkl|(?P<numbers>(constants|data)/\d+)|version|byteorder)"
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
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript is going out of use
                loaded = torch.jit.load(_looked_through(file), map_location=device)
            self.sha256, self.device = sha256(Path(file)), device
        except Exception as error:  # damaged, pickled, or of another version: many kinds
            raise UserError(
                f"features module:{file}: no TorchScript that is loaded here "
                f"({first_line(error)[:200]}); {REMEDY}"
            ) from None
        self.network: Any = loaded.eval()

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
            made = list(made.values())
        if isinstance(made, list | tuple):
            made = made[0] if made else None
        if not isinstance(made, Tensor) or made.ndim < 2 or len(made) != len(x):
            found = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise UserError(f"features module: gives {found}; expected features ({len(x)}, d)")
        return {"features": made.flatten(1).float().cpu().numpy()}


def _looked_through(file: str) -> io.BytesIO:
    """What torch is to read of an archive: only what was looked through here, and is harmless.

    Raises:
        ValueError: its program asks for something that is refused; damaged archives raise more.
    """
    held = io.BytesIO()
    with zipfile.ZipFile(file) as given, zipfile.ZipFile(held, "w") as kept:
        for member in filter(None, map(KEPT.fullmatch, given.namelist())):
            name, data = member[0], given.read(member[0])
            refused = REFUSED if name.endswith(".py") else re.compile(BOUND)
            if (found := refused.search(data)) and not member["numbers"]:
                raise ValueError(
                    f"{name} asks for {found[0].decode()}, which could touch files or run when it "
                    "is loaded: take it out, or rename it"
                )
            kept.writestr(name, data)
        if not any(name.endswith("/constants.pkl") for name in kept.namelist()):
            raise ValueError("it has no program; pickled modules are never loaded")
    held.seek(0)
    return held
