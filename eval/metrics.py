"""Distances and scores of features, in float64: arithmetic alone, no pictures, no networks.

A Fréchet distance falls with the number of samples: compare only distances of the same number.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from mmfusion.device import one_thread
from mmfusion.errors import UserError

BLOCK = 1 << 24
"""Numbers in a block: 128 MiB in float64. Features are widened a block at a time."""
Moments = tuple[np.ndarray, np.ndarray]
"""Mean (d,) and covariance (d, d), as reference files hold them."""


def _check(metric: str, least: int, *sets: np.ndarray) -> None:
    """Refuse what are no features (n, d) of at least so many samples."""
    for features in sets:
        if features.ndim != 2 or len(features) < least or not features.shape[1]:
            raise UserError(
                f"{metric}: features of the shape {features.shape}; it needs {least} or more "
                "samples, one a row"
            )
        if not np.isfinite(features).all():
            raise UserError(f"{metric}: features with NaN or infinite numbers")
    _check_dimensions(metric, *(features[0] for features in sets))


def _check_dimensions(metric: str, *rows: np.ndarray) -> None:
    if len({len(row) for row in rows}) > 1:
        shown = " and ".join(str(len(row)) for row in rows)
        raise UserError(
            f"{metric}: {shown} dimensions; take both sets from one extractor, and pictures of one "
            "size (--size)"
        )


def _blocks(features: np.ndarray, width: int) -> Iterator[slice]:
    """Slices of rows, so that rows x width is at most BLOCK numbers."""
    step = max(1, BLOCK // width)
    return (slice(first, first + step) for first in range(0, len(features), step))


# Fréchet distance


@one_thread()
def frechet_distance(a: np.ndarray | Moments, b: np.ndarray | Moments) -> float:
    """Fréchet distance between `a` and `b`, each of them features (n, d) or moments.

    Between two Gaussians N(m, A) and N(w, B) it is (Dowson and Landau 1982; of Inception's features
    the FID of Heusel et al. 2017, of spatial ones the sFID of Nash et al. 2021):

        |m - w|^2 + tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2

    The last trace is the sum of the singular values of F G^T for any factors with F^T F = A and
    G^T G = B: no complex root of a general matrix, and no root of a rounding error.
    """
    (mean_a, factor_a), (mean_b, factor_b) = _factored(a), _factored(b)
    _check_dimensions("Fréchet distance", mean_a, mean_b)
    gap = mean_a - mean_b
    spread = np.sum(factor_a**2) + np.sum(factor_b**2)
    overlap = np.linalg.norm(factor_a @ factor_b.T, "nuc")
    return max(0.0, float(gap @ gap + spread - 2 * overlap))


def moments(features: np.ndarray) -> Moments:
    """Mean (d,) and unbiased covariance (d, d) of features (n, d), in float64."""
    mean = features.mean(0, dtype=np.float64)
    covariance = np.zeros((len(mean), len(mean)))
    for rows in _blocks(features, len(mean)):
        centred = features[rows] - mean
        covariance += centred.T @ centred
    return mean, covariance / (len(features) - 1)


def _factored(side: np.ndarray | Moments) -> Moments:
    """The mean m (d,) and a factor F (at most d, d), F^T F being the covariance."""
    if not isinstance(side, tuple):
        _check("Fréchet distance", 2, side)
        if len(side) <= side.shape[1]:  # smaller, and exact although A is singular
            mean = side.mean(0, dtype=np.float64)
            return mean, (side - mean) / np.sqrt(len(side) - 1)
        side = moments(side)
    mean, covariance = side
    values, vectors = np.linalg.eigh(covariance)
    # Rounding makes zero eigenvalues slightly negative, or positive: the root of 1e-16 is 1e-8.
    values[values < len(values) * np.finfo(float).eps * max(0.0, values.max())] = 0
    return mean, (vectors * np.sqrt(values)).T


# Kernel distance and Inception score


@one_thread()
def kernel_distance(
    a: np.ndarray, b: np.ndarray, subsets: int = 100, size: int = 1000
) -> tuple[float, float]:
    """Mean and standard deviation over subsets of the kernel distance of (n, d) and (k, d).

    It is KID of Bińkowski et al. 2018, by torch-fidelity: the squared maximum mean discrepancy,
    without bias, with the kernel (x.y / d + 1)^3. Unlike a Fréchet distance it does not fall with
    the number of samples: near 0, where the sets are alike, it may be below. A set with fewer
    samples than `size` makes all subsets as small as itself.
    """
    from torch_fidelity.metric_kid import kid_features_to_metric

    _check("kernel distance", 2, a, b)
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
    """
    _check("Inception score", 1, logits)
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


# Precision and recall


class _Points(NamedTuple):
    given: np.ndarray  # (n, d) distinct features
    centred: np.ndarray  # (n, d) float64
    norms: np.ndarray  # (n,) squared
    counts: np.ndarray  # (n,) how often each was there


