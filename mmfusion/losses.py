"""The two losses of a batch, as sums, so that packing and world size do not change them."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from mmfusion.packing import Batch


class Sums(NamedTuple):
    """Summed errors and the counts they are divided by, over everything in a step."""

    image: Tensor
    text: Tensor
    noisy: int
    targets: int


def sums(latents: Tensor, logits: Tensor | None, batch: Batch) -> Sums:
    """Σ weight · squared error (mean over D) and Σ cross-entropy of the decoder's predictions.

    Args:
        latents: (M, D) predictions at the noisy places.
        logits: (P, V) at the text-predicting places, or None.
    """
    error = (latents - batch.target).square().mean(-1)
    image = (batch.weight * error).sum()
    if logits is None:
        text = image.new_zeros(())
    else:
        text = F.cross_entropy(logits, batch.predict_id, ignore_index=-1, reduction="sum")
    return Sums(image, text, batch.noisy, batch.targets)


def total(part: Sums, noisy: float, targets: float, text_weight: float) -> Tensor:
    """Σ image / noisy + λ Σ text / targets, with counts over the whole step (all ranks).

    Where it is not finite no gradient is, which is seen when a step is done: nobody needs to read
    the loss before.
    """
    loss = part.image / max(noisy, 1) + text_weight * part.text / max(targets, 1)
    return loss * (1 + 0 * loss.detach())
