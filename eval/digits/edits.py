"""A sheet of zero-shot edits (CausalFusion, section 6): every region, new classes and new texts."""

from typing import Any

import numpy as np
from mmfusion.data_pipelines.corpora.digits import captions
from PIL import Image as Picture

from mmfusion import Pipeline
from mmfusion.generation.masks import regenerated, region

from .real import SIDE, Digits

PICTURES = 6
MASKS = {
    **{name: region(name, SIDE, SIDE) for name in ("center", "top", "bottom", "outpaint")},
    "a diagonal": np.kron(np.eye(SIDE // 2), np.ones((2, 2))).astype(bool),
}
"""Pixels (8, 8) that are drawn anew."""


def edit_sheet(
    pipeline: Pipeline, chosen: Digits, options: dict[str, Any]
) -> tuple[list[dict[str, Any]], bool]:
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
        by_class = pipeline.edit(pictures, mask, label=classes, **options)
        by_text = pipeline.edit(pictures, mask, prompt=texts, **options)
        for made in (by_class, by_text):
            kept &= kept_identical(pipeline, mask, made, chosen.pictures[: len(pictures)])
        cells = [
            {"original": pictures[i], "label": int(labels[i]), "by_class": by_class[i],
             "class": classes[i], "by_text": by_text[i], "text": texts[i]}
            for i in range(len(pictures))
        ]  # fmt: skip
        shown = Picture.fromarray(mask.astype(np.uint8) * 255)
        rows.append({"name": name, "mask": shown, "cells": cells})
    return rows, kept


def kept_identical(
    pipeline: Pipeline, mask: np.ndarray, made: list[Picture.Image], originals: np.ndarray
) -> bool:
    """Whether pixels of tokens that the mask does not touch are those of the originals."""
    rows, columns = pipeline.config.image.grid
    cells = regenerated(mask, pipeline.config.image, (SIDE, SIDE)).reshape(rows, columns)
    keep = ~np.kron(cells, np.ones((SIDE // rows, SIDE // columns), bool))
    return all(
        np.array_equal(np.asarray(picture.convert("L"))[keep], original[keep])
        for picture, original in zip(made, originals, strict=True)
    )
