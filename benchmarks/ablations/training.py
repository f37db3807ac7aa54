"""One arm trained with one seed: documents in, an averaged model out."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor, nn

from mmfusion import losses
from mmfusion.codecs.image import PixelCodec
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import ModelConfig
from mmfusion.decoder import Decoder
from mmfusion.diffusion import Diffusion
from mmfusion.mask import dense_mask
from mmfusion.packing import Batch, collate
from mmfusion.rng import generator
from mmfusion.sequence import Document, Image, Label, Row, Segment, count, null_form
from mmfusion.split import draw_split

from .arms import Arm, Size, model_config
from .data import Data, LabelledImages
from .dit import DiT


class Documents:
    """A step's documents: which pictures, noise and timesteps is the same for every arm."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer | None, data: Data) -> None:
        self.config, self.tokenizer, self.data = config, tokenizer, data
        self.diffusion = Diffusion(config.diffusion)
        self.latents = latents(config, data.train)

    def make(self, seed: int, step: int, number: int) -> Document:
        """Document `number` of a step; each purpose draws from a generator of its own."""
        choice, cut, noise = (
            generator(purpose, seed, step, number) for purpose in ("choice", "split", "noise")
        )
        place = int(choice.integers(len(self.latents)))
        dropped = choice.random() < self.config.diffusion.dropout
        label = int(self.data.train.labels[place])
        columns = self.config.image.grid[1]
        c = self.config.diffusion
        clean = self.latents[place]
        split = draw_split(len(clean), c.ar_decay, c.order, cut, c.ar_steps)
        target = Image(clean, columns, split, self.diffusion.draw(clean, split, noise))
        if self.tokenizer is None:
            given: Segment = Label(label)
        else:
            captions = self.data.captions(label, int(self.data.train.tones[place]))
            caption = captions[choice.integers(len(captions))]
            if number % 2:
                return [Image(clean, columns), self.tokenizer.answer(caption)]
            given = self.tokenizer.given(caption)
        document: Document = [given, target]
        return null_form(document) if dropped else document


def latents(config: ModelConfig, pictures: LabelledImages) -> np.ndarray:
    """All pictures as latent tokens (n, N, D)."""
    return PixelCodec(config.image).encode([PILImage.fromarray(p) for p in pictures.pixels])


def make_batch(documents: list[Document], config: ModelConfig) -> Batch:
    """Documents as a batch, one a row."""
    tokens = config.decoder.label_tokens
    length = max(count(document, tokens).tokens for document in documents)
    rows = [Row(length, config.image.latent_dim, tokens) for _ in documents]
    for row, document in zip(rows, documents, strict=True):
        row.document(document)
    return collate(rows)


def loss_of(model: nn.Module, documents: list[Document], config: ModelConfig) -> Tensor:
    """The training loss: the library's, or for a DiT the same over the same targets."""
    device = next(model.parameters()).device
    if isinstance(model, DiT):
        labels = [d[0].label if isinstance(d[0], Label) else None for d in documents]
        noises = [d[1].noise for d in documents if isinstance(d[1], Image) and d[1].noise]
        x, target = (
            torch.from_numpy(np.stack([getattr(n, name)[0] for n in noises])).to(device)
            for name in ("latents", "target")
        )
        t = torch.tensor([float(n.timesteps[0, 0]) for n in noises], device=device)
        y = torch.tensor([model.classes if lab is None else lab for lab in labels], device=device)
        return (model(x, t, y) - target).square().mean()
    batch = make_batch(documents, config).to(device)
    mask = dense_mask(batch.doc, batch.order, batch.stream)
    predicted, logits = model(batch, mask)
    part = losses.sums(predicted, logits, batch)
    return losses.total(part, part.noisy, part.targets, text_weight=0.2)


def train(
    arm: Arm,
    seed: int,
    size: Size,
    data: Data,
    tokenizer: Path,
    device: str,
    tell: Callable[[float], None] = lambda share: None,
) -> tuple[ModelConfig, nn.Module, list[float]]:
    """Train from scratch; the weights' moving average is returned, with the loss of each step."""
    config = model_config(arm, size, data, str(tokenizer))
    words = Tokenizer(str(tokenizer)) if arm.kind == "joint" else None
    torch.manual_seed(seed)
    model: nn.Module
    model = DiT(config) if arm.kind == "dit" else Decoder(config, len(words) if words else 0)
    model.to(device)
    averaged = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), size.lr, (0.9, 0.95), weight_decay=0.0)
    documents = Documents(config, words, data)
    history = []
    for step in range(size.steps):
        share = step / size.steps
        rise, fall = (step + 1) / size.warmup, (1 - share) / size.anneal
        for group in optimizer.param_groups:
            group["lr"] = size.lr * min(1.0, rise, fall)
        made = [documents.make(seed, step, number) for number in range(size.batch)]
        loss = loss_of(model, made, config)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            keep = min(size.ema, (step + 1) / (step + 10))
            pairs = zip(averaged.parameters(), model.parameters(), strict=True)
            for mean, new in pairs:
                mean.lerp_(new, 1 - keep)
        history.append(float(loss.detach()))
        tell((step + 1) / size.steps)
    return config, averaged.eval(), history
