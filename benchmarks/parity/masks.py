"""Our mask and loss weights against the official ones, entry by entry, over random splits."""

import random
from types import ModuleType
from typing import Any

import numpy as np

from mmfusion.mask import dense_mask
from mmfusion.packing import collate
from mmfusion.sequence import Image, Label, Noise, Row
from mmfusion.split import cut

# Grid side and tokens of a label: the paper's, and odd ones.
SHAPES = [(16, 64), (16, 4), (8, 64), (4, 4), (5, 7), (3, 1), (1, 2)]


def compare_masks(train: ModuleType, splits: int) -> dict[str, Any]:
    """Differences over `splits` splits that the official training would draw.

    Args:
        train: the official module of that name.
    """
    random.seed(0)
    differing = entries = wrong_weights = most_steps = 0
    for number in range(splits):
        side, label_tokens = SHAPES[number % len(SHAPES)]
        sizes, starts = train.split_integer_exp_decay(side**2, random.choice([0.9, 0.97, 1.0]))
        hidden = train.get_attn_mask(side**2, label_tokens, sizes, starts)[0, 0].bool().numpy()
        weight = np.array(train.get_ar_weights(sizes, starts, 2.0, 1.0), np.float32)
        mask, ours = written(side, label_tokens, sizes)
        assert mask.shape == hidden.shape
        differing += int((mask == hidden).sum())
        entries += mask.size
        wrong_weights += int((ours != weight).sum())
        most_steps = max(most_steps, len(sizes))
    return {
        "splits": splits,
        "most AR steps": most_steps,
        "entries": entries,
        "differing entries": differing,
        "differing weights": wrong_weights,
    }


def written(side: int, label_tokens: int, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """What sees what (L, L), and the loss weights (N,), of a label and a picture so split."""
    n = side**2
    zeros = np.zeros((1, n, 1), np.float32)
    noise = Noise(zeros, zeros, zeros[..., 0], np.ones((1, n), np.float32), start_weight=2.0)
    order = np.random.default_rng(n).permutation(n)
    row = Row(label_tokens + 2 * n - sizes[-1], 1, label_tokens, null_label=0)
    row.document([Label(0), Image(zeros[0], side, cut(order, sizes), noise)])
    batch = collate([row])
    return dense_mask(batch.doc, batch.order, batch.stream).numpy(), row.weight[-n:]
