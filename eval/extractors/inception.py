"""Inception as in TensorFlow 1, which published FID, sFID and Inception scores are made with.

The network, its resize to 299 pixels and its scaling are torch-fidelity's, which was checked
against TensorFlow. What ADM's suite reads in TensorFlow's graph (guided-diffusion,
evaluations/evaluator.py) is here:

- pool_3: "2048";
- softmax/logits/MatMul, without the bias: "logits_unbiased";
- mixed_6/conv, the first 7 of its 192 channels on 17 x 17 cells: `Mixed_6d.branch1x1` after its
  ReLU. (TensorFlow's mixed, mixed_1, ... mixed_10 are Mixed_5b, 5c, 5d, 6a, ... 7c.)
"""

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)

from mmfusion.errors import UserError, first_line
from mmfusion.importers import checkpoint
from mmfusion.locks import locked
from mmfusion.manifest import sha256

from . import Arrays, Extractor

URL = URL_INCEPTION_V3
CHANNELS = 7  # 7 x 17 x 17 = 2,023 numbers, about as many as pool_3 has


class InceptionExtractor(Extractor):
    """Features (n, 2048), spatial (n, 2023) and logits (n, 1008) of pictures of any size."""

    name = "inception"
    gives = ("features", "spatial", "logits")

    def __init__(self, file: str, device: str) -> None:
        """Load weights in torch-fidelity's form from a file, or else the published ones."""
        path = Path(file) if file else _published()
        state, self.sha256, self.device = dict(checkpoint.read(path)), sha256(path), device
        if not self.sha256.startswith(_prefix()):
            self.doubt = "not the published file of weights: compare with no published FID"
        try:
            # torch-fidelity takes weights from a file alone and would unpickle it: it gets one that
            # was written here, with nothing but tensors.
            held = io.BytesIO()
            torch.save({name: torch.as_tensor(value) for name, value in state.items()}, held)
            held.seek(0)
            network = FeatureExtractorInceptionV3(
                "inception-v3-compat",
                ["2048", "logits_unbiased"],
                feature_extractor_weights_path=held,
            )
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"features inception: {path}: not torch-fidelity's Inception weights "
                f"({' '.join(str(error).split())[:200]}); they are at {URL}"
            ) from None
        self.network = network.to(device)
        self._kept = threading.local()  # batches are computed side by side
        self.network.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, module: Any, given: Any, output: Tensor) -> None:
        self._kept.spatial = output[:, :CHANNELS].permute(0, 2, 3, 1).flatten(1).clone()

    def extract(self, pixels: np.ndarray) -> Arrays:
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device)
        features, logits = self.network(x)
        made = {"features": features, "spatial": self._kept.spatial, "logits": logits}
        return {name: tensor.cpu().numpy() for name, tensor in made.items()}


def _prefix() -> str:
    """The first digits of the published file's SHA-256, which end its name."""
    return URL.rpartition("-")[2].removesuffix(".pth")


def _published() -> Path:
    """The published weights, in torch's hub cache."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / URL.rpartition("/")[2]
    with locked(path, wait=True):  # ranks ask at once
        if not path.is_file():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(URL, str(path), hash_prefix=_prefix())
            except (OSError, RuntimeError, ValueError) as error:
                raise UserError(
                    f"features inception: the weights cannot be had from {URL} "
                    f"({first_line(error)}); get them otherwise and give `inception:FILE` as "
                    "features; `pixels` needs no weights"
                ) from None
    if not sha256(path).startswith(_prefix()):
        raise UserError(f"features inception: {path} is damaged; delete it")
    return path
