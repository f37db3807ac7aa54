"""Gaussian diffusion: noising and targets for training, diffusers' schedulers for sampling.

x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e, with a_t the running product of 1 - beta (DDPM, Ho et al.
2020, equation 4) and the linear betas of CausalFusion (section 4).
"""

from typing import Any

import numpy as np

from mmfusion.config import DiffusionConfig
from mmfusion.sequence import Noise


class Diffusion:
    """The forward process and what the decoder is to predict of it."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        betas = np.linspace(config.beta_start, config.beta_end, config.timesteps)
        self.alpha_bar = np.cumprod(1 - betas)

    def noised(self, clean: np.ndarray, timestep: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """x_t for clean latents and noise (..., N, D) and integer timesteps (..., N)."""
        keep = self.alpha_bar[timestep][..., None]
        return (np.sqrt(keep) * clean + np.sqrt(1 - keep) * noise).astype(np.float32)

    def target(self, clean: np.ndarray, timestep: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The decoder's target: noise, clean latents, or velocity (Salimans & Ho 2022)."""
        if self.config.prediction == "epsilon":
            return noise.astype(np.float32)
        if self.config.prediction == "sample":
            return np.broadcast_to(clean, noise.shape).astype(np.float32)
        keep = self.alpha_bar[timestep][..., None]
        return (np.sqrt(keep) * noise - np.sqrt(1 - keep) * clean).astype(np.float32)

    def draw(self, clean: np.ndarray, rng: np.random.Generator) -> Noise:
        """Noise for a training image (N, D): in each copy one timestep for all its AR steps."""
        tokens, copies = len(clean), self.config.noisy_copies
        timestep = rng.integers(self.config.timesteps, size=(copies, 1)).repeat(tokens, axis=1)
        noise = rng.standard_normal((copies, *clean.shape), dtype=np.float32)
        return Noise(
            latents=self.noised(clean, timestep, noise),
            target=self.target(clean, timestep, noise),
            timesteps=timestep.astype(np.float32),
            start_weight=self.config.weight_start,
        )

    def scheduler(self, name: str) -> Any:
        """A fresh diffusers scheduler: they carry state, so each AR step takes its own.

        ddpm at linspace spacing with the large fixed variance is the paper's respaced sampler.
        """
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
        from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

        common = {
            "num_train_timesteps": self.config.timesteps,
            "beta_start": self.config.beta_start,
            "beta_end": self.config.beta_end,
            "beta_schedule": "linear",
            "prediction_type": self.config.prediction,
            "timestep_spacing": "linspace",
        }
        if name == "ddpm":
            return DDPMScheduler(**common, variance_type="fixed_large", clip_sample=False)
        if name == "ddim":
            return DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=True)
        if name == "unipc":
            return UniPCMultistepScheduler(**common)
        return DPMSolverMultistepScheduler(**common, use_lu_lambdas=True)
