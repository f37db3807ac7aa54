"""Pictures and captions of a trained arm, all from the same seeds."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import nn

from mmfusion.codecs.image import PixelCodec
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import ModelConfig
from mmfusion.decoder import Decoder
from mmfusion.diffusion import Diffusion
from mmfusion.eval.captions.scores import score
from mmfusion.pipeline import Pipeline

from .arms import Arm, Size
from .data import Data
from .dit import DiT
from .judge import Scores


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
    number = np.arange(size.samples)
    labels = number % len(data.names)
    options = {"num_inference_steps": size.inference_steps, "scheduler": "dpmsolver++"}
    if isinstance(model, DiT):
        pixels = dit_pictures(model, config, labels, size)
        return {"1": scores(pixels, labels)}, pixels[:10]
    assert isinstance(model, Decoder)
    words = Tokenizer(str(tokenizer)) if arm.kind == "joint" else None
    pipeline = Pipeline(config, model, words)
    common: dict[str, Any] = {"batch_size": 500, **options}
    found: dict[str, Any] = {}
    shown = None
    for steps in arm.sampled:
        if words:
            tones = number // len(data.names) % 3
            prompts = [data.captions(int(c), int(t))[i % 4]
                       for i, (c, t) in enumerate(zip(labels, tones, strict=True))]  # fmt: skip
            made = pipeline.text_to_image(prompts, ar_steps=steps, **common)
        else:
            made = pipeline.class_to_image(labels.tolist(), ar_steps=steps, **common)
        pixels = np.stack([np.asarray(picture) for picture in made])
        found[str(steps)] = scores(pixels, labels)
        shown = pixels[:10] if shown is None else shown
    if words:
        found["captions"] = captions(pipeline, size, data)
    assert shown is not None
    return found, shown


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
def dit_pictures(model: DiT, config: ModelConfig, labels: np.ndarray, size: Size) -> np.ndarray:
    """A DiT's pictures (n, H, H), from the noises that a decoder's come from."""
    process, codec = Diffusion(config.diffusion), PixelCodec(config.image)
    scheduler = process.scheduler("dpmsolver++", size.inference_steps)
    shape = config.image.tokens, config.image.latent_dim
    device = model.latent_in.weight.device
    noise = [
        torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(len(labels))
    ]
    x, y = torch.stack(noise).to(device), torch.from_numpy(labels).to(device)
    for step in range(len(scheduler.timesteps)):
        t = torch.full((len(x),), process.timestep(scheduler, step), device=device)
        x = process.step(scheduler, step, model(x, t, y), x)
    return np.stack([np.asarray(picture) for picture in codec.decode(x.cpu().numpy())])
