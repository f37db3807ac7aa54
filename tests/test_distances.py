"""Distances between feature sets: other projects' functions, brute force, and closed forms."""

from collections.abc import Callable

import numpy as np
import pytest

from mmfusion.errors import UserError
from mmfusion.eval.distances import checked, manifold
from mmfusion.eval.distances.frechet import frechet_distance, frechet_from_moments, moments
from mmfusion.eval.distances.inception_score import inception_score
from mmfusion.eval.distances.kernel import kernel_distance
from mmfusion.eval.distances.manifold import precision_recall

REGULAR, DEFICIENT = (400, 300, 16), (30, 20, 64)
ONE_DEFICIENT, MANY_OF_ONE = (300, 20, 64), (20, 300, 64)
SHAPES = [REGULAR, DEFICIENT, ONE_DEFICIENT, MANY_OF_ONE]


def pair(shape: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two correlated sets, of (n, d) and (k, d)."""
    n, k, d = shape
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / np.sqrt(d)
    return a, rng.normal(size=(k, d)) + 0.3


@pytest.fixture
def tiny_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "BLOCK", 64)
    monkeypatch.setattr(manifold, "BLOCK", 64)


# Fréchet distance


def torch_fidelity_fid(a: np.ndarray, b: np.ndarray) -> float:
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    stats = (fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b))
    return fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]


def torchmetrics_fid(a: np.ndarray, b: np.ndarray) -> float:
    import torch
    from torchmetrics.image.fid import _compute_fid

    sides = [m for x in (a, b) for m in (x.mean(0), np.cov(x, rowvar=False))]
    return _compute_fid(*map(torch.from_numpy, sides)).item()


def clean_fid(a: np.ndarray, b: np.ndarray) -> float:
    from cleanfid.fid import frechet_distance as theirs

    sides = [m for x in (a, b) for m in (x.mean(0), np.cov(x, rowvar=False))]
    try:
        return float(theirs(*sides))
    except TypeError as error:
        if "disp" not in str(error):
            raise
        pytest.skip("clean-fid's Fréchet distance needs a scipy whose sqrtm still has `disp`")


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
@pytest.mark.parametrize("theirs", [torch_fidelity_fid, torchmetrics_fid, clean_fid])
@pytest.mark.parametrize("shape", SHAPES)
def test_frechet_distance_is_that_of_other_projects(
    theirs: Callable[[np.ndarray, np.ndarray], float], shape: tuple[int, int, int]
) -> None:
    a, b = pair(shape)
    # Roots of zero eigenvalues are rounding errors of 1e-8 each in theirs.
    rel = 1e-12 if shape == REGULAR else 1e-6
    assert frechet_distance(a, b) == pytest.approx(theirs(a, b), rel=rel)


@pytest.mark.parametrize("shape", SHAPES)
def test_features_and_moments_give_the_same_distance(shape: tuple[int, int, int]) -> None:
    a, b = pair(shape)
    mean, cov = moments(a)
    np.testing.assert_allclose(mean, a.mean(0), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(a, rowvar=False), rtol=1e-9, atol=1e-12)
    expected = frechet_distance(a, b)
    for left, right in ((moments(a), b), (a, moments(b)), (moments(a), moments(b))):
        assert frechet_distance(left, right) == pytest.approx(expected, rel=1e-11)
        assert frechet_distance(right, left) == pytest.approx(expected, rel=1e-11)
    assert frechet_from_moments(*moments(a), *moments(b)) == pytest.approx(expected, rel=1e-11)


def test_moments_in_blocks_are_the_moments(tiny_blocks: None) -> None:
    a = pair(REGULAR)[0].astype(np.float32) + 1000
    wide = a.astype(np.float64)
    mean, cov = moments(a)
    assert mean.dtype == cov.dtype == np.float64
    np.testing.assert_allclose(mean, wide.mean(0), rtol=1e-13)
    np.testing.assert_allclose(cov, np.cov(wide, rowvar=False), rtol=1e-10, atol=1e-12)


def test_frechet_distance_of_half_precision_is_taken_in_double() -> None:
    a, b = (x.astype(np.float16) for x in pair(REGULAR))
    wide = frechet_distance(a.astype(np.float64), b.astype(np.float64))
    assert frechet_distance(a, b) == pytest.approx(wide, rel=1e-13)


@pytest.mark.parametrize("n", [40, 5])
def test_frechet_distance_of_scaled_and_shifted_features(n: int) -> None:
    """sFID is this distance on spatial features: s x + t is |t + (s - 1) m|^2 + (s - 1)^2 tr A."""
    a = np.random.default_rng(1).normal(size=(n, 14))
    gap = 2 + 2 * a.mean(0)
    expected = gap @ gap + 4 * a.var(0, ddof=1).sum()
    assert frechet_distance(a, 3 * a + 2) == pytest.approx(expected, rel=1e-12)
    # exact sample moments: four corners of a square, mean 0, covariance 4/3
    corners = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert frechet_distance(corners, corners * 2 + 1) == pytest.approx(2 * 4 / 3 + 2, rel=1e-14)


def test_frechet_distance_ignores_dead_features_and_equal_samples() -> None:
    a, b = pair(REGULAR)
    dead = [np.hstack([x, np.full((len(x), 3), 7.0)]) for x in (a, b)]
    assert frechet_distance(*dead) == pytest.approx(frechet_distance(a, b), rel=1e-12)
    same = np.repeat(a[:1], 50, 0)
    assert frechet_distance(same, same) == pytest.approx(0, abs=1e-30)  # the mean is rounded
    spread = frechet_distance(same, b)
    assert spread == pytest.approx(np.sum((a[0] - b.mean(0)) ** 2) + b.var(0, ddof=1).sum())


def test_frechet_distance_refuses_moments_that_are_none() -> None:
    good = (np.zeros(3), np.eye(3))
    with pytest.raises(UserError, match=r"second moments have the shapes \(3,\) and \(2, 2\)"):
        frechet_distance(good, (np.zeros(3), np.eye(2)))
    with pytest.raises(UserError, match="first moments have NaN"):
        frechet_distance((np.zeros(3), np.full((3, 3), np.inf)), good)
    with pytest.raises(UserError, match="second covariance is not symmetric"):
        frechet_distance(good, (np.zeros(3), np.triu(np.ones((3, 3)))))
    with pytest.raises(UserError, match="4 and 3 dimensions"):
        frechet_distance(np.zeros((5, 4)), good)
    with pytest.raises(UserError, match="2 or more samples"):
        moments(np.zeros((1, 3)))


# Kernel distance


@pytest.mark.parametrize("shape", [REGULAR, (60, 50, 128)])
def test_kernel_distance_is_torch_fidelitys(shape: tuple[int, int, int]) -> None:
    import torch
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = pair(shape)
    options = {"kid_subsets": 7, "kid_subset_size": 40, "rng_seed": 2020, "verbose": False}
    theirs = kid_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), **options)
    mean, std = kernel_distance(a, b, subsets=7, size=40)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-12)
    assert std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-12)
    assert std > 0
    assert kernel_distance(a, b, subsets=7, size=40, seed=1)[0] != mean


def test_kernel_distance_defaults_are_torch_fidelitys() -> None:
    import torch
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = pair((1100, 1050, 3))
    theirs = kid_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), verbose=False)
    assert kernel_distance(a, b) == pytest.approx(tuple(theirs.values()), rel=1e-10)


@pytest.mark.parametrize("shape", [REGULAR, DEFICIENT])
def test_kernel_distance_of_all_samples_is_torchmetrics(shape: tuple[int, int, int]) -> None:
    import torch
    from torchmetrics.image.kid import poly_mmd

    a, b = pair(shape)
    size = min(len(a), len(b))
    a, b = a[:size], b[:size]
    expected = poly_mmd(torch.from_numpy(a), torch.from_numpy(b)).item()
    mean, std = kernel_distance(a, b, subsets=3)  # smaller than 1,000: every subset is all of it
    assert mean == pytest.approx(expected, rel=1e-11)
    assert std == pytest.approx(0, abs=1e-12)


def test_kernel_distance_of_all_samples_is_clean_fids() -> None:
    from cleanfid.fid import kernel_distance as theirs

    a, b = pair((200, 200, 16))
    expected = theirs(a, b, num_subsets=1, max_subset_size=200)
    assert kernel_distance(a, b, subsets=1)[0] == pytest.approx(expected, rel=1e-11)


def test_kernel_distance_takes_single_precision_in_double() -> None:
    a, b = (x.astype(np.float32) for x in pair(REGULAR))
    wide = kernel_distance(a.astype(np.float64), b.astype(np.float64), subsets=3, size=50)
    assert kernel_distance(a, b, subsets=3, size=50) == pytest.approx(wide, rel=1e-13)


def test_kernel_distance_by_hand() -> None:
    both = np.array([[0.0], [1.0]])
    assert kernel_distance(np.zeros((5, 1)), np.ones((5, 1)), 2) == (7, 0)  # 1 + 8 - 2
    assert kernel_distance(both, both, 2) == (-3.5, 0)  # 1 + 1 - 2 (1 + 1 + 1 + 8) / 4


def test_kernel_distance_refuses_what_it_cannot_measure() -> None:
    good = np.zeros((5, 2))
    with pytest.raises(UserError, match="kernel distance: the second feature set has the shape"):
        kernel_distance(good, np.zeros((1, 2)))
    with pytest.raises(UserError, match="kernel distance: 2 and 3 dimensions"):
        kernel_distance(good, np.zeros((5, 3)))
    with pytest.raises(UserError, match="kernel distance: the first feature set has NaN"):
        kernel_distance(np.full((5, 2), np.nan), good)
    for wrong in ({"subsets": 0}, {"size": 1}):
        with pytest.raises(UserError, match="give 1 or more of 2 or more"):
            kernel_distance(good, good, **wrong)


# Precision and recall


def brute_force(real: np.ndarray, made: np.ndarray, k: int) -> tuple[float, float]:
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
        assert precision_recall(real, made, k) == brute_force(real, made, k)


def test_precision_and_recall_with_ties_and_equal_points(tiny_blocks: None) -> None:
    """Few grid points, many samples: nearly all distances are tied and many are 0."""
    seen = set()
    for seed in range(100):
        rng = np.random.default_rng(seed)
        n, m, d = rng.integers(4, 14), rng.integers(4, 14), rng.integers(1, 4)
        real = rng.integers(0, 4, (n, d)).astype(np.float32)
        made = rng.integers(0, 4, (m, d)).astype(np.float32) * rng.choice([1, -0.0, 2])
        k = int(rng.integers(1, 4))
        expected = brute_force(real, made, k)
        assert precision_recall(real, made, k) == expected, seed
        seen.add(expected)
    assert len(seen) > 30


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precision_and_recall_do_not_see_a_shift(dtype: type) -> None:
    """On a grid of 1/64 the shifted features are exact, so nothing at all may change."""
    real, made = ((np.round(x * 64) / 64).astype(dtype) for x in pair((90, 80, 12)))
    expected = precision_recall(real, made)
    assert 0 < min(expected) < max(expected) < 1
    for shift in (100, 1e4, *([1e10] if dtype is np.float64 else [])):
        far = dtype(shift)
        assert (real + far - far == real).all()
        assert precision_recall(real + far, made + far) == expected


def test_shift_of_features_that_are_not_on_a_grid() -> None:
    real, made = (x.astype(np.float32) for x in pair((90, 80, 12)))
    expected = precision_recall(real, made)
    for shift in (100, 1e4):
        far = np.float32(shift)
        assert precision_recall(real + far, made + far) == brute_force(real + far, made + far, 3)
    wide = real.astype(np.float64) + 100, made.astype(np.float64) + 100
    assert precision_recall(*wide) == expected


def test_a_gap_that_cancels_in_the_fast_formula() -> None:
    """Points on a line 1e-6 apart, far from the centre of all: only differences can tell."""
    line = np.arange(10)[:, None] * 2.0**-20
    real = np.vstack([line, line + 2.0**10])
    made = np.vstack([line[:4], line[:4] + 12 * 2.0**-20])
    squares = (real**2).sum(1)[:, None] + (real**2).sum(1) - 2 * real @ real.T
    assert squares[12, 13] != (2.0**-20) ** 2  # what it would be taken for
    assert precision_recall(real, made) == brute_force(real, made, 3) == (5 / 8, 8 / 20)


def test_blocks_do_not_change_precision_and_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = pair((90, 80, 12))
    expected = precision_recall(real, made)
    for block in (1, 50, 1000):
        monkeypatch.setattr(checked, "BLOCK", block)
        monkeypatch.setattr(manifold, "BLOCK", block)
        assert precision_recall(real, made) == expected


def test_collapsed_sets() -> None:
    real, made = pair((50, 40, 6))
    one = np.repeat(made[:1], 40, 0)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(one, one) == (1, 1)
    assert precision_recall(real, np.repeat(real[:1], 40, 0)) == (1, 1 / 50)
    assert precision_recall(real, one) == brute_force(real, one, 3)
    assert precision_recall(real, one + 100) == (0, 0)


@pytest.mark.parametrize("shape", [(200, 150, 8), (60, 80, 128)])
def test_precision_and_recall_are_torch_fidelitys(shape: tuple[int, int, int]) -> None:
    """Theirs is torch.cdist in float64: the same decisions where none is near a tie."""
    import torch
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, made = pair(shape)
    made = made @ np.diag(np.linspace(0.5, 1.5, shape[2]))
    theirs = prc_features_to_metric(torch.from_numpy(made), torch.from_numpy(real), verbose=False)
    expected = theirs["precision"], theirs["recall"]  # means in float32
    assert precision_recall(real, made) == pytest.approx(expected, abs=1e-6)
    assert expected[0] != expected[1]


def test_precision_and_recall_refuse_what_they_cannot_measure() -> None:
    good = np.zeros((5, 2))
    with pytest.raises(UserError, match=r"k = 3: the second feature set has .* 4 or more samples"):
        precision_recall(good, good[:3])
    with pytest.raises(UserError, match="k = 5: the first feature set"):
        precision_recall(good, np.zeros((9, 2)), k=5)
    with pytest.raises(UserError, match="k is 0"):
        precision_recall(good, good, k=0)
    with pytest.raises(UserError, match="2 and 3 dimensions"):
        precision_recall(good, np.zeros((5, 3)))
    with pytest.raises(UserError, match="NaN or infinite"):
        precision_recall(good, np.full((5, 2), np.inf))


# Inception score


def test_inception_score_by_hand() -> None:
    assert inception_score(np.zeros((12, 7))) == pytest.approx((1, 0), abs=1e-12)
    classes = np.eye(9)[np.arange(90) % 9]
    assert inception_score(classes * 5000)[0] == pytest.approx(9, rel=1e-12)
    mixture = np.log([[0.9, 0.1], [0.1, 0.9]])
    expected = np.exp(0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5))
    for shift in (0, 1e4):  # logits have no origin
        assert inception_score(mixture + shift)[0] == pytest.approx(expected, rel=1e-10)


def test_inception_score_splits_are_in_order_and_the_last_may_be_small() -> None:
    """Split 0 is sure of four classes, split 1 of one, the partial split 2 of two."""
    classes = np.array([0, 1, 2, 3, 5, 5, 5, 5, 6, 7])
    logits = np.eye(8, dtype=np.float32)[classes] * 1000
    mean, std = inception_score(logits, split=4)
    assert mean == pytest.approx((4 + 1 + 2) / 3, rel=1e-12)
    assert std == pytest.approx(np.std([4, 1, 2]), rel=1e-12)


def test_inception_score_is_torch_fidelitys() -> None:
    import torch
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = np.random.default_rng(0).normal(size=(300, 20)).astype(np.float32) * 3
    theirs = isc_features_to_metric(torch.from_numpy(logits), splits=3, shuffle=False)
    mean, std = inception_score(logits, split=100)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert std == pytest.approx(theirs["inception_score_std"], rel=1e-10)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_inception_score_is_torchmetrics() -> None:
    """Its splits are shuffled, so one split of all; in float64 as the features are."""
    import torch
    from torchmetrics.image.inception import InceptionScore

    logits = np.random.default_rng(0).normal(size=(50, 10)) * 3
    theirs = InceptionScore(feature=torch.nn.Identity(), splits=1)
    theirs.features = [torch.from_numpy(logits)]
    assert inception_score(logits)[0] == pytest.approx(theirs.compute()[0].item(), rel=1e-12)


def test_inception_score_refuses_what_it_cannot_measure() -> None:
    for bad in (np.zeros((0, 4)), np.zeros(4)):
        with pytest.raises(UserError, match=r"inception score: .* 1 or more samples"):
            inception_score(bad)
    with pytest.raises(UserError, match=r"inception score: .*NaN"):
        inception_score(np.full((3, 4), np.nan))
    with pytest.raises(UserError, match="splits of 0 samples"):
        inception_score(np.zeros((3, 4)), split=0)


def test_inception_score_splits_by_5000() -> None:
    logits = np.random.default_rng(0).normal(size=(6000, 4)) * 3
    assert inception_score(logits) == inception_score(logits, 5000) != inception_score(logits, 6000)
