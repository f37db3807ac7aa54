"""Precision and recall of Kynkäänniemi et al. 2019, exactly.

A set's manifold is the union of balls around its samples, each as large as the distance to its
sample's k-th nearest neighbour in the set, the sample itself not counted. Precision is the share of
made samples inside the real manifold, recall the share of real samples inside the made one. A point
on a ball's surface is inside.

The fast |x|^2 + |y|^2 - 2 x.y cancels where distances are small beside the norms, so here it only
sorts out what is clear. After centring, in float64, its error is below c (|x|^2 + |y|^2) with c =
(d + 8) eps; whatever that leaves open (who is the k-th neighbour, inside or not) is decided by
sums of squared differences of the features as given. So adding a constant to all features changes
nothing, equal points are at distance 0, and ties are ties. Equal features are kept once, with their
count: a collapsed model makes thousands of them, and all their distances would be open.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mmfusion.errors import UserError

from .metrics import BLOCK, blocks, checked_pair


class _Points(NamedTuple):
    given: np.ndarray  # (n, d) distinct features
    centred: np.ndarray  # (n, d) float64
    norms: np.ndarray  # (n,) squared
    counts: np.ndarray  # (n,) how often each was there


def precision_recall(real: np.ndarray, made: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Precision and recall of the features `made` (n, d) against `real` (m, d).

    Raises:
        UserError: k or fewer samples, different dimensions, or numbers that are not finite.
    """
    if k < 1:
        raise UserError(f"precision and recall: k is {k}; give 1 or more")
    real, made = checked_pair(real, made, f"precision and recall with k = {k}", least=k + 1)
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
    for rows in blocks(x.given, len(y.given)):
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
