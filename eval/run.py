"""A model's whole evaluation: each direction that the settings name, on any number of ranks."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmfusion import Pipeline
from mmfusion.config import EvaluationConfig

from . import directions
from .answers import Answers
from .digits.suite import evaluate as evaluate_digits

PACKAGES = (
    "mmfusion", "torch", "numpy", "scikit-learn", "pillow", "pycocoevalcap", "torch-fidelity",
    "open-clip-torch", "transformers",
)  # fmt: skip


def evaluate(
    pipeline: Pipeline, settings: EvaluationConfig, output: Path, weights: str, model: str = ""
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Measure a model. Every process of a launcher calls it, and gets the same.

    Args:
        output: folder of what is kept: `answers/` and `features/`. What is there is not made again.
        weights: SHA-256 of the model's weights.
        model: where the model came from, for the report.

    Returns:
        The report (plain data), and the sheets' cells by name.

    Raises:
        UserError: data that is missing or damaged, or a model that cannot do what is asked.
    """
    answers = Answers(pipeline, output / "answers", weights, settings.seed, settings.batch)
    report: dict[str, Any] = {
        "model": model,
        "weights_sha256": weights,
        "seed": settings.seed,
        "settings": settings.model_dump(),
    }
    sheets: dict[str, list[dict[str, Any]]] = {}
    if settings.digits:
        numbers, cells = evaluate_digits(answers, settings.digits)
        report |= numbers
        sheets |= cells
    for name in ("class_to_image", "text_to_image", "image_to_text"):
        if asked := getattr(settings, name):
            figures, cells = getattr(directions, name)(answers, asked, output)
            report.setdefault("figures", {})[name] = figures
            sheets |= cells
    return report | {
        "sampling": pipeline.config.generation.model_dump(),
        "seconds": {task: round(spent, 3) for task, spent in answers.seconds.items()},
        "versions": _versions(),
    }, sheets


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # run from a checkout that is not installed
    return found
