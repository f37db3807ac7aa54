"""Small models in the official layout, and what they are given: numbers that anybody can remake.

Every array is a function of its name alone (`mmfusion.rng`, NumPy's Philox), never of PyTorch's
generators, so that results kept in a file can be compared with on any version of PyTorch.
Shapes: B rows, N tokens, D numbers in a latent token, c channels, h x w latent cells.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmfusion.importers.causalfusion import Sizes
from mmfusion.rng import generator

GUIDANCE, INTERVAL, STEPS = 2.5, (0.2, 0.7), 250  # of sampling


@dataclass(frozen=True)
class Case:
    """The sizes of a model; `side` is that of the token grid."""

    name: str
    width: int
    depth: int
    heads: int
    side: int
    label_tokens: int
    classes: int
    patch: int = 1
    channels: int = 16
    mlp_ratio: float = 4.0

    @property
    def tokens(self) -> int:
        """Tokens of one image."""
        return self.side**2

    @property
    def token_dim(self) -> int:
        """Numbers in one token."""
        return self.patch**2 * self.channels

    @property
    def sizes(self) -> Sizes:
        """What the importer reads off tensors of this case."""
        return Sizes(
            width=self.width,
            hidden=int(self.width * self.mlp_ratio),
            depth=self.depth,
            head_dim=self.width // self.heads,
            token=self.token_dim,
            side=self.side,
            label_tokens=self.label_tokens,
            table_rows=self.classes + 1,
        )


CASES = (
    Case("small", width=64, depth=2, heads=4, side=4, label_tokens=4, classes=10),
    Case("large", width=96, depth=4, heads=3, side=6, label_tokens=16, classes=100),
    # Nothing here is a power of two that other code might take for granted.
    Case("odd", 44, 3, 11, 5, label_tokens=7, classes=13, patch=2, channels=3, mlp_ratio=2.5),
)
GOLDEN_CASES = (CASES[0], CASES[2])  # whose official results are kept


@dataclass(frozen=True)
class Given:
    """What a model is given in one comparison.

    Attributes:
        latents, noise: (B, c, h, w).
        labels: (B,); the number of classes is the null class.
        timesteps: (B,) integers.
        scores: (B, N); their ascending order is the order of the tokens.
        sizes: tokens of each AR step.
    """

    latents: np.ndarray
    noise: np.ndarray
    labels: np.ndarray
    timesteps: np.ndarray
    scores: np.ndarray
    sizes: list[int]

    @property
    def order(self) -> np.ndarray:
        """(B, N) grid indices in the order of their generation."""
        return np.argsort(self.scores, axis=1)


def given(case: Case, draw: int, rows: int = 3) -> Given:
    """The inputs number `draw`: 0 splits into about N / 2 AR steps, 1 and 2 into one and N."""
    rng = generator("parity", case.name, "given", draw)
    cells = (rows, case.channels, case.side * case.patch, case.side * case.patch)
    n = case.tokens
    steps = {0: n // 2, 1: 1, 2: n}.get(draw, int(rng.integers(1, n + 1)))
    cuts = np.sort(rng.permutation(n - 1)[: steps - 1]) + 1
    labels = rng.integers(0, case.classes, rows)
    labels[-1] = case.classes
    return Given(
        latents=rng.standard_normal(cells, dtype=np.float32),
        noise=rng.standard_normal(cells, dtype=np.float32),
        labels=labels,
        timesteps=rng.integers(0, 1000, rows),
        scores=rng.random((rows, n), dtype=np.float32),
        sizes=np.diff([0, *cuts, n]).tolist(),
    )


def weights(case: Case) -> dict[str, Tensor]:
    """Random weights in the official layout, the zero-initialised head's too.

    The head turns back what the first layer does to a latent, so that the noise predicted is for
    the most part that of latents near 0. Pictures then stay of order 1 while they are sampled;
    with an unrelated head they grow a hundredfold, and errors in the sampler's noise are lost.
    """
    made = {
        name: torch.from_numpy(_values(case, name, shape)) for name, shape in _shapes(case).items()
    }
    spread = (case.width / case.token_dim) ** 0.5
    back = made["x_proj.weight"].T * (case.token_dim / case.width) ** 0.5
    made["x_proj.weight"] = made["x_proj.weight"] * 3
    made["final_layer.1.weight"] = made["final_layer.1.weight"] * 0.1 + back * 2.5 / spread
    return made


def save(case: Case, path: Path) -> None:
    """A checkpoint as a training run leaves it; "model" is not what is to be read."""
    ema = weights(case)
    model = {name: tensor + 1 for name, tensor in ema.items()}
    torch.save({"model": model, "ema": ema, "args": argparse.Namespace(lr=8e-4)}, path)


def _values(case: Case, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = generator("parity", case.name, name).standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        scale = "norm" in name or name.startswith("final_layer.0")
        return np.float32(0.2) * values + np.float32(scale and name.endswith("weight"))
    table = "embed" in name and "t_embedder" not in name
    return values * np.float32(0.5 if table else shape[1] ** -0.5)


def _shapes(case: Case) -> dict[str, tuple[int, ...]]:
    w, hidden, head = case.width, int(case.width * case.mlp_ratio), case.width // case.heads

    def layer(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    shapes = {
        "pos_embed": (1, case.tokens, w),
        "cond_pos_embed": (1, case.label_tokens, w),
        **layer("x_proj", w, case.token_dim),
        **layer("t_embedder.mlp.0", w, 256),
        **layer("t_embedder.mlp.2", w, w),
        "y_embedder.embedding_table.weight": (case.classes + 1, case.label_tokens * w),
        **layer("final_layer.0", w),
        **layer("final_layer.1", case.token_dim, w),
    }
    for block in range(case.depth):
        inside = {
            **layer("norm1", w),
            "attn.qkv.weight": (3 * w, w),
            **layer("attn.q_norm", head),
            **layer("attn.k_norm", head),
            **layer("attn.proj", w, w),
            **layer("norm2", w),
            **layer("mlp.fc1", hidden, w),
            **layer("mlp.fc2", w, hidden),
        }
        shapes |= {f"blocks.{block}.{name}": shape for name, shape in inside.items()}
    return shapes
