"""What a call says of how an image comes about: its tokens' order, AR steps and guidance."""

import math

import torch
from torch import Tensor

from mmfusion.config import Sampling
from mmfusion.errors import UserError
from mmfusion.split import even_sizes


def token_order(sampling: Sampling, tokens: int, generator: torch.Generator) -> Tensor:
    """The order (tokens,) in which an image's grid cells are generated."""
    if isinstance(sampling.order, list):
        if sorted(sampling.order) != list(range(tokens)):
            raise UserError(f"order: needs each of the grid indices 0 to {tokens - 1} once")
        return torch.tensor(sampling.order)
    if sampling.order == "raster":
        return torch.arange(tokens)
    return torch.randperm(tokens, generator=generator)


def step_sizes(sampling: Sampling, tokens: int) -> list[int]:
    """How many of the tokens each AR step generates."""
    if sampling.ar_sizes is None:
        return even_sizes(tokens, sampling.ar_steps)
    if sum(sampling.ar_sizes) != tokens:
        raise UserError(
            f"ar_sizes: {sampling.ar_sizes} add up to {sum(sampling.ar_sizes)}; "
            f"{tokens} tokens are to be generated"
        )
    return sampling.ar_sizes


def guidance_scale(sampling: Sampling, noise: float, done: float) -> float:
    """Scale w of uncond + w (cond - uncond) at a denoising step (Ho & Salimans 2022).

    Where it is 1 no unconditional pass is needed.

    Args:
        noise: timestep as a share of the noise schedule, 0 clean to 1 noise.
        done: share of the image's tokens that are there after this AR step, 0 to 1.

    Outside [low, high) of the interval it is 1 (Kynkäänniemi et al. 2024); high 1 takes in the
    noise itself.
    """
    low, high = sampling.guidance_interval
    if noise < low or (noise >= high and high < 1):
        return 1.0
    match sampling.guidance_schedule:
        case "linear":
            share = 1 - noise
        case "cosine":
            share = (1 + math.cos(math.pi * noise)) / 2
        case "tokens":
            share = done
        case _:
            share = 1.0
    return 1 + (sampling.guidance - 1) * share
