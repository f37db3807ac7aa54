"""Fréchet distance between two sets of features, in float64.

The distance between two Gaussians N(m, A) and N(w, B) is (Dowson and Landau 1982; used on Inception
features as FID by Heusel et al. 2017, on spatial ones as sFID by Nash et al. 2021):

    |m - w|^2 + tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2

The last trace is the sum of the singular values of F G^T (its nuclear norm) for any factors with
F^T F = A and G^T G = B: no complex root of a general matrix, and no root of a rounding error. A
factor is the symmetric root of the covariance, or, where there are fewer samples n than dimensions,
the centred samples themselves over (n - 1)^1/2: smaller, and exact although A is singular.

A distance falls with the number of samples: compare only distances with the same n.
"""

import numpy as np

from mmfusion.errors import UserError

from .checked import blocks, check_dimensions, checked, one_thread

METRIC = "Fréchet distance"
Moments = tuple[np.ndarray, np.ndarray]
"""Mean (d,) and covariance (d, d), as reference files hold them."""


@one_thread
def frechet_distance(a: np.ndarray | Moments, b: np.ndarray | Moments) -> float:
    """Fréchet distance between `a` and `b`, each of them features (n, d) or moments.

    Raises:
        UserError: fewer than two samples, different dimensions, or numbers that are not finite.
    """
    mean_a, factor_a = _mean_and_factor(a, "first")
    mean_b, factor_b = _mean_and_factor(b, "second")
    check_dimensions(len(mean_a), len(mean_b), METRIC)
    gap = mean_a - mean_b
    spread = np.sum(factor_a**2) + np.sum(factor_b**2)
    overlap = np.linalg.norm(factor_a @ factor_b.T, "nuc")
    return max(0.0, float(gap @ gap + spread - 2 * overlap))


def frechet_from_moments(
    mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray
) -> float:
    """Fréchet distance from means (d,) and covariances (d, d)."""
    return frechet_distance((mean_a, cov_a), (mean_b, cov_b))


def moments(features: np.ndarray) -> Moments:
    """Mean (d,) and unbiased covariance (d, d) of features (n, d), in float64.

    Raises:
        UserError: fewer than two samples, or numbers that are not finite.
    """
    features = checked(features, METRIC, "given")
    mean = features.mean(0, dtype=np.float64)
    cov = np.zeros((len(mean), len(mean)))
    for rows in blocks(features):
        centred = features[rows] - mean
        cov += centred.T @ centred
    return mean, cov / (len(features) - 1)


def _mean_and_factor(side: np.ndarray | Moments, which: str) -> Moments:
    """The mean m (d,) and a factor F (at most d, d), F^T F being the covariance."""
    if isinstance(side, tuple):
        mean, cov = _checked_moments(side, which)
        return mean, _root(cov)
    features = checked(side, METRIC, which)
    if len(features) > features.shape[1]:
        mean, cov = moments(features)
        return mean, _root(cov)
    mean = features.mean(0, dtype=np.float64)
    return mean, (features - mean) / np.sqrt(len(features) - 1)


def _root(cov: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(cov)
    # Rounding makes zero eigenvalues slightly negative, or positive: the root of 1e-16 is 1e-8.
    values[values < len(values) * np.finfo(float).eps * max(0.0, values.max())] = 0
    return (vectors * np.sqrt(values)).T


def _checked_moments(side: Moments, which: str) -> Moments:
    mean, cov = (np.asarray(part, dtype=np.float64) for part in side)
    mean, cov = np.atleast_1d(mean), np.atleast_2d(cov)
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise UserError(
            f"{METRIC}: the {which} moments have the shapes {mean.shape} and {cov.shape}; "
            "they need to be a mean (d,) and a covariance (d, d)"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise UserError(f"{METRIC}: the {which} moments have NaN or infinite numbers")
    if not np.allclose(cov, cov.T, rtol=0, atol=1e-6 * np.abs(cov).max()):
        raise UserError(
            f"{METRIC}: the {which} covariance is not symmetric; is it the reference's sigma?"
        )
    return mean, cov
