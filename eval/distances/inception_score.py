"""Inception score of Salimans et al. 2016, by the protocol of ADM (Dhariwal and Nichol 2021)."""

import numpy as np

from mmfusion.errors import UserError

from .checked import checked


def inception_score(logits: np.ndarray, split: int = 5000) -> tuple[float, float]:
    """Mean and standard deviation over splits of exp(mean KL(p(y|x) || p(y))), in float64.

    The logits (n, classes) are taken in their order, not shuffled, in splits of `split`. The last
    split may be smaller and counts like the others, as in ADM's evaluator; with few samples in a
    split the score is low: it cannot exceed their number.

    Raises:
        UserError: no samples, logits that are not finite, or splits of less than one sample.
    """
    logits = checked(logits, "inception score", "given", least=1)
    if split < 1:
        raise UserError(f"inception score: splits of {split} samples; give 1 or more")
    scores = [_score(logits[i : i + split]) for i in range(0, len(logits), split)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(logits: np.ndarray) -> float:
    logits = logits.astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    p = np.exp(log_p)
    mean = p.mean(0)
    # A class of which every p is 0 in float64 adds nothing: 0 log 0 = 0.
    log_mean = np.log(mean, out=np.zeros_like(mean), where=mean > 0)
    return float(np.exp((p * (log_p - log_mean)).sum(1).mean()))
