"""What is compared: one change at a time, and how large everything is.

All arms of a data set have the same steps, seeds and optimiser, and see the same pictures with the
same noise and timesteps (the joint ones in half of their documents; the others are captioned).
Each is CausalFusion's recipe (random order, decay 0.9, loss weight 1 -> 1) but for what it names;
the DiT has as many parameters and is therefore narrower, and the joint ones have rotary positions.
"""

from dataclasses import dataclass, field
from typing import Any

from mmfusion.config import ModelConfig

from .data import Data

STEPS = (1, 2, 4, 8)
"""AR steps that models are sampled at."""


@dataclass(frozen=True)
class Arm:
    """One trained model of the comparison.

    Attributes:
        diffusion: what differs from the recipe.
        sampled: AR steps it is sampled at.
        kind: class_to_image; joint, which is trained on text->image and image->text; or dit.
    """

    name: str
    diffusion: dict[str, Any] = field(default_factory=dict)
    sampled: tuple[int, ...] = (1,)
    kind: str = "class"


def fixed(steps: int) -> Arm:
    """Trained at a fixed number of AR steps; 1 is plain diffusion."""
    return Arm(f"S = {steps}", {"ar_steps": steps}, STEPS)


def decay(ratio: float) -> Arm:
    """Trained at a random number of AR steps, less probable by `ratio` with each."""
    return Arm(f"decay {ratio}", {"ar_decay": ratio}, STEPS)


ARMS = {arm.name: arm for arm in (
    *map(fixed, STEPS),
    *map(decay, (1.0, 0.95, 0.9)),
    Arm("raster order", {"order": "raster"}, STEPS),
    Arm("weight 2 -> 1", {"weight_start": 2.0}, STEPS),
    Arm("weight 3 -> 1", {"weight_start": 3.0}, STEPS),
    Arm("DiT, adaLN-zero", {"ar_steps": 1}, kind="dit"),
    Arm("joint, S = 1", {"ar_steps": 1}, kind="joint"),
    Arm("joint, causal", kind="joint"),
)}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How large pictures, models, training and scoring are."""

    picture: int
    patch: int
    width: int
    dit_width: int
    depth: int
    heads: int
    batch: int
    steps: int
    lr: float = 2e-3
    warmup: int = 50
    anneal: float = 0.4
    ema: float = 0.99
    samples: int = 1000
    inference_steps: int = 10
    captions: int = 300
    prediction: str = "v_prediction"


SIZES = {
    ("fashion", "cpu"): Size(
        14, 2, 64, 52, 4, 4, batch=32, steps=400, lr=3e-3, samples=500, inference_steps=8
    ),
    ("digits", "cpu"): Size(
        8, 2, 64, 52, 3, 4, batch=32, steps=400, lr=3e-3, samples=500, inference_steps=8
    ),
    ("fashion", "gpu"): Size(
        28, 2, 256, 208, 6, 8, batch=128, steps=2500, lr=1e-3, warmup=200, ema=0.998,
        samples=2000, inference_steps=20, captions=1000,
    ),
    ("digits", "gpu"): Size(
        8, 2, 128, 104, 4, 4, batch=128, steps=2000, ema=0.995, samples=1000, inference_steps=50
    ),
}  # fmt: skip


def model_config(arm: Arm, size: Size, data: Data, tokenizer: str) -> ModelConfig:
    """The arm's model: the paper's block, in context, one picture a document."""
    width = size.dit_width if arm.kind == "dit" else size.width
    recipe = {"weight_start": 1.0, "prediction": size.prediction, "dropout": 0.1}
    config = {
        "row_length": 4096,
        "image": {"codec": "pixel", "size": size.picture, "channels": 1, "patch": size.patch},
        "classes": [] if arm.kind == "joint" else list(data.names),
        "decoder": {
            "width": width,
            "depth": size.depth,
            "heads": size.heads,
            "label_tokens": 4,
            # Text has no place in a grid; a time term learns too slowly here (docs/log.md).
            "position": "rotary" if arm.kind == "joint" else "learned",
            "time_term": False,
        },
        "diffusion": {**recipe, **arm.diffusion},
    }
    if arm.kind == "joint":
        config["text"] = {"tokenizer": tokenizer}
    return ModelConfig.model_validate(config)
