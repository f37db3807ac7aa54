"""A sampler's steps as numbers: every scheduler that we offer is linear.

Step i makes x_{i+1} = Σ_k (a_k x_{i-k} + b_k o_{i-k}) + c z, k = 0, 1, 2, of latents x, of what the
decoder made of them, o, and of fresh noise z. The numbers are read off diffusers' scheduler, run
once on unit vectors; denoising then needs neither it nor its state.
"""

from functools import lru_cache
from typing import NamedTuple

import torch

from mmfusion.config import DiffusionConfig
from mmfusion.diffusion import Diffusion

HISTORY = 3  # steps whose latents and outputs a step reads: its own and the two before
OFF = 1e-4  # a scheduler that is further from the form above is another kind


class Step(NamedTuple):
    """One step of a sampler.

    Attributes:
        timestep: where the decoder stands, in [0, T].
        latents, outputs: the shares of this step's and of those before, a and b, newest first.
        noise: the share of fresh noise, c; 0 where none is drawn.
    """

    timestep: float
    latents: list[float]
    outputs: list[float]
    noise: float


def steps_of(config: DiffusionConfig, scheduler: str | None, steps: int) -> tuple[Step, ...]:
    """The steps of a named scheduler, or of the config's own, from noise to latents."""
    return _probed(config.model_dump_json(), scheduler or config.schedulers[0], steps)


@lru_cache(maxsize=64)
def _probed(config: str, name: str, steps: int) -> tuple[Step, ...]:
    diffusion = Diffusion(DiffusionConfig.model_validate_json(config))
    scheduler = diffusion.scheduler(name, steps)
    count = len(scheduler.timesteps)
    # Coordinates: nothing, the noise at the start, the output and the fresh noise of each step.
    unit = torch.eye(2 + 2 * count, dtype=torch.float64)
    held, found = [unit[1]], []
    for number in range(count):
        timestep = diffusion.timestep(scheduler, number)
        before, seed = held[-1][None], torch.Generator().manual_seed(number)
        after = diffusion.step(scheduler, number, unit[2 + number][None], before, [seed])[0]
        noise = torch.randn(before.shape, generator=seed.manual_seed(number), dtype=before.dtype)
        share = float(after[0] / noise[0, 0])
        after = after - share * (noise[0] - unit[2 + count + number])
        own = [*held[: -HISTORY - 1 : -1], *unit[2 : 3 + number].flip(0)[:HISTORY]]
        known = torch.stack([*own, unit[2 + count + number]], 1)
        shares = torch.linalg.lstsq(known, after[:, None], driver="gelsd").solution
        rest = known @ shares - after[:, None]
        if rest.abs().max() > OFF:
            raise AssertionError(f"{name}: step {number} is not linear in what it may read")
        numbers, half = shares[:, 0].tolist(), len(own) // 2
        found.append(Step(timestep, numbers[:half], numbers[half:-1], share))
        held.append(after)
    return tuple(found)
