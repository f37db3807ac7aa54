"""One arm with one seed: trained, sampled, scored, and its result left in a file.

Any process can do it. Pictures and captions of all arms come from the same seeds.
"""

import copy
import io
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor, nn

from mmfusion import files, losses
from mmfusion.attention import ByRow
from mmfusion.codecs.image import PixelCodec
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import ModelConfig
from mmfusion.decoder import Decoder
from mmfusion.diffusion import Diffusion
from mmfusion.eval.captions.scores import score
from mmfusion.packing import collate
from mmfusion.pipeline import Pipeline
from mmfusion.rng import generator
from mmfusion.sequence import Document, Image, Label, Row, Segment, count, null_form
from mmfusion.split import draw_split

from .arms import ARMS, Arm, Size, model_config
from .data import Data, read_data
from .models import DiT, Scores, parameters, trained

Job = tuple[str, str, int]
"""Data set, arm, seed."""


# Files


def place(output: Path, job: Job) -> Path:
    """Where a job's result lies."""
    name, arm, seed = job
    plain = "".join(c if c.isalnum() or c in ".-" else "_" for c in arm)
    return output / name / f"{plain}-{seed}.json"


def judge_file(output: Path, name: str, size: Size) -> Path:
    """Where the judge of a data set at a size of pictures lies."""
    return output / name / f"judge-{size.picture}.safetensors"


def made_of(arm: Arm, size: Size, data: Data) -> dict[str, Any]:
    """All that a result depends on beside the seed and this code."""
    model = model_config(arm, size, data, "tokenizer").model_dump(mode="json")
    return {"kind": arm.kind, "sampled": list(arm.sampled), "size": asdict(size), "model": model}


def finished(job: Job, size: Size, data: Data, output: Path) -> bool:
    """Whether the job's result is there, of the same size, model and recipe."""
    path = place(output, job)
    return path.is_file() and json.loads(path.read_text("utf-8")).get("made_of") == made_of(
        ARMS[job[1]], size, data
    )


def run(job: Job, size: Size, folder: Path, output: Path, device: str) -> None:
    """Train and score one arm with one seed, and leave the result in its file."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")  # TF32 where there is any
    name, arm, seed = job[0], ARMS[job[1]], job[2]
    data = read_data(name, size.picture, folder)
    tokenizer = output / name / "tokenizer.model"
    scores = Scores(trained(data, judge_file(output, name, size), device), data, size.samples)
    started = time.process_time()
    config, model, history = train(arm, seed, size, data, tokenizer, device)
    between = time.process_time()
    found, shown = measure(arm, config, model, size, data, tokenizer, scores)
    result = {
        **found,
        "made_of": made_of(arm, size, data),
        "parameters": parameters(model),
        "loss": float(np.mean(history[-size.steps // 10 :])),
        "train_seconds": between - started,
        "score_seconds": time.process_time() - between,
        "device": device,
    }
    path, pictures = place(output, job), io.BytesIO()
    np.save(pictures, shown)
    files.write(path.with_suffix(".npy"), pictures.getvalue())
    files.write(path, json.dumps(result).encode())


# Training


class Documents:
    """A step's documents: which pictures, noise and timesteps is the same for every arm."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer | None, data: Data) -> None:
        self.config, self.tokenizer, self.data = config, tokenizer, data
        self.diffusion = Diffusion(config.diffusion)
        pictures = [PILImage.fromarray(p) for p in data.train.pixels]
        self.latents = PixelCodec(config.image).encode(pictures)

    def make(self, seed: int, step: int, number: int) -> Document:
        """Document `number` of a step; each purpose draws from a generator of its own."""
        choice, cut, noise = (
            generator(purpose, seed, step, number) for purpose in ("choice", "split", "noise")
        )
        at = int(choice.integers(len(self.latents)))
        dropped = choice.random() < self.config.diffusion.dropout
        label, columns = int(self.data.train.labels[at]), self.config.image.grid[1]
        c, clean = self.config.diffusion, self.latents[at]
        split = draw_split(len(clean), c.ar_decay, c.order, cut, c.ar_steps)
        target = Image(clean, columns, split, self.diffusion.draw(clean, split, noise))
        if self.tokenizer is None:
            given: Segment = Label(label)
        else:
            captions = self.data.captions(label, int(self.data.train.tones[at]))
            caption = captions[choice.integers(len(captions))]
            if number % 2:
                return [Image(clean, columns), self.tokenizer.answer(caption)]
            given = self.tokenizer.given(caption)
        document: Document = [given, target]
        return null_form(document) if dropped else document


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
    tokens = config.decoder.label_tokens  # one document a row
    length = max(count(document, tokens).tokens for document in documents)
    rows = [Row.of(config, length) for _ in documents]
    for row, document in zip(rows, documents, strict=True):
        row.document(document)
    batch = collate(rows, padded=True).to(device)
    predicted, logits = model(batch, ByRow(batch, flex=False))
    part = losses.sums(predicted, logits, batch)
    return losses.total(part, part.noisy, part.targets, text_weight=0.2)


