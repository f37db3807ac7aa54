"""Distances and scores of features: other projects' functions, brute force, and closed forms."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mmfusion.errors import UserError
from mmfusion.eval import metrics
from mmfusion.eval.metrics import frechet_distance, inception_score, kernel_distance, moments
from mmfusion.eval.metrics import precision_recall as share_inside

REGULAR, DEFICIENT = (400, 300, 16), (30, 20, 64)
ONE_DEFICIENT, MANY_OF_ONE = (300, 20, 64), (20, 300, 64)
SHAPES = [REGULAR, DEFICIENT, ONE_DEFICIENT, MANY_OF_ONE]

Pair = tuple[np.ndarray, np.ndarray]


def pair(shape: tuple[int, int, int], dtype: type = np.float64) -> Pair:
    """Two correlated sets, of (n, d) and (k, d)."""
    n, k, d = shape
    rng = np.random.default_rng(0)
    a = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / np.sqrt(d)
    return a.astype(dtype), (rng.normal(size=(k, d)) + 0.3).astype(dtype)


# Fréchet distance


def statistics(*sets: np.ndarray) -> list[np.ndarray]:
    return [part for x in sets for part in (x.mean(0), np.cov(x, rowvar=False))]


def by_torch_fidelity(a: np.ndarray, b: np.ndarray) -> float:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    stats = (fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b))
    return fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]


def by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.linalg import sqrtm

    mean_a, cov_a, mean_b, cov_b = statistics(a, b)
    gap = mean_a - mean_b
    return float(gap @ gap + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real))


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
@pytest.mark.parametrize("theirs", [by_torch_fidelity, by_scipy])
@pytest.mark.parametrize("shape", SHAPES)
def test_frechet_distance_is_that_of_other_projects(
    theirs: Callable[..., float], shape: tuple[int, int, int]
) -> None:
    a, b = pair(shape)
    # Roots of zero eigenvalues are rounding errors of 1e-8 each in theirs.
    rel = 1e-12 if shape == REGULAR else 1e-5 if theirs is by_scipy else 1e-6
    assert frechet_distance(a, b) == pytest.approx(theirs(a, b), rel=rel)


@pytest.mark.parametrize("shape", SHAPES)
def test_features_and_moments_give_the_same_distance(shape: tuple[int, int, int]) -> None:
    a, b = pair(shape)
    for found, expected in zip(moments(a), statistics(a), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    distance = pytest.approx(frechet_distance(a, b), rel=1e-11)
    for left, right in ((moments(a), b), (a, moments(b)), (moments(a), moments(b))):
        assert frechet_distance(left, right) == distance
        assert frechet_distance(right, left) == distance


def test_moments_in_blocks_are_the_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK", 64)
    a = pair(REGULAR, np.float32)[0] + np.float32(1000)
    mean, covariance = moments(a)
    assert mean.dtype == covariance.dtype == np.float64
    np.testing.assert_allclose(mean, a.mean(0, dtype=np.float64), rtol=1e-13)
    wide = np.cov(a.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(covariance, wide, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n", [40, 5])
def test_frechet_distance_of_scaled_and_shifted_features(n: int) -> None:
    """sFID is this distance on spatial features: s x + t is |t + (s - 1) m|^2 + (s - 1)^2 tr A."""
    a = np.random.default_rng(1).normal(size=(n, 14))
    gap = 2 + 2 * a.mean(0)
    expected = gap @ gap + 4 * a.var(0, ddof=1).sum()
    assert frechet_distance(a, 3 * a + 2) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_in_closed_form() -> None:
    # Exact sample moments: four corners of a square, mean 0, covariance 4/3.
    corners = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert frechet_distance(corners, corners * 2 + 1) == pytest.approx(2 * 4 / 3 + 2, rel=1e-14)
    # Gaussians whose covariances commute.
    rng = np.random.default_rng(1)
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    s, t = rng.uniform(0.1, 3, (2, 6))
    mean_a, mean_b = rng.normal(size=(2, 6))
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((np.sqrt(s) - np.sqrt(t)) ** 2)
    sides = (mean_a, (basis * s) @ basis.T), (mean_b, (basis * t) @ basis.T)
    assert frechet_distance(*sides) == pytest.approx(expected, rel=1e-12)
    # Dead features add nothing; equal samples have no spread.
    a, b = pair(REGULAR)
    dead = [np.hstack([x, np.full((len(x), 3), 7.0)]) for x in (a, b)]
    assert frechet_distance(*dead) == pytest.approx(frechet_distance(a, b), rel=1e-12)
    same = np.repeat(a[:1], 50, 0)
    assert frechet_distance(same, same) == pytest.approx(0, abs=1e-30)
    spread = np.sum((a[0] - b.mean(0)) ** 2) + b.var(0, ddof=1).sum()
    assert frechet_distance(same, b) == pytest.approx(spread)


@pytest.mark.parametrize(
    ("function", "dtype"), [(frechet_distance, np.float16), (kernel_distance, np.float32)]
)
def test_narrow_numbers_are_taken_in_double(function: Callable[..., Any], dtype: type) -> None:
    narrow = pair(REGULAR, dtype)
    wide = [x.astype(np.float64) for x in narrow]
    assert function(*narrow) == pytest.approx(function(*wide), rel=1e-13)


# Kernel distance


@pytest.mark.parametrize("shape", [REGULAR, (60, 50, 128)])
def test_kernel_distance_is_torchmetrics_over_torch_fidelitys_subsets(
    shape: tuple[int, int, int],
) -> None:
    from torchmetrics.image.kid import poly_mmd

    a, b = pair(shape)
    rng, found = np.random.RandomState(2020), []
    for _ in range(7):
        subsets = [x[rng.choice(len(x), 40, replace=False)] for x in (a, b)]
        found.append(poly_mmd(*map(torch.from_numpy, subsets)).item())
    mean, std = kernel_distance(a, b, subsets=7, size=40)
    assert mean == pytest.approx(np.mean(found), rel=1e-11)
    assert std == pytest.approx(np.std(found), rel=1e-10)
    defaults = inspect.signature(kernel_distance).parameters
    assert (defaults["subsets"].default, defaults["size"].default) == (100, 1000)


def test_kernel_distance_by_hand() -> None:
    both = np.array([[0.0], [1.0]])
    assert kernel_distance(np.zeros((5, 1)), np.ones((5, 1)), 2) == (7, 0)  # 1 + 8 - 2
    assert kernel_distance(both, both, 2) == (-3.5, 0)  # 1 + 1 - 2 (1 + 1 + 1 + 8) / 4
    # Below 1,000 samples every subset is all of them.
    assert kernel_distance(*pair((50, 50, 16)), 3)[1] == pytest.approx(0, abs=1e-12)


# Precision and recall


def brute_force(real: np.ndarray, made: np.ndarray, k: int = 3) -> tuple[float, float]:
    def squared(x: np.ndarray, y: np.ndarray) -> float:
        return float(((x.astype(np.float64) - y.astype(np.float64)) ** 2).sum())

    def share(points: np.ndarray, of: np.ndarray) -> float:
        radii = [sorted(squared(x, y) for j, y in enumerate(of) if j != i)[k - 1]
                 for i, x in enumerate(of)]  # fmt: skip
        inside = [any(squared(p, x) <= r for x, r in zip(of, radii, strict=True)) for p in points]
        return float(np.mean(inside))

    return share(made, real), share(real, made)


@pytest.mark.parametrize("shape", [(60, 50, 3), (40, 60, 100), (50, 50, 1)])
def test_precision_and_recall_are_those_of_a_loop(shape: tuple[int, int, int]) -> None:
    real, made = pair(shape)
    for k in (1, 3, 5):
        assert share_inside(real, made, k) == brute_force(real, made, k)


def test_precision_and_recall_with_ties_and_equal_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few grid points, many samples: nearly all distances are tied and many are 0."""
    monkeypatch.setattr(metrics, "BLOCK", 64)
    seen = set()
    for seed in range(100):
        rng = np.random.default_rng(seed)
        n, m, d = rng.integers(4, 14), rng.integers(4, 14), rng.integers(1, 4)
        real = rng.integers(0, 4, (n, d)).astype(np.float32)
        made = rng.integers(0, 4, (m, d)).astype(np.float32) * rng.choice([1, -0.0, 2])
        k = int(rng.integers(1, 4))
        expected = brute_force(real, made, k)
        assert share_inside(real, made, k) == expected, seed
        seen.add(expected)
    assert len(seen) > 30


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precision_and_recall_do_not_see_a_shift(dtype: type) -> None:
    """On a grid of 1/64 the shifted features are exact, so nothing at all may change."""
    real, made = ((np.round(x * 64) / 64).astype(dtype) for x in pair((90, 80, 12)))
    expected = share_inside(real, made)
    assert 0 < min(expected) < max(expected) < 1
    for shift in (100, 1e4, *([1e10] if dtype is np.float64 else [])):
        far = dtype(shift)
        assert (real + far - far == real).all()
        assert share_inside(real + far, made + far) == expected


