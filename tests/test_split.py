"""Splits into AR steps: their distributions are the paper's (section 3)."""

from collections import Counter
from math import comb

import numpy as np
import pytest
from scipy.stats import chisquare

from mmfusion.errors import UserError
from mmfusion.split import (
    cut,
    draw_sizes,
    draw_split,
    draw_steps,
    even_sizes,
    step_weights,
    token_order,
)

ENOUGH = 1e-3  # p-value below which a draw of the right distribution is not believed


@pytest.mark.parametrize("decay", [0.9, 0.5, 1.0])
def test_number_of_steps_falls_by_the_decay(decay: float) -> None:
    tokens, draws = 12, 6000
    rng = np.random.default_rng(0)
    found = Counter(draw_steps(tokens, decay, rng) for _ in range(draws))
    assert set(found) <= set(range(1, tokens + 1))
    share = decay ** np.arange(tokens)
    expected = draws * share / share.sum()
    observed = [found[s + 1] for s in range(tokens)]
    assert chisquare(observed, expected).pvalue > ENOUGH


@pytest.mark.parametrize(("tokens", "steps"), [(7, 3), (6, 2), (6, 5), (5, 5), (5, 1)])
def test_compositions_are_uniform(tokens: int, steps: int) -> None:
    """All ways of cutting `tokens` into `steps` positive sizes come equally often."""
    rng = np.random.default_rng(1)
    kinds, draws = comb(tokens - 1, steps - 1), 3000
    found = Counter(tuple(draw_sizes(tokens, steps, rng)) for _ in range(draws))
    for sizes in found:
        assert sum(sizes) == tokens
        assert len(sizes) == steps
        assert min(sizes) >= 1
    assert len(found) == kinds
    if kinds > 1:
        assert chisquare(list(found.values())).pvalue > ENOUGH


def test_random_order_is_a_uniform_permutation() -> None:
    rng = np.random.default_rng(2)
    found = Counter(tuple(token_order(4, "random", rng)) for _ in range(2400))
    assert len(found) == 24
    assert chisquare(list(found.values())).pvalue > ENOUGH


def test_raster_order_is_row_by_row() -> None:
    split = draw_split(9, 0.9, "raster", np.random.default_rng(0), steps=4)
    np.testing.assert_array_equal(np.concatenate(split), np.arange(9))


@pytest.mark.parametrize("seed", range(20))
def test_a_split_holds_each_token_once(seed: int) -> None:
    split = draw_split(16, 0.9, "random", np.random.default_rng(seed))
    assert sorted(np.concatenate(split)) == list(range(16))
    assert min(map(len, split)) >= 1


def test_fixed_number_of_steps() -> None:
    rng = np.random.default_rng(0)
    assert {len(draw_split(16, 0.9, "random", rng, steps=5)) for _ in range(50)} == {5}
    assert len(draw_split(4, 0.9, "random", rng, steps=5)) == 4  # no more steps than tokens


def test_cut_keeps_the_order() -> None:
    parts = cut(np.array([5, 3, 1, 0, 2, 4]), [1, 3, 2])
    assert [part.tolist() for part in parts] == [[5], [3, 1, 0], [2, 4]]


@pytest.mark.parametrize("tokens", [1, 7, 16])
def test_even_sizes(tokens: int) -> None:
    for steps in range(1, tokens + 1):
        sizes = even_sizes(tokens, steps)
        assert (sum(sizes), len(sizes)) == (tokens, steps)
        assert max(sizes) - min(sizes) <= 1
        assert sizes == sorted(sizes, reverse=True)
    for steps in (0, tokens + 1):
        with pytest.raises(UserError, match=f"choose 1 to {tokens}"):
            even_sizes(tokens, steps)


def test_weight_of_a_step_is_two_minus_its_start() -> None:
    split = cut(np.arange(10), [2, 5, 1, 2])
    assert step_weights(split, 2.0) == pytest.approx([2 - 0 / 10, 2 - 2 / 10, 2 - 7 / 10, 2 - 0.8])
    assert step_weights(split, 1.0) == [1.0] * 4
    assert step_weights(split, 3.0) == pytest.approx([3 - 2 * s / 10 for s in (0, 2, 7, 8)])
