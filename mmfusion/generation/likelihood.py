"""How likely a text is under the model, and which of several candidates that speaks for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmfusion.errors import UserError
from mmfusion.generation.arguments import shown, whole
from mmfusion.generation.prompt import PromptPart, TextRequest
from mmfusion.rng import generator

MOST_CANDIDATES = 10_000  # of an item: all of them are in memory


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


def candidate_seeds(seeds: Sequence[int], best_of: int) -> list[int]:
    """Seeds of `best_of` candidates of each item, item by item; the first is the item's own."""
    return [
        int(seed) if k == 0 else int(generator(int(seed), "candidate", k).integers(2**63))
        for seed in seeds
        for k in range(best_of)
    ]


def best_candidates(scores: Sequence[float], best_of: int) -> list[int]:
    """Places of the best of each `best_of` scores in a row, of equals the first."""
    starts = range(0, len(scores), best_of)
    return [max(range(start, start + best_of), key=lambda at: scores[at]) for start in starts]


def check_number(best_of: Any) -> None:
    """Refuse a number of candidates that is none."""
    if not whole(best_of) or not 1 <= best_of <= MOST_CANDIDATES:
        raise UserError(
            f"best_of: {shown(best_of)}; give a whole number of 1 to {MOST_CANDIDATES:,}"
        )


def check_best_of(best_of: int, slot: PromptPart, common: dict[str, Any]) -> None:
    """Refuse candidates that cannot differ or be shown."""
    if best_of == 1:
        return
    if isinstance(slot, TextRequest) and slot.sampling.temperature == 0:
        raise UserError(
            f"best_of: {best_of} captions at temperature 0 are all the same; give temperature=1, "
            "or leave best_of out"
        )
    for name in ("on_picture", "on_token"):
        if common.get(name):
            raise UserError(
                f"best_of: which of {best_of} candidates is kept is known when all are there; "
                f"leave {name} out"
            )