def test_a_gap_that_cancels_in_the_fast_formula() -> None:
    """Points on a line 1e-6 apart, far from the centre of all: only differences can tell."""
    line = np.arange(10)[:, None] * 2.0**-20
    real = np.vstack([line, line + 2.0**10])
    made = np.vstack([line[:4], line[:4] + 12 * 2.0**-20])
    squares = (real**2).sum(1)[:, None] + (real**2).sum(1) - 2 * real @ real.T
    assert squares[12, 13] != (2.0**-20) ** 2  # what it would be taken for
    assert share_inside(real, made) == brute_force(real, made) == (5 / 8, 8 / 20)


def test_blocks_do_not_change_precision_and_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = pair((90, 80, 12))
    expected = share_inside(real, made)
    for block in (1, 50, 1000):
        monkeypatch.setattr(metrics, "BLOCK", block)
        assert share_inside(real, made) == expected


def test_collapsed_sets() -> None:
    real, made = pair((50, 40, 6))
    one = np.repeat(made[:1], 40, 0)
    assert share_inside(real, real) == (1, 1)
    assert share_inside(one, one) == (1, 1)
    assert share_inside(real, np.repeat(real[:1], 40, 0)) == (1, 1 / 50)
    assert share_inside(real, one) == brute_force(real, one)
    assert share_inside(real, one + 100) == (0, 0)


