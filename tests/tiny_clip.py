"""A tiny random CLIP model in a folder, as open_clip saves one."""

import json
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from safetensors.torch import save_file

SIDE, CONTEXT = 16, 12
CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": SIDE,
        "layers": 2,
        "width": 64,
        "head_width": 32,
        "patch_size": 8,
    },
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
}


def save_clip(folder: Path, seed: int = 0) -> Path:
    """Weights larger than open_clip's first ones, so that pictures and texts differ."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    model = CLIP(**CONFIG, quick_gelu=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": {**CONFIG, "quick_gelu": True}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder
