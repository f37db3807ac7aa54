"""MAR's KL-16 autoencoder, a latent-diffusion checkpoint, as a diffusers AutoencoderKL folder.

Both are the autoencoder of latent diffusion (Rombach et al. 2022) with the same arithmetic:
GroupNorm of 32 groups with eps 1e-6, SiLU, downsampling padded below and on the right alone,
single-head attention. Names differ, diffusers counts the decoder's levels from the other end, and
the projections of its attention are linear where the checkpoint's are 1x1 convolutions.
"""

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmfusion import files
from mmfusion.errors import UserError
from mmfusion.importers.checkpoint import check_tensors, read, tensors

LATENT_SCALE = 0.2325  # MAR's and CausalFusion's factor from raw to normalised latents
GROUPS = 32  # of every GroupNorm: the one size that no tensor shows
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
RENAMED = [  # in this order, on the names that remain
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.(down|up)\.(\d+)\.block\.", r".\1_blocks.\2.resnets."),
    (r"\.(down|up)\.(\d+)\.attn\.", r".\1_blocks.\2.attentions."),
    (r"\.(down|up)\.(\d+)\.\1sample\.", r".\1_blocks.\2.\1samplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(\.attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(\.attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
]


def import_mar_vae(path: Path, output: Path) -> tuple[int, int]:
    """Write the autoencoder of a checkpoint to the folder `output`, for `image.vae` of a config.

    Channels, levels, residual blocks, latent channels and where there is attention are read off
    the tensors. Tensors beside the autoencoder's (a discriminator, an average) are left out.

    Returns:
        How many tensors were taken, and how many left out.
    """
    real = Path(os.path.realpath(output))
    if not files.is_free(real):
        raise UserError(f"{output}: is there already; give a folder that is not")
    found = tensors(read(path), ("model", "state_dict"), str(path))
    weights = {name: w for name, w in found.items() if name.startswith(PARTS)}
    if not weights:
        raise UserError(
            f"checkpoint {path}: no encoder or decoder in it; MAR's kl16.ckpt is expected"
        )
    config = _config(weights, path)
    vae = _filled(config, _renamed(weights, len(config["block_out_channels"])), path)
    with files.staging(real) as part:
        vae.save_pretrained(part, safe_serialization=True)
        for file in sorted(part.iterdir()):
            files.move(file, real / file.name)
    files.remove_empty(part)
    return len(weights), len(found) - len(weights)


def _config(weights: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """The settings of diffusers' AutoencoderKL that the shapes of the tensors show."""

    def shape(name: str) -> torch.Size:
        if name not in weights or weights[name].ndim != 4:
            raise UserError(f"checkpoint {path}: {name} is missing or no convolution")
        return weights[name].shape

    levels = _count(weights, r"encoder\.down\.(\d+)\.")
    blocks = _count(weights, r"encoder\.down\.0\.block\.(\d+)\.")
    widths = [shape(f"encoder.down.{n}.block.0.conv1.weight")[0] for n in range(levels)]
    if not widths:
        raise UserError(f"checkpoint {path}: no encoder.down in it; MAR's kl16.ckpt is expected")
    if any(width % GROUPS for width in widths):
        raise UserError(f"checkpoint {path}: widths {widths} are not multiples of {GROUPS}")
    latent = shape("decoder.conv_in.weight")[1]

    def kinds(side: str, order: range, plain: str) -> list[str]:
        attends = [f"{side}.{n}.attn.0.q.weight" in weights for n in order]
        return [f"Attn{plain}" if attention else plain for attention in attends]

    return {
        "in_channels": shape("encoder.conv_in.weight")[1],
        "out_channels": shape("decoder.conv_out.weight")[0],
        "block_out_channels": widths,
        "down_block_types": kinds("encoder.down", range(levels), "DownEncoderBlock2D"),
        "up_block_types": kinds("decoder.up", range(levels)[::-1], "UpDecoderBlock2D"),
        "layers_per_block": blocks,
        "latent_channels": latent,
        "norm_num_groups": GROUPS,
        "sample_size": 256,
        "scaling_factor": LATENT_SCALE,
        "use_quant_conv": "quant_conv.weight" in weights,
        "use_post_quant_conv": "post_quant_conv.weight" in weights,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in weights,
    }


def _count(weights: dict[str, Tensor], pattern: str) -> int:
    numbers = [int(match[1]) for name in weights if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def _renamed(weights: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """The tensors under diffusers' names, in fp32."""
    made = {}
    for name, weight in weights.items():
        for old, new in RENAMED:
            name = re.sub(old, new, name)
        name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up_blocks.{levels - 1 - int(m[1])}", name)
        if ".attentions." in name and weight.ndim == 4:
            weight = weight.flatten(1)  # a 1x1 convolution as a linear map
        made[name] = weight.float().contiguous()
    return made


def _filled(config: dict[str, Any], weights: dict[str, Tensor], path: Path) -> Any:
    """An AutoencoderKL with these weights, whose names and shapes are checked against its own."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    shapes = {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
    check_tensors(weights, shapes, str(path))
    vae.load_state_dict(weights, assign=True)
    return vae
