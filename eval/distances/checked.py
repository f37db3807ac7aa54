"""What all distances ask of their features."""

from collections.abc import Iterator

import numpy as np
from threadpoolctl import threadpool_limits

from mmfusion.errors import UserError

BLOCK = 1 << 24
"""Numbers in a block: 128 MiB in float64. Features are widened a block at a time."""


one_thread = threadpool_limits.wrap(limits=1, user_api="blas")
"""Sums in the same order on any number of cores, so that a launcher changes no digit."""


def checked(features: np.ndarray, metric: str, which: str, least: int = 2) -> np.ndarray:
    """The features as a float array (n, d), not copied when they are one.

    Raises:
        UserError: fewer samples than `least`, not two-dimensional, or not finite.
    """
    features = np.asarray(features)
    if not np.issubdtype(features.dtype, np.floating):
        features = features.astype(np.float64)
    if features.ndim != 2 or len(features) < least or not features.shape[1]:
        raise UserError(
            f"{metric}: the {which} feature set has the shape {features.shape}; it needs "
            f"{least} or more samples, one a row"
        )
    if not all(np.isfinite(features[rows]).all() for rows in blocks(features)):
        raise UserError(f"{metric}: the {which} feature set has NaN or infinite numbers")
    return features


def checked_pair(
    a: np.ndarray, b: np.ndarray, metric: str, least: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Both sets, checked; a UserError also where their dimensions differ."""
    a, b = checked(a, metric, "first", least), checked(b, metric, "second", least)
    check_dimensions(a.shape[1], b.shape[1], metric)
    return a, b


def check_dimensions(a: int, b: int, metric: str) -> None:
    """Refuse features of different dimensions."""
    if a != b:
        raise UserError(
            f"{metric}: {a} and {b} dimensions; take both feature sets from the same extractor"
        )


def blocks(features: np.ndarray, width: int | None = None) -> Iterator[slice]:
    """Slices of rows, so that rows x width (default: the dimensions) is at most BLOCK numbers."""
    step = max(1, BLOCK // (width or features.shape[1]))
    return (slice(first, first + step) for first in range(0, len(features), step))
