"""How far a run is, and the learning rate there."""

from mmfusion.config import TrainConfig


def progress(train: TrainConfig, step: int, seconds: float) -> float:
    """Share of the run that is done: by steps, or by time where that is further on."""
    share = step / train.steps
    if train.max_minutes is not None:
        share = max(share, seconds / (60 * train.max_minutes))
    return min(share, 1.0)


def learning_rate(train: TrainConfig, step: int, share: float) -> float:
    """Linear warm-up over `warmup` steps, then constant, then linear to zero over `decay`."""
    rate = train.lr * min(1.0, (step + 1) / train.warmup) if train.warmup else train.lr
    return rate * min(1.0, (1 - share) / train.decay) if train.decay else rate
