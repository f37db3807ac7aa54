"""The suite's figures: shares with a 95% interval."""

from typing import Any

import numpy as np

from mmfusion.rng import generator

Figures = dict[str, Any]

RESAMPLES = 1000
TAIL = 2.5  # per cent on each side


def share(right: np.ndarray, real: np.ndarray | None = None) -> Figures:
    """How many are right (n,), as a share of how many real ones are (n,), if any are given.

    The interval is a bootstrap's, over the same cells of both.
    """
    given = np.ones(len(right), bool) if real is None else real
    at = generator("emoji", "bootstrap", len(right)).integers(
        len(right), size=(RESAMPLES, len(right))
    )
    values = right[at].mean(1) / np.maximum(given[at].mean(1), 1 / len(right))
    low, high = np.percentile(values, [TAIL, 100 - TAIL])
    found: Figures = {
        "value": float(right.mean() / max(given.mean(), 1 / len(right))),
        "n": len(right),
    }
    found["interval"] = f"{low:.3f} to {high:.3f}"
    if real is not None:
        found |= {"right": float(right.mean()), "real_right": float(real.mean())}
    return found
