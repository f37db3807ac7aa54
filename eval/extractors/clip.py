"""CLIP's picture embeddings as features, for FD-CLIP and the like."""

import numpy as np
from PIL import Image as PILImage

from mmfusion.errors import UserError

from . import Extractor


class ClipExtractor(Extractor):
    """Embeddings (n, d), not normalised, of pictures as the model's own transform has them."""

    def __init__(self, spec: str, device: str) -> None:
        """Load `MODEL[:TAG or FILE]`.

        Raises:
            UserError: it cannot be loaded.
        """
        from ..clip.model import load_clip

        if not spec:
            raise UserError("features clip: name a model, such as clip:ViT-L-14:FILE")
        self.clip, self.device = load_clip(spec, device), device
        self.name, self.sha256 = f"clip:{self.clip.name}", self.clip.sha256
        self.version = self.clip.version
        self.doubt = self.clip.unsure

    def extract(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        pictures = [PILImage.fromarray(picture) for picture in pixels]
        return {"features": self.clip.embed_images(pictures, normalised=False)}
