"""A CLIP model (Radford et al. 2021): pictures and texts as embeddings, by open_clip."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image as PILImage

from mmfusion.codecs.image import flat
from mmfusion.device import exact, one_thread
from mmfusion.errors import UserError
from mmfusion.export import default_device

from .weights import Source, find

BATCH = 64
"""Pictures or texts at a time; always the same, so that arithmetic is."""


def load_clip(spec: str, device: str | torch.device | None = None) -> "Clip":
    """A CLIP model for evaluation: fp32, its own preprocessing and tokenizer.

    Args:
        spec: `MODEL:TAG` of open_clip's registry, `MODEL:FILE`, a folder that open_clip saved, or
            `hf-hub:ORG/NAME`.
        device: default: this rank's GPU, or the CPU without one.
    """
    return Clip(find(spec), torch.device(device or default_device()))


class Clip:
    """Embeddings of pictures and texts in one space, in which likeness is a cosine.

    Attributes:
        name: model and weights, for figures.
        sha256: of the weights' file.
        version: digest of the model's config, activation and preprocessing.
        identity: all that embeddings depend on; a GPU's differ in their last bits.
        unsure: a warning where nothing tells which activation the weights were trained with.
    """

    def __init__(self, source: Source, device: torch.device) -> None:
        self.name, self.sha256, self._device = source.name, source.sha256, device
        act = "QuickGELU" if source.quick_gelu else "plain GELU"
        self.unsure = (
            ""
            if source.known
            else (f"{self.name}: weights of unknown origin, taken to be trained with {act}")
        )
        try:
            self._model = open_clip.create_model(
                source.model,
                None if ":" in source.model else str(source.file),
                require_pretrained=True,
                pretrained_text=False,
                force_preprocess_cfg=source.preprocess,
                quick_gelu=source.quick_gelu,
            )
            self._tokenizer = open_clip.get_tokenizer(source.model)
        except Exception as error:  # of open_clip, timm, transformers and torch
            message = " ".join(" ".join(str(error).splitlines()[:3]).split())[:300]
            raise UserError(
                f"CLIP model {source.name}: cannot load {source.file} as {source.model} ({message})"
            ) from None
        self._model = self._model.float().eval().requires_grad_(False).to(device)
        preprocess = self._model.visual.preprocess_cfg
        self._preprocess = image_transform_v2(PreprocessCfg(**preprocess), is_train=False)
        config = [open_clip.get_model_config(source.model), source.quick_gelu, preprocess]
        message = json.dumps(config, sort_keys=True, default=str)
        self.version = hashlib.sha256(message.encode()).hexdigest()
        self.identity = self.name, self.sha256, self.version, device.type

    def embed_images(
        self, pictures: Iterable[PILImage.Image | np.ndarray], normalised: bool = True
    ) -> np.ndarray:
        """Embeddings (n, d), float32, of PIL pictures or of uint8 (H, W, 3) arrays.

        Transparent pictures are laid on white.
        """
        return self._run(self._model.encode_image, pictures, self._pixels, normalised)

    def embed_texts(self, texts: Sequence[str], normalised: bool = True) -> np.ndarray:
        """Embeddings (n, d), float32; what is longer than the model's context is cut."""
        return self._run(self._model.encode_text, texts, self._tokenizer, normalised)

    def cut(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than the model's context."""
        length = self._tokenizer([""]).shape[1] + 1
        padding, *last = self._tokenizer(["", *texts], context_length=length)[:, -1]
        return sum(int(token != padding) for token in last)

    def _pixels(self, pictures: list[PILImage.Image | np.ndarray]) -> torch.Tensor:
        opened = (PILImage.fromarray(p) if isinstance(p, np.ndarray) else p for p in pictures)
        return torch.stack([self._preprocess(flat(picture)) for picture in opened])

    @one_thread()  # so that bits do not depend on how many there are
    def _run(
        self, encode: Callable, items: Iterable[Any], prepare: Callable, normalised: bool
    ) -> np.ndarray:
        rest, found = iter(items), []
        with torch.inference_mode(), exact(self._device.type):
            while batch := list(islice(rest, BATCH)):
                made = encode(prepare(batch).to(self._device), normalize=normalised)
                found.append(made.float().cpu().numpy())
        embeddings = np.concatenate(found)
        if not np.isfinite(embeddings).all():
            raise UserError(f"CLIP model {self.name}: gives numbers that are not finite")
        return embeddings
