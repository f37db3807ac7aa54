"""Official CausalFusion checkpoints (arXiv 2412.12095) as exported models.

Width, depth, heads, class tokens, classes and grid are read off the tensors, never off a name: the
official XL and H differ from the paper's tables. The patch and the latent channels show only as
their product, a token's numbers, so that one may have to be given.

Shapes: W width, H its MLP's hidden width, d head dimension, D numbers in a latent token (patch
squared times channels), N tokens of an image, K class tokens, R rows of the label table.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmfusion.config import ModelConfig, build
from mmfusion.config.files import read_names
from mmfusion.decoder import Decoder
from mmfusion.errors import UserError
from mmfusion.export import check_folder, export
from mmfusion.importers.checkpoint import check_tensors, read, tensors

MAR_VAE, MAR_CHANNELS, MAR_DOWNSAMPLING, MAR_SCALE = "data/vae/mar-kl16", 16, 16, 0.2325
MAR = (MAR_CHANNELS, MAR_DOWNSAMPLING)

# Ours -> theirs. Tensors of the modules have the same shapes, those of the tables are reshaped.
TABLE, GRID, LABEL_GRID = "y_embedder.embedding_table.weight", "pos_embed", "cond_pos_embed"
TABLES = {"label.weight": TABLE, "label_position.weight": LABEL_GRID, "grid_position.weight": GRID}
MODULES = {
    "latent_in": "x_proj",
    "timestep.0": "t_embedder.mlp.0",
    "timestep.2": "t_embedder.mlp.2",
    "norm": "final_layer.0",
    "latent_out": "final_layer.1",
    "norm1": "norm1",  # this and the following are in each block
    "attention.qkv": "attn.qkv",
    "attention.q_norm": "attn.q_norm",
    "attention.k_norm": "attn.k_norm",
    "attention.out": "attn.proj",
    "norm2": "norm2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}


@dataclass(frozen=True)
class Options:
    """What a checkpoint does not say of itself."""

    weights: Literal["ema", "model"] | None = None
    """Default: "ema" if there, else "model", else the file itself as a bare state dict."""
    patch: int | None = None
    """Latent cells a token side."""
    channels: int | None = None
    """Of a latent cell. Default: MAR's 16 if they fit; 4 channels of patch 2 look the same."""
    downsampling: int = MAR_DOWNSAMPLING
    vae: str = MAR_VAE
    classes: Path | None = None
    """JSON list of class names; default: numbers."""


@dataclass(frozen=True)
class Sizes:
    """What the tensors say: see this file's shapes; `side` is the grid's, N its square."""

    width: int
    hidden: int
    depth: int
    head_dim: int
    token: int
    side: int
    label_tokens: int
    table_rows: int


def import_causalfusion(path: Path, output: Path, options: Options = Options()) -> ModelConfig:
    """Write an official checkpoint as an exported model, weights in fp32; returns its config.

    An exported model that is there already is replaced.
    """
    check_folder(output)
    held = read(path)
    if options.weights and options.weights not in held:
        there = [name for name in ("ema", "model") if name in held]
        raise UserError(
            f"checkpoint {path}: holds no {options.weights!r} weights; leave --weights out"
            + (f" or choose {there[0]!r}" if there else "")
        )
    keys = (options.weights,) if options.weights else ("ema", "model")
    weights = tensors(held, keys, str(path))
    sizes = _sizes(weights, str(path))
    known = getattr(held.get("args"), "num_classes", None)
    config = _config(sizes, known, options, str(path))
    with torch.device("meta"):
        ours = Decoder(config, 0).state_dict()
    shapes = {
        **{TABLES.get(name) or _renamed(name, MODULES): tuple(t.shape) for name, t in ours.items()},
        TABLE: (sizes.table_rows, sizes.label_tokens * sizes.width),
        GRID: (1, sizes.side**2, sizes.width),
        LABEL_GRID: (1, sizes.label_tokens, sizes.width),
    }
    check_tensors(weights, shapes, str(path))
    export(config, converted(weights, sizes, len(config.classes)), output)
    return config


def converted(weights: Mapping[str, Tensor], sizes: Sizes, classes: int) -> dict[str, Tensor]:
    """Official tensors under our names, fp32; a table without a null class gets one of zeros."""
    modules = {theirs: ours for ours, theirs in MODULES.items()}
    found = {
        _renamed(name, modules): w for name, w in weights.items() if name not in TABLES.values()
    }
    found |= {ours: weights[theirs].reshape(-1, sizes.width) for ours, theirs in TABLES.items()}
    if sizes.table_rows == classes:
        nothing = found["label.weight"].new_zeros(sizes.label_tokens, sizes.width)
        found["label.weight"] = torch.cat([found["label.weight"], nothing])
    return {name: tensor.float() for name, tensor in found.items()}


