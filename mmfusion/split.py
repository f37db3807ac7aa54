"""How an image's tokens are cut into AR steps (CausalFusion, section 3).

A split is a list of S index arrays: `split[s]` holds the grid indices that AR step s generates.
"""

from typing import Literal

import numpy as np

from mmfusion.errors import UserError

Split = list[np.ndarray]
Order = Literal["random", "raster"]


def token_order(tokens: int, order: Order, rng: np.random.Generator) -> np.ndarray:
    """The order in which an image's `tokens` grid cells are generated; shape (tokens,)."""
    return rng.permutation(tokens) if order == "random" else np.arange(tokens)


def draw_steps(tokens: int, decay: float, rng: np.random.Generator) -> int:
    """Number of AR steps S in 1..tokens, P(S) falling by `decay` per extra step (1 is uniform)."""
    weights = decay ** np.arange(tokens, dtype=np.float64)
    return 1 + int(np.searchsorted(np.cumsum(weights), rng.random() * weights.sum(), side="right"))


def draw_sizes(tokens: int, steps: int, rng: np.random.Generator) -> list[int]:
    """A uniformly random composition of `tokens` into `steps` positive sizes."""
    if steps == 1:
        return [tokens]
    cuts = np.sort(rng.choice(tokens - 1, steps - 1, replace=False)) + 1
    return np.diff([0, *cuts, tokens]).tolist()


def even_sizes(tokens: int, steps: int) -> list[int]:
    """`steps` sizes that differ by at most one, the larger ones first.

    Raises:
        UserError: there are more steps than tokens, or none.
    """
    if not 1 <= steps <= tokens:
        raise UserError(
            f"ar_steps: {steps} AR steps do not fit {tokens} tokens; choose 1 to {tokens}"
        )
    return [tokens // steps + (s < tokens % steps) for s in range(steps)]


def cut(order: np.ndarray, sizes: list[int]) -> Split:
    """The order cut into consecutive steps of the given sizes."""
    return np.split(order, np.cumsum(sizes)[:-1])


def draw_split(
    tokens: int, decay: float, order: Order, rng: np.random.Generator, steps: int | None = None
) -> Split:
    """A training split: random S unless `steps` fixes it, random sizes, random or raster order."""
    count = min(steps, tokens) if steps else draw_steps(tokens, decay, rng)
    sizes = draw_sizes(tokens, count, rng)
    return cut(token_order(tokens, order, rng), sizes)


def step_weights(split: Split, start_weight: float) -> list[float]:
    """Loss weight of each AR step: `start_weight` falling linearly to 1 with the step's start.

    With `start_weight` 2 this is 2 - start/N for a step that begins after `start` of N tokens
    (section 3.3 and the official code, constant within a step).
    """
    starts = np.cumsum([0] + [len(step) for step in split])
    return [float(start_weight - (start_weight - 1) * start / starts[-1]) for start in starts[:-1]]
