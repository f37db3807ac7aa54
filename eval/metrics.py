"""Fréchet and kernel distance between two sets of features, and the Inception score, in float64.

Arithmetic alone: no pictures, no networks. A Fréchet distance falls with the number of samples:
compare only distances of the same number.
"""

from collections.abc import Iterator

import numpy as np
import torch

from mmfusion.device import one_thread
from mmfusion.errors import UserError

BLOCK = 1 << 24
"""Numbers in a block: 128 MiB in float64. Features are widened a block at a time."""
FRECHET = "Fréchet distance"
Moments = tuple[np.ndarray, np.ndarray]
"""Mean (d,) and covariance (d, d), as reference files hold them."""


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
    _check_dimensions(a[0], b[0], metric)
    return a, b


def blocks(features: np.ndarray, width: int | None = None) -> Iterator[slice]:
    """Slices of rows, so that rows x width (default: the dimensions) is at most BLOCK numbers."""
    step = max(1, BLOCK // (width or features.shape[1]))
    return (slice(first, first + step) for first in range(0, len(features), step))


def _check_dimensions(a: np.ndarray, b: np.ndarray, metric: str) -> None:
    if len(a) != len(b):
        raise UserError(
            f"{metric}: {len(a)} and {len(b)} dimensions; take both feature sets from the same "
            "extractor"
        )


@one_thread()
def frechet_distance(a: np.ndarray | Moments, b: np.ndarray | Moments) -> float:
    """Fréchet distance between `a` and `b`, each of them features (n, d) or moments.

    Between two Gaussians N(m, A) and N(w, B) it is (Dowson and Landau 1982; of Inception's features
    the FID of Heusel et al. 2017, of spatial ones the sFID of Nash et al. 2021):

        |m - w|^2 + tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2

    The last trace is the sum of the singular values of F G^T for any factors with F^T F = A and
    G^T G = B: no complex root of a general matrix, and no root of a rounding error.

    Raises:
        UserError: fewer than two samples, different dimensions, or numbers that are not finite.
    """
    (mean_a, factor_a), (mean_b, factor_b) = _factored(a, "first"), _factored(b, "second")
    _check_dimensions(mean_a, mean_b, FRECHET)
    gap = mean_a - mean_b
    spread = np.sum(factor_a**2) + np.sum(factor_b**2)
    overlap = np.linalg.norm(factor_a @ factor_b.T, "nuc")
    return max(0.0, float(gap @ gap + spread - 2 * overlap))


def moments(features: np.ndarray) -> Moments:
    """Mean (d,) and unbiased covariance (d, d) of features (n, d), in float64.

    Raises:
        UserError: fewer than two samples, or numbers that are not finite.
    """
    features = checked(features, FRECHET, "given")
    mean = features.mean(0, dtype=np.float64)
    covariance = np.zeros((len(mean), len(mean)))
    for rows in blocks(features):
        centred = features[rows] - mean
        covariance += centred.T @ centred
    return mean, covariance / (len(features) - 1)


def _factored(side: np.ndarray | Moments, which: str) -> Moments:
    """The mean m (d,) and a factor F (at most d, d), F^T F being the covariance."""
    if not isinstance(side, tuple):
        features = checked(side, FRECHET, which)
        if len(features) <= features.shape[1]:  # smaller, and exact although A is singular
            mean = features.mean(0, dtype=np.float64)
            return mean, (features - mean) / np.sqrt(len(features) - 1)
        side = moments(features)
    mean, covariance = _checked_moments(side, which)
    values, vectors = np.linalg.eigh(covariance)
    # Rounding makes zero eigenvalues slightly negative, or positive: the root of 1e-16 is 1e-8.
    values[values < len(values) * np.finfo(float).eps * max(0.0, values.max())] = 0
    return mean, (vectors * np.sqrt(values)).T


def _checked_moments(side: Moments, which: str) -> Moments:
    mean, covariance = np.atleast_1d(side[0]), np.atleast_2d(side[1])
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        why = f"have the shapes {mean.shape} and {covariance.shape}, not (d,) and (d, d)"
    elif not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        why = "have NaN or infinite numbers"
    elif not np.allclose(covariance, covariance.T, rtol=0, atol=1e-6 * np.abs(covariance).max()):
        why = "have a covariance that is not symmetric; is it the reference's sigma?"
    else:
        return mean, covariance
    raise UserError(f"{FRECHET}: the {which} moments {why}")


@one_thread()
def kernel_distance(
    a: np.ndarray, b: np.ndarray, subsets: int = 100, size: int = 1000
) -> tuple[float, float]:
    """Mean and standard deviation over subsets of the kernel distance of (n, d) and (k, d).

    It is KID of Bińkowski et al. 2018, by torch-fidelity: the squared maximum mean discrepancy,
    without bias, with the kernel (x.y / d + 1)^3. Unlike a Fréchet distance it does not fall with
    the number of samples: near 0, where the sets are alike, it may be below. A set with fewer
    samples than `size` makes all subsets as small as itself.

    Raises:
        UserError: fewer than two samples (in a subset too), no subsets, different dimensions, or
            numbers that are not finite.
    """
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = checked_pair(a, b, "kernel distance")
    if subsets < 1 or size < 2:
        raise UserError(
            f"kernel distance: {subsets} subsets of {size} samples; give 1 or more of 2 or more"
        )
    found = kid_features_to_metric(
        *(torch.tensor(features, dtype=torch.float64) for features in (a, b)),
        kid_subsets=subsets,
        kid_subset_size=min(size, len(a), len(b)),
        rng_seed=2020,
        verbose=False,
    )
    return found["kernel_inception_distance_mean"], found["kernel_inception_distance_std"]


def inception_score(logits: np.ndarray, split: int = 5000) -> tuple[float, float]:
    """Mean and standard deviation over splits of exp(mean KL(p(y|x) || p(y))).

    The score of Salimans et al. 2016 by the protocol of ADM (Dhariwal and Nichol 2021): the logits
    (n, classes) are taken in their order, not shuffled, in splits of `split`. The last split may be
    smaller and counts like the others; with few samples in a split the score is low: it cannot
    exceed their number.

    Raises:
        UserError: no samples, logits that are not finite, or splits of less than one sample.
    """
    logits = checked(logits, "inception score", "given", least=1)
    if split < 1:
        raise UserError(f"inception score: splits of {split} samples; give 1 or more")
    scores = [_score(logits[i : i + split]) for i in range(0, len(logits), split)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(logits: np.ndarray) -> float:
    logits = logits.astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    p = np.exp(log_p)
    mean = p.mean(0)
    # A class of which every p is 0 in float64 adds nothing: 0 log 0 = 0.
    log_mean = np.log(mean, out=np.zeros_like(mean), where=mean > 0)
    return float(np.exp((p * (log_p - log_mean)).sum(1).mean()))