def _renamed(name: str, modules: Mapping[str, str]) -> str:
    """The name of a tensor whose module is called otherwise."""
    block, module, part = re.findall(r"^(blocks\.\d+\.)?(.+)\.(\w+)$", name)[0]
    return f"{block}{modules[module]}.{part}"


def _sizes(weights: Mapping[str, Tensor], where: str) -> Sizes:
    """The model's sizes, each from one tensor that has it."""

    def shape(name: str, *form: str) -> tuple[int, ...]:
        tensor = weights.get(name)
        found = None if tensor is None else tuple(tensor.shape)
        if found is None or len(found) != len(form) or not all(found):
            what = "is missing" if found is None else f"has the shape {found}"
            raise UserError(f"checkpoint {where}: {name} {what}; expected ({', '.join(form)})")
        return found

    width, token = shape("x_proj.weight", "W", "D")
    _, tokens, _ = shape(GRID, "1", "N", "W")
    _, label_tokens, _ = shape(LABEL_GRID, "1", "K", "W")
    table_rows, _ = shape(TABLE, "classes + 1", "K * W")
    (head_dim,) = shape("blocks.0.attn.q_norm.weight", "W / heads")
    hidden, _ = shape("blocks.0.mlp.fc1.weight", "MLP width", "W")
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    side = isqrt(tokens)
    if side * side != tokens:
        raise UserError(
            f"checkpoint {where}: {GRID} has {tokens} tokens, which are no square grid; only "
            "square pictures can be imported"
        )
    if width % head_dim:
        raise UserError(
            f"checkpoint {where}: heads of {head_dim} (blocks.0.attn.q_norm.weight) do not divide "
            f"the width {width} (x_proj.weight)"
        )
    return Sizes(width, hidden, depth, head_dim, token, side, label_tokens, table_rows)


def _config(sizes: Sizes, classes: Any, options: Options, where: str) -> ModelConfig:
    """The paper's block and diffusion at these sizes; the default guidance is our choice."""
    patch, channels = _patch(sizes.token, options)
    names = _class_names(sizes.table_rows, classes, options.classes, where)
    dropout = 0.1 if len(names) < sizes.table_rows else 0.0
    guidance = {"class_to_image": 1.5, "edit": 3.0} if dropout else {}
    ratio = sizes.hidden / sizes.width
    while int(sizes.width * ratio) < sizes.hidden:  # the division may have been rounded down
        ratio = math.nextafter(ratio, math.inf)
    described = {
        # Room for training too: the label, and the picture's clean and noisy tokens.
        "row_length": sizes.label_tokens + 2 * sizes.side**2,
        "image": {
            "codec": "vae",
            "vae": options.vae,
            "size": sizes.side * patch * options.downsampling,
            "patch": patch,
            "latent_channels": channels,
            "downsampling": options.downsampling,
            # Of another autoencoder than MAR's the own factor is right.
            "latent_scale": MAR_SCALE if (channels, options.downsampling) == MAR else None,
        },
        "classes": names,
        "decoder": {
            "width": sizes.width,
            "depth": sizes.depth,
            "heads": sizes.width // sizes.head_dim,
            "mlp_ratio": ratio,
            "time_term": False,
            "label_tokens": sizes.label_tokens,
        },
        "diffusion": {"dropout": dropout},
        "generation": {task: {"guidance": value} for task, value in guidance.items()},
    }
    return build(ModelConfig, described, f"checkpoint {where}")


def _patch(token: int, options: Options) -> tuple[int, int]:
    """Patch and channels whose product of squares and channels is a token's numbers."""
    patch, channels = options.patch, options.channels
    if channels is None:
        channels = token // patch**2 if patch else MAR_CHANNELS
    if patch is None:
        patch = isqrt(token // channels)
    if patch * patch * channels == token:
        return patch, channels
    raise UserError(
        f"a token holds {token} numbers, not patch {patch} * {patch} * {channels} channels; say "
        "what the autoencoder has with --patch and --channels"
    )


def _class_names(rows: int, known: Any, file: Path | None, where: str) -> list[str]:
    """Class names: of the file, else numbers. With class dropout the table has a null row more."""
    names = read_names(file, None) if file else []
    if names is None:
        raise UserError(f"classes {file}: no such file")
    count = known if isinstance(known, int) else len(names) or rows - 1
    if count not in (rows, rows - 1) or count < 1 or (names and len(names) != count):
        told = f"its arguments say {known}" if isinstance(known, int) else ""
        told += f"{' and ' if told and names else ''}{file} has {len(names)}" if names else ""
        raise UserError(
            f"checkpoint {where}: {TABLE} has {rows} rows, for {rows - 1} classes and the null "
            f"class, or {rows} without; {told}"
        )
    return names or [str(number) for number in range(count)]
