"""The paper's findings as comparisons of two figures, and what our seeds say of each.

A finding holds or fails where a one-sided paired t-test over the seeds says so at 5%; in between it
is unclear. Three seeds see large differences only, which is as much as should be claimed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student

Results = dict[str, dict[int, dict[str, Any]]]
"""By arm and seed: what `sampling.measure` found."""


class Figure(NamedTuple):
    """A figure of an arm: at which AR steps ("captions" for its captions), and which."""

    arm: str
    at: str = "1"
    name: str = "frechet"


@dataclass(frozen=True)
class Finding:
    """Says that `low` is below `high`; `paper` are the two values there, in the same order."""

    text: str
    low: Figure
    high: Figure
    paper: str


def findings() -> Iterator[Finding]:
    """What the paper's tables say (Fréchet distances are its FIDs)."""
    for steps, paper in (("2", "13.78 < 356.69"), ("4", "13.78 < 404.67"), ("8", "13.78 < 390.18")):
        yield Finding(f"trained at S = 1, it collapses at S = {steps}",
                      Figure("S = 1"), Figure("S = 1", steps), paper)  # fmt: skip
    yield Finding("trained at S = 2, it collapses at S = 8",
                  Figure("S = 2", "2"), Figure("S = 2", "8"), "14.77 < 136.04")  # fmt: skip
    yield Finding("trained at S = 8, it is worse at S = 1",
                  Figure("S = 8", "8"), Figure("S = 8"), "20.01 < 54.08")  # fmt: skip
    for steps, paper in (("4", "18.83 < 404.67"), ("8", "22.72 < 390.18")):
        yield Finding(f"at S = {steps} random S beats S = 1",
                      Figure("decay 0.9", steps), Figure("S = 1", steps), paper)  # fmt: skip
    yield Finding("at S = 1 random S beats training at S = 1",
                  Figure("decay 0.9"), Figure("S = 1"), "12.89 < 13.78")  # fmt: skip
    yield Finding("decay 0.9 beats uniform S at S = 1",
                  Figure("decay 0.9"), Figure("decay 1.0"), "12.89 < 21.31")  # fmt: skip
    yield Finding("decay 0.95 beats uniform S at S = 1",
                  Figure("decay 0.95"), Figure("decay 1.0"), "14.49 < 21.31")  # fmt: skip
    yield Finding("more AR steps cost quality",
                  Figure("decay 0.9"), Figure("decay 0.9", "8"), "12.89 < 22.72")  # fmt: skip
    yield Finding("random order beats raster",
                  Figure("decay 0.9"), Figure("raster order"), "12.89 < 14.46")  # fmt: skip
    yield Finding("loss weight 2 -> 1 beats 1 -> 1",
                  Figure("weight 2 -> 1"), Figure("decay 0.9"), "12.13 < 12.89")  # fmt: skip
    yield Finding("loss weight 2 -> 1 beats 3 -> 1",
                  Figure("weight 2 -> 1"), Figure("weight 3 -> 1"), "12.13 < 12.50")  # fmt: skip
    yield Finding("conditioning in context beats adaLN-zero (the paper changes more at once)",
                  Figure("S = 1"), Figure("DiT, adaLN-zero"), "13.78 < 18.24")  # fmt: skip
    yield Finding("joint training: causal diffusion draws better than S = 1",
                  Figure("joint, causal"), Figure("joint, S = 1"), "7.1 < 8.1")  # fmt: skip
    yield Finding("joint training: causal diffusion captions better than S = 1",
                  Figure("joint, S = 1", "captions", "cider"),
                  Figure("joint, causal", "captions", "cider"), "34.5 < 47.9")  # fmt: skip


def values(results: Results, figure: Figure) -> dict[int, float]:
    """A figure of every seed that has it."""
    found = results.get(figure.arm, {})
    return {s: r[figure.at][figure.name] for s, r in found.items() if figure.at in r}


def verdict(low: dict[int, float], high: dict[int, float]) -> str:
    """Whether `low` is below `high`, seed by seed: reproduced, not, or unclear."""
    seeds = sorted(low.keys() & high.keys())
    if len(seeds) < 2:
        return "one seed"
    gaps = np.array([high[s] - low[s] for s in seeds])
    error = gaps.std(ddof=1) / np.sqrt(len(gaps))
    sure = float(student.ppf(0.95, len(gaps) - 1)) * error
    if gaps.mean() > sure:
        return "reproduced"
    return "not reproduced" if gaps.mean() < -sure else "unclear"
