"""A sampler's steps as numbers: every scheduler that we offer is linear.

Step i makes x_{i+1} = Σ_k (a_k x_{i-k} + b_k o_{i-k}) + c z, k = 0, 1, 2, of latents x, of what the
decoder made of them, o, and of fresh noise z. The numbers are read off diffusers' scheduler, run
once on unit vectors; denoising then needs neither it nor its state.
"""

from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from typing import Annotated, NamedTuple

import torch
from pydantic import Field, TypeAdapter

from mmfusion import files
from mmfusion.config import DiffusionConfig
from mmfusion.diffusion import Diffusion
from mmfusion.errors import UserError
from mmfusion.home import cache_folder
from mmfusion.jsonl import dumps

FORM = 1  # of what is kept
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


KEPT = TypeAdapter(Annotated[tuple[Step, ...], Field(min_length=1)])


@lru_cache(maxsize=64)
def steps_of(config: str, scheduler: str, steps: int) -> tuple[Step, ...]:
    """The steps of a scheduler, from noise to latents, for a `DiffusionConfig` as JSON.

    They are kept in the cache folder: to import diffusers takes longer than to draw an image.
    """
    asked = {"config": config, "scheduler": scheduler, "steps": steps}
    name = sha256(dumps(asked | {"form": FORM, "diffusers": version("diffusers")}).encode())
    path = None
    with suppress(UserError, OSError, ValueError):  # nowhere to keep them, none yet, or damaged
        path = cache_folder() / "samplers" / f"{name.hexdigest()}.json"
        return KEPT.validate_json(path.read_bytes())
    found = probed(DiffusionConfig.model_validate_json(config), scheduler, steps)
    if path:
        with suppress(UserError, OSError):
            files.write(path, dumps(found).encode())
    return found


def probed(config: DiffusionConfig, scheduler: str, steps: int) -> tuple[Step, ...]:
    """The same, read off diffusers."""
    diffusion = Diffusion(config)
    made = diffusion.scheduler(scheduler, steps)
    count = len(made.timesteps)
    # Coordinates: nothing, the noise at the start, the output and the fresh noise of each step.
    unit = torch.eye(2 + 2 * count, dtype=torch.float64)
    held, found = [unit[1]], []
    for number in range(count):
        timestep = diffusion.timestep(made, number)
        before, seed = held[-1][None], torch.Generator().manual_seed(number)
        after = diffusion.step(made, number, unit[2 + number][None], before, [seed])[0]
        noise = torch.randn(before.shape, generator=seed.manual_seed(number), dtype=before.dtype)
        share = float(after[0] / noise[0, 0])
        after = after - share * (noise[0] - unit[2 + count + number])
        own = [*held[: -HISTORY - 1 : -1], *unit[2 : 3 + number].flip(0)[:HISTORY]]
        known = torch.stack([*own, unit[2 + count + number]], 1)
        shares = torch.linalg.lstsq(known, after[:, None], driver="gelsd").solution
        rest = known @ shares - after[:, None]
        if rest.abs().max() > OFF:
            raise AssertionError(f"{scheduler}: step {number} is not linear in what it may read")
        numbers, half = shares[:, 0].tolist(), len(own) // 2
        found.append(Step(timestep, numbers[:half], numbers[half:-1], share))
        held.append(after)
    return tuple(found)
