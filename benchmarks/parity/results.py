"""All that is compared of a case, computed by either side, and the file of what the official gave.

Shapes: B rows, N tokens, D numbers in a latent token.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from torch import Tensor

from benchmarks.parity.cases import INTERVAL, Case, Given, given, weights
from benchmarks.parity.noise import NoiseSource
from mmfusion.rng import generator

# Largest relative errors that are no deviation; sampling sums up 250 roundings.
BARS = {"prediction": 1e-5, "loss": 1e-5, "gradient": 1e-5, "cached": 1e-5, "sampling": 1e-3}
GOLDEN_DRAWS = 2  # of inputs that are kept


class Side(Protocol):
    """The official model or ours."""

    def trained(self, given: Given) -> tuple[Tensor, Tensor]:
        """Predicted noise (B, N, D), in the order of generation, and the loss ()."""

    def gradients(self, given: Given) -> dict[str, Tensor]:
        """The loss's gradient by each parameter, under our names."""

    def cached(self, given: Given, kept: int) -> Tensor:
        """Guided noise of the tokens after the first `kept`, which are clean: (B, N - kept, D)."""

    def sampled(
        self, given: Given, noise: NoiseSource, sizes: list[int], interval: tuple[float, float]
    ) -> Tensor:
        """Latents (B, N, D) of pictures drawn in raster order, in AR steps of these sizes.

        There is guidance inside the interval of the noise schedule.
        """


def results(
    side: Side, case: Case, noise: NoiseSource, draws: int
) -> Iterator[tuple[str, str, np.ndarray]]:
    """What is measured (a key of BARS), its name, and the array."""
    for draw in range(draws):
        inputs = given(case, draw)
        prediction, loss = side.trained(inputs)
        yield "prediction", f"prediction {draw}", prediction.detach().numpy()
        yield "loss", f"loss {draw}", loss.detach().numpy()
        yield "gradient", f"gradient {draw}", projected(side.gradients(inputs))
        kept = draw % 2 * case.tokens // 2  # after the label alone, or after clean tokens too
        yield "cached", f"cached {draw}", side.cached(inputs, kept).numpy()
    inputs, whole, n = given(case, 0), (0.0, 1.0), case.tokens
    yield "sampling", "sampling", side.sampled(inputs, noise, [n], whole).numpy()
    yield "sampling", "sampling, interval", side.sampled(inputs, noise, [n], INTERVAL).numpy()
    steps = [n // 3, n - n // 3]
    yield "sampling", "sampling, 2 AR steps", side.sampled(inputs, noise, steps, whole).numpy()


def projected(gradients: dict[str, Tensor], directions: int = 8) -> np.ndarray:
    """Each tensor along some random directions, in the order of their names: (T, directions).

    A few numbers a tensor to keep instead of all; a wrong gradient is wrong along any of them.
    """
    along = []
    for name in sorted(gradients):
        flat = gradients[name].flatten().numpy()
        probe = generator("parity", "gradient", name).standard_normal((directions, flat.size))
        along.append(probe @ flat)
    return np.stack(along).astype(np.float32)


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The relative error max |ours - theirs| / max |theirs|; infinite if any is not finite."""
    if ours.shape != theirs.shape or not np.isfinite(ours).all() or not np.isfinite(theirs).all():
        return float("inf")
    return float(np.abs(ours.astype(np.float64) - theirs).max() / np.abs(theirs).max())


def recipe(case: Case) -> np.ndarray:
    """Sums over what the case is made of, which tell whether it is still the same: (3,)."""
    inputs = given(case, 0)
    return np.array(
        [
            sum(w.double().abs().sum().item() for w in weights(case).values()),
            np.abs(inputs.latents).sum(dtype=np.float64) + inputs.labels.sum(),
            np.abs(inputs.noise).sum(dtype=np.float64) + inputs.scores.sum(dtype=np.float64),
        ]
    )
