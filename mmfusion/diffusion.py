"""Gaussian diffusion: noising and targets for training, diffusers' schedulers for sampling.

x_t = a_t x_0 + s_t e. On the path of DDPM a_t² is the running product of 1 - beta (Ho et al. 2020,
equation 4; the linear betas of CausalFusion, section 4) and a_t² + s_t² = 1; on the path of flow
matching s_t = t / T and a_t = 1 - s_t (Lipman et al. 2023; Liu et al. 2023).

Shapes: K noisy copies, N tokens of an image, D numbers in a token, S AR steps.
"""

from functools import partial
from typing import Any

import numpy as np
from torch import Generator, Tensor

from mmfusion.config import DiffusionConfig
from mmfusion.sequence import Noise
from mmfusion.split import Split


class Diffusion:
    """The forward process, what the decoder is to predict of it, and the way back."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        betas = np.linspace(config.beta_start, config.beta_end, config.timesteps)
        self.alpha_bar = np.cumprod(1 - betas)

    def scales(self, timestep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """a_t and s_t of timesteps: whole numbers in [0, T) for DDPM, any in [0, T] for flow."""
        if self.config.path == "flow":
            noise = timestep / self.config.timesteps
            return 1 - noise, noise
        keep = self.alpha_bar[timestep.astype(int)]
        return np.sqrt(keep), np.sqrt(1 - keep)

    def noised(self, clean: np.ndarray, timestep: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """x_t for clean latents and noise (..., N, D) and timesteps (..., N)."""
        a, s = (scale[..., None] for scale in self.scales(timestep))
        return (a * clean + s * noise).astype(np.float32)

    def target(self, clean: np.ndarray, timestep: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The decoder's target: noise, clean latents, or the velocity of the path.

        Velocity is a_t e - s_t x_0 for DDPM (Salimans & Ho 2022), e - x_0 for flow matching.
        """
        if self.config.prediction == "epsilon":
            made = noise
        elif self.config.prediction == "sample":
            made = np.broadcast_to(clean, noise.shape)
        elif self.config.path == "flow":
            made = noise - clean
        else:
            a, s = (scale[..., None] for scale in self.scales(timestep))
            made = a * noise - s * clean
        return made.astype(np.float32)

    def timesteps(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Training timesteps (count,): uniform, or logit-normal (Esser et al. 2024, section 3)."""
        c = self.config
        if c.timestep_law == "logit_normal":
            share = 1 / (1 + np.exp(-rng.normal(c.logit_mean, c.logit_std, count)))
        else:
            share = rng.random(count)
        drawn = share * c.timesteps
        return drawn if c.path == "flow" else np.minimum(np.floor(drawn), c.timesteps - 1)

    def weights(self, timestep: np.ndarray) -> np.ndarray:
        """Loss weights of timesteps: 1, or what makes an error of x_0 one of the velocity."""
        if not self.config.velocity_loss:
            return np.ones(timestep.shape)
        return 1 / np.maximum(self.scales(timestep)[1], 0.05) ** 2

    def draw(self, clean: np.ndarray, split: Split, rng: np.random.Generator) -> Noise:
        """Noise for a training image (N, D): in each copy one timestep, or one for each AR step."""
        copies, steps = self.config.noisy_copies, len(split)
        each = steps if self.config.timestep_per == "step" else 1
        drawn = self.timesteps(copies * each, rng).reshape(copies, each)
        timestep = np.empty((copies, len(clean)))
        for step, cells in enumerate(split):
            timestep[:, cells] = drawn[:, [step % each]]
        noise = rng.standard_normal((copies, *clean.shape), dtype=np.float32)
        return Noise(
            latents=self.noised(clean, timestep, noise),
            target=self.target(clean, timestep, noise),
            timesteps=timestep.astype(np.float32),
            weight=self.weights(timestep),
            start_weight=self.config.weight_start,
        )

    def scheduler(self, name: str | None, steps: int) -> Any:
        """A fresh diffusers scheduler, set to `steps`: they carry state, each AR step takes one.

        ddpm at linspace spacing with the large fixed variance is the paper's respaced sampler.
        """
        from diffusers import schedulers as known

        name = name or self.config.schedulers[0]
        flow = self.config.path == "flow"
        if name == "euler":
            euler: Any = known.FlowMatchEulerDiscreteScheduler(self.config.timesteps)
            # From all noise in even steps; its own would spend the last one on a thousandth.
            euler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
            return euler
        common: dict[str, Any] = {
            "num_train_timesteps": self.config.timesteps,
            "beta_start": self.config.beta_start,
            "beta_end": self.config.beta_end,
            "beta_schedule": "linear",
            "prediction_type": "flow_prediction" if flow else self.config.prediction,
            "timestep_spacing": "linspace",
        }
        makers: dict[str, Any] = {
            "ddpm": partial(known.DDPMScheduler, variance_type="fixed_large", clip_sample=False),
            "ddim": partial(known.DDIMScheduler, clip_sample=False, set_alpha_to_one=True),
            "unipc": partial(known.UniPCMultistepScheduler, use_flow_sigmas=flow),
            "dpmsolver++": partial(
                known.DPMSolverMultistepScheduler, use_lu_lambdas=not flow, use_flow_sigmas=flow
            ),
        }
        made = makers[name](**common)
        made.set_timesteps(steps)
        return made

    def timestep(self, scheduler: Any, step: int) -> float:
        """The timestep in [0, T] at which the decoder stands at a scheduler's step."""
        if self.config.path == "flow":  # some schedulers round their own timesteps
            return float(scheduler.sigmas[step]) * self.config.timesteps
        return float(scheduler.timesteps[step])

    def step(
        self,
        scheduler: Any,
        number: int,
        output: Tensor,
        x: Tensor,
        generators: list[Generator] | None = None,
    ) -> Tensor:
        """Latents x (B, N, D) after a scheduler's step, given what the decoder predicts of it.

        Of the schedulers only DDPM draws noise: (1, N, D) from each picture's generator, but none
        at the last step.
        """
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        if self.config.path == "flow" and self.config.prediction == "sample":
            output = (x - output) * (self.config.timesteps / self.timestep(scheduler, number))
        draws = {"generator": generators} if isinstance(scheduler, DDPMScheduler) else {}
        return scheduler.step(output, scheduler.timesteps[number], x, **draws).prev_sample
