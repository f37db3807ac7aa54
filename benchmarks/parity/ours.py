"""What our code makes of a case: predictions, losses and pictures of an imported checkpoint.

Shapes: B rows, N tokens, D numbers in a latent token.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.parity.cases import GUIDANCE, STEPS, Case, Given, save
from benchmarks.parity.noise import NoiseSource
from mmfusion.attention import ByDocument
from mmfusion.cache import Seat
from mmfusion.codecs.image import patches
from mmfusion.config import ModelConfig, Sampling
from mmfusion.decoder import Decoder
from mmfusion.diffusion import Diffusion
from mmfusion.export import read
from mmfusion.generation.session import Session
from mmfusion.generation.stepper import Passes, run
from mmfusion.importers.causalfusion import Options, import_causalfusion
from mmfusion.losses import sums, total
from mmfusion.packing import collate
from mmfusion.sequence import Document, Image, Label, Noise, Row, Segment
from mmfusion.split import cut


def load(case: Case) -> "Ours":
    """The case's checkpoint, imported and exported and read again."""
    with tempfile.TemporaryDirectory() as folder:
        save(case, Path(folder, "official.pt"))
        options = Options(channels=case.channels)
        import_causalfusion(Path(folder, "official.pt"), Path(folder, "model"), options)
        config, decoder, _ = read(Path(folder, "model"))
    return Ours(config, decoder)


def document(config: ModelConfig, given: Given, row: int) -> Document:
    """One row's label and target picture."""
    diffusion = Diffusion(config.diffusion)
    latents, noise = (patches(x[row], config.image.patch) for x in (given.latents, given.noise))
    timesteps = np.full((1, len(latents)), given.timesteps[row])
    noised = Noise(
        latents=diffusion.noised(latents[None], timesteps, noise[None]),
        target=diffusion.target(latents[None], timesteps, noise[None]),
        timesteps=timesteps.astype(np.float32),
        weight=np.ones(timesteps.shape),
        start_weight=config.diffusion.weight_start,
    )
    split = cut(given.order[row], given.sizes)
    image = Image(latents, config.image.grid[1], split, noised)
    return [label(config, given, row), image]


def label(config: ModelConfig, given: Given, row: int) -> Label:
    """One row's label; the null class is None to us."""
    number = int(given.labels[row])
    return Label(None if number == len(config.classes) else number)


def row_of(config: ModelConfig, given: Given, row: int) -> Row:
    """One row's document as tokens."""
    c = config
    written = Row.of(c, c.row_length)
    written.document(document(c, given, row))
    return written


class Ours:
    """An imported model."""

    def __init__(self, config: ModelConfig, decoder: Decoder) -> None:
        self.config, self.decoder = config, decoder

    def gradients(self, given: Given) -> dict[str, Tensor]:
        """The loss's gradient by each of our parameters."""
        self.decoder.requires_grad_(True)
        names, parameters = zip(*self.decoder.named_parameters(), strict=True)
        found = torch.autograd.grad(self.trained(given)[1], parameters)
        return dict(zip(names, found, strict=True))

    def cached(self, given: Given, kept: int) -> Tensor:
        """Guided noise of the tokens after the first `kept`, which are clean: (B, N - kept, D)."""
        session = self._session(given, [torch.Generator()] * len(given.labels))
        return run(self.decoder, self._cached(session, given, kept))

    def _cached(self, session: Session, given: Given, kept: int) -> Passes[Tensor]:
        c = self.config
        latents, noise = (
            torch.from_numpy(patches(x, c.image.patch)) for x in (given.latents, given.noise)
        )
        order = torch.from_numpy(given.order)
        if kept:
            yield from session._keep_image(latents, order[:, :kept])
        rows, cells = range(2 * len(order)), order[:, kept:]
        batch = session._image_batch(rows, cells, noisy=True)
        latent = noise.gather(1, cells[..., None].expand(-1, -1, noise.shape[2])).repeat(2, 1, 1)
        level = torch.tensor([float(given.timesteps[0])])
        noisy = replace(batch, latent=latent.flatten(0, 1), timestep=level)
        output, _ = yield noisy, Seat(session.cache, list(rows))
        cond, uncond = output.unflatten(0, (len(rows), -1)).chunk(2)
        return uncond + GUIDANCE * (cond - uncond)

    def sampled(
        self,
        given: Given,
        noise: NoiseSource,
        sizes: list[int],
        interval: tuple[float, float],
        steps: int = STEPS,
    ) -> Tensor:
        """Latents (B, N, D) of pictures drawn in raster order, in AR steps of these sizes."""
        sampling = Sampling(
            guidance=GUIDANCE,
            guidance_interval=list(interval),
            num_inference_steps=steps,
            scheduler="ddpm",
            order="raster",
            ar_sizes=sizes,
        )
        with noise.generators(len(given.labels)) as generators:
            session = self._session(given, generators)
            return torch.from_numpy(run(self.decoder, session.drawing(sampling, follows=False)))

    def trained(self, given: Given) -> tuple[Tensor, Tensor]:
        """Predicted noise (B, N, D), in the order of generation, and the loss ()."""
        batch = collate([row_of(self.config, given, row) for row in range(len(given.labels))])
        latents, logits = self.decoder(batch, ByDocument(batch))
        part = sums(latents, logits, batch)
        latents = latents.unflatten(0, (len(given.labels), -1))
        return latents, total(part, part.noisy, part.targets, text_weight=1.0)

    def _session(self, given: Given, generators: list[torch.Generator]) -> Session:
        c = self.config
        length = c.decoder.label_tokens + c.image.tokens
        session = Session(self.decoder, c, None, length, generators, guided=True)
        labels: list[Segment] = [label(c, given, row) for row in range(len(given.labels))]
        run(self.decoder, session.reading(labels))
        return session
