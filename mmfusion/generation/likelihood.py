"""How likely a text is under the model, and which of several candidates that speaks for."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Likelihood:
    """log p of a text after what was given: the sum over its tokens and its end symbol, in nats.

    The perplexity of many texts is exp(-Σ log_probability / Σ tokens).
    """

    log_probability: float
    tokens: int

    def score(self, length_penalty: float) -> float:
        """Log p / tokens ** length_penalty, by which beams and candidates are ranked."""
        return self.log_probability / self.tokens**length_penalty


def best_candidates(scores: Sequence[float], best_of: int) -> list[int]:
    """Places of the best of each `best_of` scores in a row, of equals the first."""
    starts = range(0, len(scores), best_of)
    return [max(range(start, start + best_of), key=lambda at: scores[at]) for start in starts]
