"""A sheet of pictures that the exported model makes while it is still training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from mmfusion import files
from mmfusion.codecs.image import encoded, flat
from mmfusion.config import Config
from mmfusion.pipeline import Pipeline

MOST_CLASSES = 10


def sample_sheet(config: Config, model: Path, path: Path) -> np.ndarray:
    """Draw the first classes and the config's prompts, save the sheet; returns (H, W, 3)."""
    pipeline = Pipeline.from_pretrained(model)
    pictures: list[PILImage.Image] = []
    if config.classes:
        pictures += pipeline.class_to_image(range(min(len(config.classes), MOST_CLASSES)))
    if config.text and config.train.sheet_prompts:
        pictures += pipeline.text_to_image(config.train.sheet_prompts)
    if not pictures:
        return np.zeros((1, 1, 3), np.uint8)
    sheet = grid(pictures, columns=MOST_CLASSES)
    files.write(path, encoded(sheet))
    return np.asarray(sheet.convert("RGB"))


def grid(pictures: Sequence[PILImage.Image], columns: int = 10, side: int = 64) -> PILImage.Image:
    """Pictures side by side, small ones enlarged to at least `side` pixels, with a thin gap."""
    pictures = [flat(picture) for picture in pictures]
    size = pictures[0].width * max(1, side // pictures[0].width)
    gap = max(2, size // 16)
    columns, rows = min(columns, len(pictures)), -(-len(pictures) // columns)
    pitch = size + gap
    sheet = PILImage.new("RGB", (columns * pitch + gap, rows * pitch + gap), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        large = picture.resize((size, size), PILImage.Resampling.NEAREST)
        sheet.paste(large.convert("RGB"), (gap + column * pitch, gap + row * pitch))
    return sheet
