"""How far an answer is drawn away from the unconditional one, and when (Ho & Salimans 2022)."""

import math

from mmfusion.config import Sampling


def guidance_scale(sampling: Sampling, noise: float, done: float) -> float:
    """Scale w of uncond + w (cond - uncond) at a denoising step; 1 needs no unconditional pass.

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