def train(
    arm: Arm, seed: int, size: Size, data: Data, tokenizer: Path, device: str
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
        rise, fall = (step + 1) / size.warmup, (1 - step / size.steps) / size.anneal
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
            for mean, new in zip(averaged.parameters(), model.parameters(), strict=True):
                mean.lerp_(new, 1 - keep)
        history.append(float(loss.detach()))
    return config, averaged.eval(), history


# Sampling


def measure(
    arm: Arm,
    config: ModelConfig,
    model: nn.Module,
    size: Size,
    data: Data,
    tokenizer: Path,
    scores: Scores,
) -> tuple[dict[str, Any], np.ndarray]:
    """An arm's figures at each number of AR steps, without guidance, and ten pictures at one."""
    labels = (np.arange(size.samples) % len(data.names)).tolist()
    if isinstance(model, DiT):
        pixels = dit_pictures(model, config, labels, size)
        return {"1": scores(pixels, labels)}, pixels[:10]
    assert isinstance(model, Decoder)
    words = Tokenizer(str(tokenizer)) if arm.kind == "joint" else None
    pipeline = Pipeline(config, model, words)
    found: dict[str, Any] = {}
    shown: list[np.ndarray] = []
    for steps in arm.sampled:
        options: dict[str, Any] = {
            "ar_steps": steps, "num_inference_steps": size.inference_steps,
            "scheduler": "dpmsolver++", "batch_size": 500,
        }  # fmt: skip
        if words:
            prompts = [data.captions(label, i // len(data.names) % 3)[i % 4]
                       for i, label in enumerate(labels)]  # fmt: skip
            made = pipeline.text_to_image(prompts, **options)
        else:
            made = pipeline.class_to_image(labels, **options)
        pixels = np.stack([np.asarray(picture) for picture in made])
        found[str(steps)] = scores(pixels, labels)
        shown.append(pixels[:10])
    if words:
        found["captions"] = captions(pipeline, size, data)
    return found, shown[0]


def captions(pipeline: Pipeline, size: Size, data: Data) -> dict[str, Any]:
    """CIDEr of pictures that no model saw, and the shares that name class and tone rightly."""
    part = data.test
    n = min(size.captions, len(part))
    pictures = [PILImage.fromarray(p) for p in part.pixels[:n]]
    written = pipeline.image_to_text(pictures, batch_size=500, max_new_tokens=24)
    right = [data.captions(int(part.labels[i]), int(part.tones[i])) for i in range(n)]
    cider = score(right, written, ["cider"], "plain").figures["cider"]
    exact = [text in allowed for text, allowed in zip(written, right, strict=True)]
    return {"cider": cider["value"], "exact": float(np.mean(exact)), "n": n}


@torch.inference_mode()
def dit_pictures(model: DiT, config: ModelConfig, labels: list[int], size: Size) -> np.ndarray:
    """A DiT's pictures (n, H, H), from the noises that a decoder's come from."""
    process = Diffusion(config.diffusion)
    scheduler = process.scheduler("dpmsolver++", size.inference_steps)
    shape = config.image.tokens, config.image.latent_dim
    device = model.latent_in.weight.device
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(i))
             for i in range(len(labels))]  # fmt: skip
    x, y = torch.stack(noise).to(device), torch.tensor(labels, device=device)
    for step in range(len(scheduler.timesteps)):
        t = torch.full((len(x),), process.timestep(scheduler, step), device=device)
        x = process.step(scheduler, step, model(x, t, y), x)
    made = PixelCodec(config.image).decode(x.cpu().numpy())
    return np.stack([np.asarray(picture) for picture in made])
