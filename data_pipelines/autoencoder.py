"""Train a small diffusers AutoencoderKL on the pictures of shards, for who has no hub at hand.

The loss is the squared error of the pixels and a touch of KL (Rombach et al. 2022, without a
perceptual or adversarial part). Latents get noise of a random strength on their way to the decoder,
so that small errors of whoever predicts them stay small in the picture.

All draws of a step are a function of seed and step, and the state of the last checkpoint is exact:
the same command goes on after a kill as if nothing had been.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from mmfusion import files, locks
from mmfusion.codecs.image import VAE_FILES, PixelCodec
from mmfusion.config import ImageConfig
from mmfusion.errors import CorruptSample, UserError, user_error
from mmfusion.rng import generator
from mmfusion.training.together import Stop, tell
from mmfusion.training.zero_shards import MOMENTS, moments

from .shards import Shards

STATE, PAGE = "training.safetensors", "report.html"
KL = 1e-6  # beside the squared error, both summed over a picture
WARMUP = 100  # steps
MOST_HELD_OUT, SHARE_HELD_OUT = 256, 0.05
MOST_MEASURED = 1024  # pictures that the scale of the latents is measured on
MOST_IN_A_ROW = 100  # unusable pictures, after which there is nothing to wait for
SMALL_DEVIATION = -6.0  # log variance of the posterior that training begins with


@dataclass(frozen=True)
class Recipe:
    """How it is trained: `width` channels at full resolution, at most 8 times as many below."""

    batch: int = 16
    lr: float = 2e-3
    width: int = 16
    noise: float = 0.2
    """Most noise on the latents, in their deviations; each picture's is drawn below it."""
    seed: int = 0


class Pictures:
    """The pictures of shards, of which some are held out."""

    def __init__(self, pattern: str, config: ImageConfig, seed: int) -> None:
        self.shards, self.config, self.seed = Shards(pattern), config, seed
        order = generator(seed, "held out").permutation(len(self.shards))
        cut = min(MOST_HELD_OUT, max(1, int(SHARE_HELD_OUT * len(order))))
        self.held, self.trained = np.sort(order[:cut]), np.sort(order[cut:])
        if not len(self.trained):
            raise UserError(f"{pattern}: one picture is too few to train an autoencoder on")

    def held_out(self) -> list[PILImage.Image]:
        """Those that are not trained on; what cannot be read is passed over."""
        return list(self._readable(self.held))

    def some(self) -> list[PILImage.Image]:
        """A sample of those that are trained on."""
        order = generator(self.seed, "measured").permutation(len(self.trained))
        return list(self._readable(self.trained[order[:MOST_MEASURED]]))

    def batch(self, step: int, size: int, rng: np.random.Generator) -> list[PILImage.Image]:
        """The pictures of a step; half of them are mirrored."""
        found = []
        for n in range(step * size, (step + 1) * size):
            epoch, place = divmod(n, len(self.trained))
            picture = self._read(self.trained[_order(self.seed, epoch, len(self.trained))[place]])
            tries = 0
            while picture is None:  # another takes its place
                tries += 1
                picture = self._read(rng.choice(self.trained))
                if picture is None and tries == MOST_IN_A_ROW:
                    raise UserError(
                        f"{self.shards.pattern}: {tries} pictures in a row are unusable"
                    )
            mirrored = rng.random() < 0.5
            flipped = PILImage.Transpose.FLIP_LEFT_RIGHT
            found.append(picture.transpose(flipped) if mirrored else picture)
        return found

    def _readable(self, numbers: np.ndarray) -> Iterator[PILImage.Image]:
        return (picture for n in numbers if (picture := self._read(n)) is not None)

    def _read(self, number: int) -> PILImage.Image | None:
        try:
            return self.shards.sample(int(number)).picture()
        except CorruptSample:
            return None


@lru_cache(2)
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    return generator(seed, "autoencoder", epoch).permutation(size)