def precision_recall(real: np.ndarray, made: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Precision and recall of Kynkäänniemi et al. 2019, of `made` (n, d) against `real` (m, d).

    A set's manifold is the union of balls around its samples, each as large as the distance to its
    sample's k-th nearest neighbour in the set, the sample itself not counted. Precision is the
    share of made samples inside the real manifold, recall the share of real samples inside the made
    one. A point on a ball's surface is inside.

    The fast |x|^2 + |y|^2 - 2 x.y cancels where distances are small beside the norms, so here it
    only sorts out what is clear. After centring, in float64, its error is below c (|x|^2 + |y|^2)
    with c = (d + 8) eps; whatever that leaves open (who is the k-th neighbour, inside or not) is
    decided by sums of squared differences of the features as given. So adding a constant to all
    features changes nothing, equal points are at distance 0, and ties are ties. Equal features are
    kept once, with their count: a collapsed model makes thousands of them, and all their distances
    would be open.
    """
    _check(f"precision and recall with k = {k}", k + 1, real, made)
    centre = real.mean(0, dtype=np.float64)
    x, y = _points(real, centre), _points(made, centre)
    total = 2 * (len(x.given) + len(y.given))
    with tqdm(total=total, desc="precision and recall", unit="row", delay=5) as bar:
        radii_x, radii_y = _squared_radii(x, k, bar), _squared_radii(y, k, bar)
        precision = np.average(_inside(y, x, radii_x, bar), weights=y.counts)
        recall = np.average(_inside(x, y, radii_y, bar), weights=x.counts)
    return float(precision), float(recall)


def _points(features: np.ndarray, centre: np.ndarray) -> _Points:
    features = np.ascontiguousarray(features)
    whole = np.dtype((np.void, features.itemsize * features.shape[1]))  # a row is compared as bytes
    _, first, counts = np.unique(features.view(whole), return_index=True, return_counts=True)
    given = features[first]
    centred = given - centre
    return _Points(given, centred, np.square(centred).sum(1), counts)


def _squared_radii(points: _Points, k: int, bar: tqdm) -> np.ndarray:
    """Squared distance of each distinct point to its k-th neighbour, counting equal ones."""
    radii = np.zeros(len(points.given))
    for rows, low, high in _bounds(points, points):
        own = np.arange(*rows.indices(len(radii)))
        low[own - own[0], own] = high[own - own[0], own] = np.inf
        # The k-th smallest upper bound; the k nearest neighbours all lie below it. A distinct
        # point may stand for more than one neighbour, so they may be fewer than k.
        most = min(k, len(radii) - 1) - 1
        limit = np.partition(high, most, 1)[:, most] if most >= 0 else np.zeros(len(own))
        i, j = np.nonzero(low <= limit[:, None])
        distances = _exact(points, own[i], points, j)
        order = np.lexsort((distances, i))
        i, j, distances = i[order], j[order], distances[order]
        ends = np.searchsorted(i, np.arange(len(own) + 1))
        for row, point in enumerate(own):
            others = slice(ends[row], ends[row + 1])
            reached = points.counts[point] - 1 + np.cumsum(points.counts[j[others]])
            if points.counts[point] <= k:
                radii[point] = distances[others][np.searchsorted(reached, k)]
        bar.update(len(own))
    return radii


def _inside(points: _Points, balls: _Points, radii: np.ndarray, bar: tqdm) -> np.ndarray:
    """Whether each distinct point is in any ball (n,)."""
    inside = np.zeros(len(points.given), bool)
    for rows, low, high in _bounds(points, balls):
        inside[rows] = (high <= radii).any(1)
        i, j = np.nonzero((low <= radii) & ~inside[rows, None])
        i += rows.start
        inside[i[_exact(points, i, balls, j) <= radii[j]]] = True
        bar.update(len(low))
    return inside


def _bounds(x: _Points, y: _Points) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Rows of x with a lower and an upper bound (rows, n of y) of their squared distances to y."""
    c = (x.given.shape[1] + 8) * np.finfo(float).eps
    for rows in _blocks(x.given, len(y.given)):
        norms = x.norms[rows, None] + y.norms
        fast = norms - 2 * (x.centred[rows] @ y.centred.T)
        norms *= c
        yield rows, fast - norms, fast + norms


def _exact(x: _Points, i: np.ndarray, y: _Points, j: np.ndarray) -> np.ndarray:
    """Squared distances (p,) of the pairs of x[i] and y[j], the same for (x, y) and (y, x)."""
    distances = np.empty(len(i))
    step = max(1, BLOCK // 8 // x.given.shape[1])
    for first in range(0, len(i), step):
        part = slice(first, first + step)
        gap = x.given[i[part]].astype(np.float64) - y.given[j[part]]
        distances[part] = np.square(gap, out=gap).sum(1)
    return distances
