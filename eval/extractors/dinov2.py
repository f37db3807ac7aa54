"""DINOv2's class token, for FD-DINOv2 (Stein et al. 2023, "Exposing flaws of generative model
evaluation metrics"): ViT-L/14 on pictures squeezed to 224 x 224, after the final norm.

Pictures are resized as the authors' dgm-eval does it: by PIL, bicubic with antialiasing, to 8 bits.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor, nn
from torchvision import transforms as T

from mmfusion.errors import UserError, first_line
from mmfusion.manifest import sha256

from . import Arrays, Extractor

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OFFSET = 0.1
UNIMPORTANT = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")  # of a config
PUBLISHED = 1024, 24, 14  # width, layers and patch of the network of Stein et al. 2023

prepared = T.Compose([
    T.Resize((SIZE, SIZE), T.InterpolationMode.BICUBIC),
    T.ToTensor(),
    T.Normalize(MEAN, STD),
])  # fmt: skip
"""A picture as the network takes it, (3, 224, 224)."""


class Dinov2Extractor(Extractor):
    """Features (n, d) of pictures of any size."""

    name = "dinov2"

    def __init__(self, source: str, device: str) -> None:
        """Load a transformers folder or hub id of DINOv2, with safetensors weights."""
        try:
            folder = _folder(source)
            self.network, config = _load(folder)
        except Exception as error:  # of hubs, configs, headers and shapes, in many kinds
            raise UserError(
                f"features dinov2:{source}: not a folder or hub id of DINOv2, such as "
                f"facebook/dinov2-large ({first_line(error)[:200]})"
            ) from None
        digests = [sha256(path) for path in sorted(folder.glob("*.safetensors"))]
        self.sha256 = digests[0] if len(digests) == 1 else _digest(*digests)
        message = {key: value for key, value in config.to_dict().items() if key not in UNIMPORTANT}
        message |= {"size": SIZE, "mean": MEAN, "std": STD, "offset": OFFSET}
        self.version = _digest(json.dumps(message, sort_keys=True, default=str))
        size = config.hidden_size, config.num_hidden_layers, config.patch_size
        if size != PUBLISHED:
            self.doubt = (
                f"DINOv2 of width {size[0]}, {size[1]} layers, patch {size[2]}: FD-DINOv2 is "
                "published for ViT-L/14"
            )
        self.network.to(device)
        self.device = device

    def extract(self, pixels: np.ndarray) -> Arrays:
        x = torch.stack([prepared(PILImage.fromarray(picture)) for picture in pixels])
        tokens = self.network(x.to(self.device)).last_hidden_state
        return {"features": tokens[:, 0].cpu().numpy()}


def _folder(source: str) -> Path:
    """The local folder, or what the hub has under an id, without code or pickles."""
    if source and Path(source).is_dir():
        return Path(source)
    if source.count("/") != 1 or source.startswith((".", "/")):  # can be no id of the hub
        raise ValueError("no such folder")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, allow_patterns=["config.json", "*.safetensors*"]))


def _load(folder: Path) -> tuple[Any, Any]:
    """The network for pictures of `SIZE`, and its config."""
    from transformers import AutoConfig, Dinov2Model

    config = AutoConfig.from_pretrained(folder)
    if config.model_type != "dinov2":
        raise ValueError(f"a {config.model_type}")
    if SIZE % config.patch_size:
        raise ValueError(f"patches of {config.patch_size} pixels do not fill {SIZE}")
    loaded: Any = Dinov2Model.from_pretrained(
        folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32
    )
    network, report = loaded
    if wrong := [*report["missing_keys"], *report.get("mismatched_keys", ())]:
        raise ValueError(f"no {wrong[0]}")
    embeddings = network.eval().requires_grad_(False).embeddings
    places = _positions(embeddings.position_embeddings.detach(), SIZE // config.patch_size)
    embeddings.position_embeddings = nn.Parameter(places, requires_grad=False)
    return network, config


def _digest(*lines: str) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _positions(places: Tensor, cells: int) -> Tensor:
    """Position embeddings (1, 1 + M M, d) for `cells` x `cells` patches, as in Meta's own code.

    It gives the interpolation the factor (cells + 0.1) / M, not the size, which shifts the places
    a little; the published distances are made with it, and transformers leaves it out.
    """
    side = round((places.shape[1] - 1) ** 0.5)
    if side == cells:
        return places
    grid = places[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    factor = (cells + OFFSET) / side
    grid = nn.functional.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([places[:, :1], grid.flatten(2).transpose(1, 2)], 1)
