"""Fréchet distance between two sets of features, in float64.

The distance between two Gaussians N(m, A) and N(w, B) is (Dowson and Landau 1982; used on Inception
features as FID by Heusel et al. 2017):

    |m - w|^2 + tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2

Two ways to the last trace give the same value. A^1/2 B A^1/2 is symmetric, so its eigenvalues are
found without the complex roots of a general matrix square root. And the trace is the sum of the
singular values of A^1/2 B^1/2 (its nuclear norm), for which samples can stand in for roots: with
the centred features X (n, d) and Y (k, d) it is |X Y^T|_* / sqrt((n - 1) (k - 1)). That is cheaper
and more exact where there are fewer samples than dimensions and a covariance is singular.

A distance falls with the number of samples: compare only distances with the same n.
"""

import numpy as np

from mmfusion.errors import UserError


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance between features `a` (n, d) and `b` (k, d).

    Raises:
        UserError: fewer than two samples, different dimensions, or numbers that are not finite.
    """
    a, b = _checked(a, "first"), _checked(b, "second")
    if a.shape[1] != b.shape[1]:
        raise UserError(
            f"Fréchet distance: {a.shape[1]} and {b.shape[1]} dimensions; "
            "take both feature sets from the same extractor"
        )
    if min(len(a), len(b)) >= a.shape[1]:
        return frechet_from_moments(
            a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False)
        )
    mean_a, mean_b = a.mean(0), b.mean(0)
    x = (a - mean_a) / np.sqrt(len(a) - 1)
    y = (b - mean_b) / np.sqrt(len(b) - 1)
    overlap = np.linalg.norm(x @ y.T, "nuc")
    return _distance(mean_a - mean_b, np.sum(x**2) + np.sum(y**2), float(overlap))


def frechet_from_moments(
    mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray
) -> float:
    """Fréchet distance from means (d,) and covariances (d, d), as reference files hold them."""
    cov_a = np.atleast_2d(np.asarray(cov_a, dtype=np.float64))
    cov_b = np.atleast_2d(np.asarray(cov_b, dtype=np.float64))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    # Rounding makes zero eigenvalues slightly negative.
    overlap = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    gap = np.asarray(mean_a, dtype=np.float64) - np.asarray(mean_b, dtype=np.float64)
    return _distance(gap, np.trace(cov_a) + np.trace(cov_b), overlap)


def _distance(gap: np.ndarray, spread: float, overlap: float) -> float:
    return max(0.0, float(gap @ gap + spread - 2 * overlap))


def _checked(features: np.ndarray, which: str) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise UserError(
            f"Fréchet distance: the {which} feature set has the shape {features.shape}; "
            "it needs two samples or more, one a row"
        )
    if not np.isfinite(features).all():
        raise UserError(f"Fréchet distance: the {which} feature set has NaN or infinite numbers")
    return features