@pytest.mark.parametrize("shape", [(200, 150, 8), (60, 80, 128)])
def test_precision_and_recall_are_torch_fidelitys(shape: tuple[int, int, int]) -> None:
    """Theirs is torch.cdist in float64: the same decisions where none is near a tie."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, made = pair(shape)
    made = made @ np.diag(np.linspace(0.5, 1.5, shape[2]))
    theirs = prc_features_to_metric(torch.from_numpy(made), torch.from_numpy(real), verbose=False)
    expected = theirs["precision"], theirs["recall"]  # means in float32
    assert share_inside(real, made) == pytest.approx(expected, abs=1e-6)
    assert expected[0] != expected[1]


# Inception score


def test_inception_score_by_hand() -> None:
    assert inception_score(np.zeros((12, 7))) == pytest.approx((1, 0), abs=1e-12)
    classes = np.eye(9)[np.arange(90) % 9]
    assert inception_score(classes * 5000)[0] == pytest.approx(9, rel=1e-12)
    mixture = np.log([[0.9, 0.1], [0.1, 0.9]])
    expected = np.exp(0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5))
    for shift in (0, 1e4):  # logits have no origin
        assert inception_score(mixture + shift)[0] == pytest.approx(expected, rel=1e-10)
    # Split 0 is sure of four classes, split 1 of one, the partial split 2 of two.
    logits = np.eye(8, dtype=np.float32)[[0, 1, 2, 3, 5, 5, 5, 5, 6, 7]] * 1000
    expected = np.mean([4, 1, 2]), np.std([4, 1, 2])
    assert inception_score(logits, split=4) == pytest.approx(expected, rel=1e-12)
    assert inspect.signature(inception_score).parameters["split"].default == 5000


def test_inception_score_is_torch_fidelitys() -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = np.random.default_rng(0).normal(size=(300, 20)).astype(np.float32) * 3
    theirs = isc_features_to_metric(torch.from_numpy(logits), splits=3, shuffle=False)
    mean, std = inception_score(logits, split=100)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert std == pytest.approx(theirs["inception_score_std"], rel=1e-10)


# Refusals

GOOD, NAN, NORMAL = np.zeros((5, 3)), np.full((5, 3), np.nan), (np.zeros(3), np.eye(3))


@pytest.mark.parametrize(
    ("function", "given", "why"),
    [
        (frechet_distance, [GOOD, GOOD[:1]], r"Fréchet distance: .* shape \(1, 3\); .* 2 or more"),
        (frechet_distance, [GOOD[0], GOOD], r"the shape \(3,\)"),
        (frechet_distance, [GOOD, NAN], "NaN"),
        (frechet_distance, [np.zeros((5, 4)), NORMAL], "4 and 3 dimensions"),
        (kernel_distance, [GOOD, GOOD[:1]], "kernel distance: .* 2 or more"),
        (kernel_distance, [GOOD, GOOD[:, :2]], "kernel distance: 3 and 2 dimensions.*--size"),
        (share_inside, [GOOD, GOOD[:3]], "k = 3: .* 4 or more samples"),
        (share_inside, [GOOD, NAN], "NaN"),
        (inception_score, [GOOD[:0]], "Inception score: .* 1 or more samples"),
    ],
)
def test_what_cannot_be_measured(function: Callable[..., Any], given: list, why: str) -> None:
    with pytest.raises(UserError, match=why):
        function(*given)
