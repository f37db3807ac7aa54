"""Results as Markdown tables and as a sheet of pictures."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image as PILImage

from mmfusion.training.image_grid import grid

from .arms import ARMS, STEPS, Arm, Size
from .findings import Figure, Results, findings, values, verdict

Cell = Callable[[Figure], str]


def markdown(name: str, size: Size, results: Results, facts: dict[str, Any]) -> str:
    """All tables of one data set."""
    seeds = sorted({seed for arm in results.values() for seed in arm})
    used = {arm: next(iter(found.values())) for arm, found in results.items()}
    sizes = sorted({found["parameters"] for found in used.values()})
    tokens = (size.picture // size.patch) ** 2
    lines = [
        f"#### {name}: {size.picture} x {size.picture} pixels, {tokens} tokens",
        "",
        f"{sizes[0]:,} to {sizes[-1]:,} parameters, {size.steps} steps of {size.batch} documents, "
        f"{len(seeds)} seeds, {size.prediction}. Fréchet distance and accuracy of {size.samples} "
        f"pictures, {size.inference_steps} steps of DPM-Solver++, no guidance, in 64 features of a "
        f"classifier that is right on {facts['judge_accuracy']:.3f} of {facts['test']:,} held-out "
        f"pictures; reference: {facts['reference']:,} training pictures. "
        f"{facts['frechet_of_test_n']} real held-out pictures: {facts['frechet_of_test']:.2f}. "
        "Mean ± standard deviation over seeds. Mean S drawn with decay 0.9, 0.95, 1.0: "
        + ", ".join(f"{mean_steps(tokens, d):.1f}" for d in (0.9, 0.95, 1.0))
        + " (of the paper's 256 tokens: "
        + ", ".join(f"{mean_steps(256, d):.1f}" for d in (0.9, 0.95, 1.0))
        + ").",
        "",
    ]

    def cell(figure: Figure) -> str:
        found = list(values(results, figure).values())
        if not found:
            return ""
        digits = 1 if figure.name == "frechet" and np.mean(found) >= 3 else 2
        spread = f" ± {np.std(found, ddof=1):.{digits}f}" if len(found) > 1 else ""
        return f"{np.mean(found):.{digits}f}{spread}"

    arms = [arm for arm in ARMS if arm.name in results]
    lines += by_steps("Fréchet distance", "frechet", arms, cell)
    lines += by_steps("accuracy", "accuracy", arms, cell)
    joint = [arm for arm in arms if arm.kind == "joint"]
    if joint:
        lines += [
            "| joint text and image | Fréchet, S = 1 | accuracy | CIDEr | captions wholly right |",
            "|---|---|---|---|---|",
        ]
        for arm in joint:
            figures = [Figure(arm.name), Figure(arm.name, "1", "accuracy"),
                       Figure(arm.name, "captions", "cider"),
                       Figure(arm.name, "captions", "exact")]  # fmt: skip
            lines.append(f"| {arm.name} | {' | '.join(map(cell, figures))} |")
        lines.append("")
    lines += ["| finding of the paper | paper | here, the lower one first | |", "|---|---|---|---|"]
    for finding in findings():
        low, high = values(results, finding.low), values(results, finding.high)
        if low and high:
            lines.append(
                f"| {finding.text} | {finding.paper} | {cell(finding.low)}, {cell(finding.high)} "
                f"| {verdict(low, high)} |"
            )
    lines += [
        "",
        "A verdict is a one-sided paired t-test over the seeds at 5%, in either direction, without "
        "correction for their number: one or two of a table may be chance. All seeds are sampled "
        "from the same noise.",
    ]
    return "\n".join([*lines, ""])


def mean_steps(tokens: int, decay: float) -> float:
    """Mean number of AR steps drawn in training."""
    chance = decay ** np.arange(tokens)
    return float((np.arange(1, tokens + 1) * chance).sum() / chance.sum())


def by_steps(title: str, name: str, arms: list[Arm], cell: Cell) -> list[str]:
    """One figure of every arm at each number of AR steps it was sampled at."""
    head = " | ".join(f"at S = {steps}" for steps in STEPS)
    lines = [f"| {title}: trained | {head} |", "|---" * (1 + len(STEPS)) + "|"]
    for arm in arms:
        if arm.kind != "joint":
            row = " | ".join(cell(Figure(arm.name, str(steps), name)) for steps in STEPS)
            lines.append(f"| {arm.name} | {row} |")
    return [*lines, ""]


def sheet(rows: list[np.ndarray]) -> PILImage.Image:
    """Pictures (n, H, H), a row for each arm."""
    return grid([PILImage.fromarray(pixels) for row in rows for pixels in row], len(rows[0]))
