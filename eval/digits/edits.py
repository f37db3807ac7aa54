"""A sheet of zero-shot edits (CausalFusion, section 6): every region, new classes and new texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image as PILImage

from mmfusion.config import ModelConfig
from mmfusion.data_pipelines.converters.digits import captions
from mmfusion.generation.edit_masks import regenerated, region

from ..sample_store import SampleStore
from .real import SIDE, Digits

PICTURES = 6
MASKS = {
    **{name: region(name, SIDE, SIDE) for name in ("center", "top", "bottom", "outpaint")},
    "a diagonal": np.kron(np.eye(SIDE // 2), np.ones((2, 2))).astype(bool),
}
"""Pixels (8, 8) that are drawn anew."""


def edit_sheet(answers: SampleStore, chosen: Digits) -> tuple[list[dict[str, Any]], bool]:
    """Six pictures under each mask, as another class and by a text that names a third one.

    Returns:
        A row a mask: {"name", "mask", "cells"}, a cell {"original", "label", "by_class", "class",
        "by_text", "text"}; and whether all kept pixels are those given.
    """
    labels, pictures = chosen.labels[:PICTURES], chosen.drawn()[:PICTURES]
    classes = [(int(label) + 5) % 10 for label in labels]
    texts = [captions((int(label) + 3) % 10)[i] for i, label in enumerate(labels)]
    rows, kept = [], True
    for name, mask in MASKS.items():
        by_class = answers.edit(pictures, mask, label=classes)
        by_text = answers.edit(pictures, mask, prompt=texts)
        for made in (by_class, by_text):
            kept &= kept_identical(answers.config, mask, made, chosen.pictures[: len(pictures)])
        cells = [
            {"original": pictures[i], "label": int(labels[i]), "by_class": by_class[i],
             "class": classes[i], "by_text": by_text[i], "text": texts[i]}
            for i in range(len(pictures))
        ]  # fmt: skip
        shown = PILImage.fromarray(mask.astype(np.uint8) * 255)
        rows.append({"name": name, "mask": shown, "cells": cells})
    return rows, kept


def kept_identical(
    config: ModelConfig, mask: np.ndarray, made: Sequence[PILImage.Image], originals: np.ndarray
) -> bool:
    """Whether pixels of tokens that the mask does not touch are those of the originals."""
    rows, columns = config.image.grid
    cells = regenerated(mask, config.image, (SIDE, SIDE)).reshape(rows, columns)
    keep = ~np.kron(cells, np.ones((SIDE // rows, SIDE // columns), bool))
    return all(
        np.array_equal(np.asarray(picture.convert("L"))[keep], original[keep])
        for picture, original in zip(made, originals, strict=True)
    )