def network(config: ImageConfig, recipe: Recipe) -> Any:
    """A fresh autoencoder for the config's pictures and latents."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.resnet import ResnetBlock2D

    levels = config.downsampling.bit_length()
    if config.codec != "vae" or levels < 2 or config.downsampling != 2 ** (levels - 1):
        raise UserError(
            f"image: an autoencoder needs codec vae and a downsampling of 2, 4, 8, ...; the config "
            f"has {config.codec} and {config.downsampling}"
        )
    if recipe.width % 4:
        raise UserError(f"width {recipe.width}: give a multiple of 4")
    torch.manual_seed(recipe.seed)
    vae = AutoencoderKL(
        in_channels=config.channels,
        out_channels=config.channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(recipe.width * min(2**n, 8) for n in range(levels)),
        norm_num_groups=recipe.width // 4,
        latent_channels=config.latent_channels,
        sample_size=config.size,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        vae.quant_conv.bias[config.latent_channels :] = SMALL_DEVIATION
        for block in vae.modules():  # each begins as its shortcut: twice as fast at first
            if isinstance(block, ResnetBlock2D):
                block.conv2.weight.zero_()
    return vae


def loss(vae: Any, x: Tensor, noise: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the squared error in it, of pictures (B, c, H, W) in [-1, 1].

    Args:
        noise: standard normal, like the latents.
        strength: (B, 1, 1, 1) of the noise beyond the posterior's, in the latents' deviation.
    """
    posterior = vae.encode(x).latent_dist
    added = strength * posterior.mean.detach().std()
    drawn = posterior.mean + (posterior.var + added**2).sqrt() * noise
    error = (vae.decode(drawn).sample - x).square().mean()
    return error + KL * posterior.kl().mean() / x[0].numel(), error


