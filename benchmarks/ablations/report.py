"""The tables: each arm's figures, and the paper's findings beside what our seeds say of them.

A finding holds or fails where a one-sided paired t-test over the seeds says so at 5%; in between it
is unclear. Three seeds see large differences only, which is as much as should be claimed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student

from .arms import ARMS, STEPS, Arm, Size

Results = dict[str, dict[int, dict[str, Any]]]
"""By arm and seed: what `run.measure` found."""


class Figure(NamedTuple):
    """A figure of an arm: at which AR steps ("captions" for its captions), and which."""

    arm: str
    at: str = "1"
    name: str = "frechet"


class Finding(NamedTuple):
    """Says that `low` is below `high`; `paper` are the two values there, in the same order."""

    text: str
    low: Figure
    high: Figure
    paper: str


FINDINGS = [
    *(Finding(f"trained at S = 1, it collapses at S = {s}",
              Figure("S = 1"), Figure("S = 1", s), paper)
      for s, paper in (("2", "13.78 < 356.69"), ("4", "13.78 < 404.67"), ("8", "13.78 < 390.18"))),
    Finding("trained at S = 2, it collapses at S = 8",
            Figure("S = 2", "2"), Figure("S = 2", "8"), "14.77 < 136.04"),
    Finding("trained at S = 8, it is worse at S = 1",
            Figure("S = 8", "8"), Figure("S = 8"), "20.01 < 54.08"),
    *(Finding(f"at S = {s} random S beats S = 1", Figure("decay 0.9", s), Figure("S = 1", s), paper)
      for s, paper in (("4", "18.83 < 404.67"), ("8", "22.72 < 390.18"))),
    Finding("at S = 1 random S beats training at S = 1",
            Figure("decay 0.9"), Figure("S = 1"), "12.89 < 13.78"),
    Finding("decay 0.9 beats uniform S at S = 1",
            Figure("decay 0.9"), Figure("decay 1.0"), "12.89 < 21.31"),
    Finding("decay 0.95 beats uniform S at S = 1",
            Figure("decay 0.95"), Figure("decay 1.0"), "14.49 < 21.31"),
    Finding("more AR steps cost quality",
            Figure("decay 0.9"), Figure("decay 0.9", "8"), "12.89 < 22.72"),
    Finding("random order beats raster",
            Figure("decay 0.9"), Figure("raster order"), "12.89 < 14.46"),
    Finding("loss weight 2 -> 1 beats 1 -> 1",
            Figure("weight 2 -> 1"), Figure("decay 0.9"), "12.13 < 12.89"),
    Finding("loss weight 2 -> 1 beats 3 -> 1",
            Figure("weight 2 -> 1"), Figure("weight 3 -> 1"), "12.13 < 12.50"),
    Finding("conditioning in context beats adaLN-zero (the paper changes more at once)",
            Figure("S = 1"), Figure("DiT, adaLN-zero"), "13.78 < 18.24"),
    Finding("joint training: causal diffusion draws better than S = 1",
            Figure("joint, causal"), Figure("joint, S = 1"), "7.1 < 8.1"),
    Finding("joint training: causal diffusion captions better than S = 1",
            Figure("joint, S = 1", "captions", "cider"),
            Figure("joint, causal", "captions", "cider"), "34.5 < 47.9"),
]  # fmt: skip
"""What the paper's tables say (Fréchet distances are its FIDs)."""


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


def markdown(name: str, size: Size, results: Results, facts: dict[str, Any]) -> str:
    """All tables of one data set."""

    def cell(figure: Figure) -> str:
        found = list(values(results, figure).values())
        if not found:
            return ""
        digits = 1 if figure.name == "frechet" and np.mean(found) >= 3 else 2
        spread = f" ± {np.std(found, ddof=1):.{digits}f}" if len(found) > 1 else ""
        return f"{np.mean(found):.{digits}f}{spread}"

    arms = [arm for arm in ARMS.values() if arm.name in results]
    lines = [*_heading(name, size, results, facts), ""]
    lines += by_steps("Fréchet distance", "frechet", arms, cell)
    lines += by_steps("accuracy", "accuracy", arms, cell)
    joint = [arm.name for arm in arms if arm.kind == "joint"]
    if joint:
        lines += [
            "| joint text and image | Fréchet, S = 1 | accuracy | CIDEr | captions wholly right |",
            "|---|---|---|---|---|",
        ]
        wanted = ("1", "frechet"), ("1", "accuracy"), ("captions", "cider"), ("captions", "exact")
        for arm in joint:
            row = " | ".join(cell(Figure(arm, *which)) for which in wanted)
            lines.append(f"| {arm} | {row} |")
        lines.append("")
    lines += ["| finding of the paper | paper | here, the lower one first | |", "|---|---|---|---|"]
    for text, low, high, paper in FINDINGS:
        ours = values(results, low), values(results, high)
        if all(ours):
            lines.append(f"| {text} | {paper} | {cell(low)}, {cell(high)} | {verdict(*ours)} |")
    lines += [
        "",
        "A verdict is a one-sided paired t-test over the seeds at 5%, in either direction, without "
        "correction for their number: one or two of a table may be chance. All seeds are sampled "
        "from the same noise.",
    ]
    return "\n".join([*lines, ""])


def _heading(name: str, size: Size, results: Results, facts: dict[str, Any]) -> list[str]:
    seeds = {seed for arm in results.values() for seed in arm}
    sizes = sorted(next(iter(found.values()))["parameters"] for found in results.values())
    tokens = (size.picture // size.patch) ** 2
    ours, paper = (
        ", ".join(f"{mean_steps(n, decay):.1f}" for decay in (0.9, 0.95, 1.0))
        for n in (tokens, 256)
    )
    return [
        f"#### {name}: {size.picture} x {size.picture} pixels, {tokens} tokens",
        "",
        f"{sizes[0]:,} to {sizes[-1]:,} parameters, {size.steps} steps of {size.batch} documents, "
        f"{len(seeds)} seeds, {size.prediction}. Fréchet distance and accuracy of {size.samples} "
        f"pictures, {size.inference_steps} steps of DPM-Solver++, no guidance, in 64 features of a "
        f"classifier that is right on {facts['judge_accuracy']:.3f} of {facts['test']:,} held-out "
        f"pictures; reference: {facts['reference']:,} training pictures. "
        f"{facts['frechet_of_test_n']} real held-out pictures: {facts['frechet_of_test']:.2f}. "
        "Mean ± standard deviation over seeds. Mean S drawn with decay 0.9, 0.95, 1.0: "
        f"{ours} (of the paper's 256 tokens: {paper}).",
    ]


def mean_steps(tokens: int, decay: float) -> float:
    """Mean number of AR steps drawn in training."""
    chance = decay ** np.arange(tokens)
    return float((np.arange(1, tokens + 1) * chance).sum() / chance.sum())


def by_steps(title: str, name: str, arms: list[Arm], cell: Callable[[Figure], str]) -> list[str]:
    """One figure of every arm at each number of AR steps it was sampled at."""
    head = " | ".join(f"at S = {steps}" for steps in STEPS)
    lines = [f"| {title}: trained | {head} |", "|---" * (1 + len(STEPS)) + "|"]
    for arm in arms:
        if arm.kind != "joint":
            row = " | ".join(cell(Figure(arm.name, str(steps), name)) for steps in STEPS)
            lines.append(f"| {arm.name} | {row} |")
    return [*lines, ""]
