"""A model's whole evaluation: each direction that the settings name, on any number of ranks."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmfusion import Pipeline
from mmfusion.config import EvaluationConfig
from mmfusion.errors import resumable
from mmfusion.generation.budget import Machine

from . import formatting, tasks
from .digits.suite import Cells, Suite
from .emoji import suite as emoji
from .sample_store import SampleStore

PACKAGES = (
    "mmfusion", "torch", "numpy", "scikit-learn", "pillow", "pycocoevalcap", "torch-fidelity",
    "open-clip-torch", "transformers", "timm",
)  # fmt: skip
DIRECTIONS = (tasks.Classes, tasks.Drawings, tasks.Captions, emoji.Suite)


class Evaluation:
    """An evaluation, ready to run: all that it reads is opened, so that nothing is missing later.

    Attributes:
        facts: what the report's figures depend on, plain data.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        settings: EvaluationConfig,
        output: Path,
        digest: str,
        model: str = "",
        work: Path | None = None,
    ) -> None:
        """Open data, references and networks.

        Args:
            output: folder of what is kept and not made again: `answers/` and `features/`.
            digest: SHA-256 of the model; `model` is where it came from.
            work: where references' features are kept (default: the user's cache).
        """
        self.settings = settings
        self.answers = SampleStore(
            pipeline, output / "answers", digest, settings.seed, settings.batch
        )
        places = tasks.Places(output / "features", work)
        self.suite = Suite(self.answers, settings.digits) if settings.digits else None
        self.directions: dict[str, tasks.Direction | emoji.Suite] = {
            kind.task: kind(self.answers, asked, places)
            for kind in DIRECTIONS
            if (asked := getattr(settings, kind.task))
        }
        inputs = {name: each.inputs for name, each in self.directions.items()}
        if self.suite:
            inputs["digits"] = self.suite.inputs
        self.facts = {
            "model": model,
            "model_sha256": digest,
            "seed": settings.seed,
            "settings": settings.model_dump(),
            "inputs": inputs,
            "sampling": pipeline.config.generation.model_dump(),
            "versions": _versions(),
        }
        parameters = list(pipeline.decoder.parameters())
        self._about = {
            "parameters": sum(weight.numel() for weight in parameters),
            "device": Machine.of(parameters[0]).device,
            "config": pipeline.config.model_dump(mode="json", exclude={"generation"}),
        }

    @resumable("answers that are there")
    def run(self) -> tuple[dict[str, Any], dict[str, Cells]]:
        """Measure: the report (plain data), and the sheets' cells by name.

        Every process of a launcher calls this; the first one gets all figures.
        """
        report: dict[str, Any] = {**self.facts, **self._about, "figures": {}}
        sheets: dict[str, Cells] = {}
        if self.suite:
            numbers, sheets = self.suite.measure()
            report |= numbers
        for name, direction in self.directions.items():
            figures, cells = direction.measure()
            if getattr(getattr(self.settings, name), "training_shards", False):
                for _, figure in formatting.figures(figures):
                    figure["training_shards"] = True
            report["figures"][name] = figures
            sheets |= cells
        spent = self.answers.seconds.items()
        return {**report, "seconds": {task: round(seconds, 3) for task, seconds in spent}}, sheets


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # run from a checkout that is not installed
    return found