class Trainer:
    """A run in a folder, from its last checkpoint if there is one."""

    def __init__(
        self,
        pictures: Pictures,
        folder: Path,
        recipe: Recipe,
        device: str | torch.device = "cpu",
    ) -> None:
        """Make the network, or read it back.

        Raises:
            UserError: the folder holds something else, or was begun with other settings.
        """
        config = pictures.config
        self.pictures, self.folder, self.recipe, self.device = pictures, folder, recipe, device
        keys = ("size", "channels", "latent_channels", "downsampling")
        image = {key: getattr(config, key) for key in keys}
        self.settings = {**asdict(recipe), **image, "shards": pictures.shards.digest}
        self.vae = network(config, recipe).to(device, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.Adam(self.vae.parameters(), recipe.lr, betas=(0.9, 0.99))
        self.codec, self.step = PixelCodec(config), 0
        for name in (*VAE_FILES, PAGE):
            files.check_free(folder / name, (folder / STATE).exists())
        if (folder / STATE).exists():
            self._restore()
        locks.keep(folder, "trains")

    def run(self, steps: int, save_every: int) -> None:
        """Train to step `steps`; the rate falls to zero there, along a half cosine.

        Raises:
            SystemExit: SIGINT (130), SIGTERM (143) or SIGHUP (129) came; the last step is saved.
        """
        config, recipe = self.pictures.config, self.recipe
        side = config.size // config.downsampling
        shape = (recipe.batch, config.latent_channels, side, side)
        with (
            Stop(said=True) as stop,
            tqdm(total=steps, initial=self.step, unit="step", disable=None) as bar,
        ):
            saved = self.step
            while self.step < steps and not stop.signal:
                rng = generator(recipe.seed, "autoencoder", "step", self.step)
                x = self._pixels(self.pictures.batch(self.step, recipe.batch, rng))
                noise = torch.from_numpy(rng.standard_normal(shape, np.float32)).to(self.device)
                drawn = rng.random((recipe.batch, 1, 1, 1), np.float32)
                strength = recipe.noise * torch.from_numpy(drawn).to(self.device)
                rate = recipe.lr * min(1, (self.step + 1) / WARMUP)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate * (1 + np.cos(np.pi * self.step / steps)) / 2
                whole, error = loss(self.vae, x, noise, strength)
                self.optimizer.zero_grad()
                whole.backward()
                norm = torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
                if not (whole + norm).isfinite():  # before it gets into the weights
                    raise UserError(
                        f"{self.folder}: step {self.step + 1}: loss or gradient not finite; give a "
                        f"lower --lr (now {recipe.lr:g}) and another folder"
                    )
                self.optimizer.step()
                self.step += 1
                bar.update()
                bar.set_postfix_str(f"{-10 * np.log10(error.item() / 4):.1f} dB", refresh=False)
                if self.step % save_every == 0:
                    self._save()
                    saved = self.step
            if saved != self.step:  # at the end, or at a signal
                self._save()
        if stop.signal:
            tell(f"stopped; the same command goes on from step {self.step}")
            sys.exit(128 + stop.signal)

    def _pixels(self, pictures: list[PILImage.Image]) -> Tensor:
        x = torch.from_numpy(self.codec.latents(pictures)).to(self.device)
        return x.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def write(self) -> int:
        """Write the diffusers folder, with the scale that gives its latents variance 1.

        Returns:
            The number of its parameters.
        """
        self.vae.eval()
        pictures, batch = self.pictures.some(), self.recipe.batch
        count, total, squares = 0, 0.0, 0.0
        for at in range(0, len(pictures), batch):
            found = self.vae.encode(self._pixels(pictures[at : at + batch])).latent_dist
            mean = found.mean.double()
            count, total = count + mean.numel(), total + float(mean.sum())
            squares += float((mean.square() + found.var).sum())
        shift = total / count
        scale = 1 / max(squares / count - shift**2, 1e-12) ** 0.5
        self.vae.register_to_config(scaling_factor=scale, shift_factor=shift)
        made = save({k: w.cpu().contiguous() for k, w in self.vae.state_dict().items()})
        weights, described = VAE_FILES
        with files.staging(self.folder) as part:
            (part / weights).write_bytes(made)
            (part / described).write_text(self.vae.to_json_string(), encoding="utf-8")
            files.remove(self.folder / described)  # killed here, it is none, and not a mixed one
            for name in VAE_FILES:
                files.move(part / name, self.folder / name)
        files.remove_empty(part)
        return sum(parameter.numel() for parameter in self.vae.parameters())

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.vae.named_parameters():
            adam = moments(self.optimizer, parameter)
            kept = {"weight": parameter, **{key: adam[key] for key in MOMENTS}}
            tensors |= {f"{k}/{name}": t.detach().cpu().contiguous() for k, t in kept.items()}
        # One entry: safetensors writes several in any order.
        state = json.dumps({"step": self.step, "settings": self.settings})
        files.write(self.folder / STATE, save(tensors, {"state": state}))

    def _restore(self) -> None:
        path = self.folder / STATE
        wrong = (OSError, ValueError, KeyError, TypeError, SafetensorError)
        with (
            user_error(f"{path}: no state of an autoencoder's training; delete it", *wrong),
            safe_open(path, "pt") as opened,
            torch.no_grad(),
        ):
            state = json.loads(opened.metadata()["state"])
            before, self.step = state["settings"], state["step"]
            other = [key for key in self.settings if before.get(key) != self.settings[key]]
            if other:
                raise UserError(
                    f"{self.folder}: was begun with other settings ({', '.join(other)}); set them "
                    "back to go on, or give another folder"
                )
            for name, parameter in self.vae.named_parameters():
                adam = moments(self.optimizer, parameter)
                for kind, tensor in {"weight": parameter, **adam}.items():
                    if kind == "step":
                        tensor.fill_(self.step)
                    else:
                        tensor.copy_(opened.get_tensor(f"{kind}/{name}"))
