"""Imported checkpoints still do what they do in the official code.

tests/golden/parity.npz holds what the official code gave, as `python -m benchmarks.parity
--official DIR --golden FILE` wrote it; weights, inputs and noise are remade from NumPy's Philox.
"""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.parity.cases import GOLDEN_CASES, Case
from benchmarks.parity.noise import PhiloxNoise
from benchmarks.parity.ours import load
from benchmarks.parity.results import BARS, GOLDEN_DRAWS, error, recipe, results

GOLDEN = Path(__file__).parent / "golden" / "parity.npz"


@pytest.mark.parametrize("case", GOLDEN_CASES, ids=[case.name for case in GOLDEN_CASES])
def test_results_are_those_of_the_official_code(case: Case) -> None:
    with np.load(GOLDEN, allow_pickle=False) as file:
        golden = {name: file[name] for name in file.files if name.startswith(f"{case.name}/")}
    # Sums over thousands of numbers: anything else than rounding is another recipe.
    np.testing.assert_allclose(recipe(case), golden.pop(f"{case.name}/recipe"), rtol=1e-6)
    made = list(results(load(case), case, PhiloxNoise(case), GOLDEN_DRAWS))
    assert {f"{case.name}/{name}" for _, name, _ in made} == set(golden)
    wrong = {
        name: found
        for kind, name, array in made
        if not (found := error(array, golden[f"{case.name}/{name}"])) <= BARS[kind]
    }
    assert not wrong


def test_the_cases_are_no_special_ones() -> None:
    """Nothing compared is nought, constant or the same in two rows."""
    with np.load(GOLDEN, allow_pickle=False) as file:
        for name in file.files:
            array = file[name]
            if array.ndim == 3:
                assert array.std() > 0.1, name
                assert np.abs(array[0] - array[1]).max() > 0.1, name
                assert len(np.unique(array)) > 0.9 * array.size, name
    assert GOLDEN.stat().st_size < 300_000
