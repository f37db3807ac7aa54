"""A CLIP model (Radford et al. 2021): pictures and texts as embeddings, by open_clip."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image as PILImage

from mmfusion.codecs.image import flat
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

    Raises:
        UserError: there is no such model, its weights hold code or do not fit, or they were trained
            with another activation than the model name means.
    """
    return Clip(find(spec), torch.device(device or default_device()))


class Clip:
    """Embeddings of pictures and texts in one space, in which likeness is a cosine.

    Attributes:
        name: model and weights, for figures.
        sha256: of the weights' file.
        version: digest of the model's config, activation and preprocessing.
        identity: all that embeddings depend on; a GPU's differ in their last bits.
        quick_gelu: whether the activation is QuickGELU.
        known: whether that is certain.
    """

    def __init__(self, source: Source, device: torch.device) -> None:
        self.name, self.sha256, self.known = source.name, source.sha256, source.known
        self.quick_gelu, self._device = source.quick_gelu, device
        try:
            self._model = open_clip.create_model(
                source.model,
                None if ":" in source.model else str(source.file),
                require_pretrained=True,
                pretrained_text=False,
                force_preprocess_cfg=source.preprocess,
                quick_gelu=self.quick_gelu,
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
        config = [open_clip.get_model_config(source.model), self.quick_gelu, preprocess]
        message = json.dumps(config, sort_keys=True, default=str)
        self.version = hashlib.sha256(message.encode()).hexdigest()
        self.identity = self.name, self.sha256, self.version, device.type

    @property
    def unsure(self) -> str:
        """A warning where nothing tells which activation the weights were trained with."""
        if self.known:
            return ""
        act = "QuickGELU" if self.quick_gelu else "plain GELU"
        return f"{self.name}: weights of unknown origin, taken to be trained with {act}"

    def embed_images(
        self, pictures: Iterable[PILImage.Image | np.ndarray], normalised: bool = True
    ) -> np.ndarray:
        """Embeddings (n, d), float32, of PIL pictures or of uint8 (H, W, 3) or (H, W) arrays.

        Transparent pictures are laid on white.
        """
        batches = _batches(map(self._pixels, pictures))
        encode = self._model.encode_image
        return np.concatenate([self._run(encode, torch.stack(b), normalised) for b in batches])

    def embed_texts(self, texts: Sequence[str], normalised: bool = True) -> np.ndarray:
        """Embeddings (n, d), float32; what is longer than the model's context is cut."""
        batches = map(self._tokenizer, _batches(texts))
        encode = self._model.encode_text
        return np.concatenate([self._run(encode, batch, normalised) for batch in batches])

    def cut(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than the model's context."""
        length = self._tokenizer([""]).shape[1] + 1
        padding, *last = self._tokenizer(["", *texts], context_length=length)[:, -1]
        return sum(int(token != padding) for token in last)

    def _pixels(self, picture: PILImage.Image | np.ndarray) -> torch.Tensor:
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8:
                raise UserError(f"CLIP: expected a picture of uint8, got {picture.dtype}")
            picture = PILImage.fromarray(picture.squeeze())
        return self._preprocess(flat(picture))

    def _run(self, encode: torch.nn.Module, batch: torch.Tensor, normalised: bool) -> np.ndarray:
        # TF32 would make a GPU's convolutions less exact than fp32.
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        cores = torch.get_num_threads()
        torch.set_num_threads(1)  # so that bits do not depend on how many there are
        try:
            with torch.inference_mode(), exact:
                found = encode(batch.to(self._device), normalize=normalised).float().cpu().numpy()
        finally:
            torch.set_num_threads(cores)
        if not np.isfinite(found).all():
            raise UserError(f"CLIP model {self.name}: gives numbers that are not finite")
        return found


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    items = iter(items)
    while batch := list(islice(items, BATCH)):
        yield batch
