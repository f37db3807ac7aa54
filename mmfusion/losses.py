"""The two losses of a batch, as sums, so that packing and world size do not change them."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfusion.packing import Batch


class Sums(NamedTuple):
    """Summed errors and the counts they are divided by, over everything in a step."""

    image: Tensor
    text: Tensor
    noisy: Tensor
    targets: Tensor


def counts(batch: Batch) -> tuple[Tensor, Tensor]:
    """How many noisy tokens and how many text targets the batch has."""
    return (batch.weight > 0).sum(), (batch.predict_id >= 0).sum()


def sums(latents: Tensor, logits: Tensor | None, batch: Batch) -> Sums:
    """Σ weight · squared error (mean over D) and Σ cross-entropy of the decoder's predictions.

    Args:
        latents: (B, C, D) predictions at the noisy places.
        logits: (B, C, V) at the text-predicting places, or None.
    """
    error = (latents - batch.target).square().mean(-1)
    image = (batch.weight * error).sum()
    if logits is None:
        text = image.new_zeros(())
    else:
        text = F.cross_entropy(
            logits.flatten(0, 1), batch.predict_id.flatten(), ignore_index=-1, reduction="sum"
        )
    noisy, targets = counts(batch)
    return Sums(image, text, noisy, targets)


def total(part: Sums, noisy: Tensor, targets: Tensor, text_weight: float) -> Tensor:
    """Σ image / noisy + λ Σ text / targets, with counts over the whole step (all ranks)."""
    image = part.image / torch.clamp(noisy, min=1)
    return image + text_weight * part.text / torch.clamp(targets, min=1)
