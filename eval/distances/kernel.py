"""Kernel distance between two sets of features: KID of Bińkowski et al. 2018, in float64.

The squared maximum mean discrepancy, without bias, with the kernel (x.y / d + 1)^3, as a mean over
random subsets. Unlike a Fréchet distance it does not fall with the number of samples: near 0, where
the sets are alike, it may be below.
"""

import numpy as np
from tqdm import tqdm

from mmfusion.errors import UserError

from .checked import checked_pair, one_thread


@one_thread
def kernel_distance(
    a: np.ndarray, b: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Mean and standard deviation over subsets of the kernel distance of (n, d) and (k, d).

    The subsets are those of torch-fidelity with the same seed when `a` is its first input. A set
    with fewer samples than `size` makes all subsets as small as itself.

    Raises:
        UserError: fewer than two samples (in a subset too), no subsets, different dimensions, or
            numbers that are not finite.
    """
    a, b = checked_pair(a, b, "kernel distance")
    if subsets < 1 or size < 2:
        raise UserError(
            f"kernel distance: {subsets} subsets of {size} samples; give 1 or more of 2 or more"
        )
    size = min(size, len(a), len(b))
    rng = np.random.RandomState(seed)
    found = []
    for _ in tqdm(range(subsets), "kernel distance", unit="subset", delay=5):
        x = a[rng.choice(len(a), size, replace=False)].astype(np.float64)
        y = b[rng.choice(len(b), size, replace=False)].astype(np.float64)
        found.append(_discrepancy(x, y))
    return float(np.mean(found)), float(np.std(found))


def _discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    n = len(x)
    same = sum(k.sum() - np.trace(k) for k in (_kernel(x, x), _kernel(y, y)))
    return same / (n * (n - 1)) - 2 * _kernel(x, y).mean()


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base
