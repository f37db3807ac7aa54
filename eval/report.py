"""The report: report.json for programs, and report.html, one page, for people."""

import json
from pathlib import Path
from typing import Any

import yaml

from mmfusion.data_pipelines.converters.digits import NAMES
from mmfusion.errors import UserError
from mmfusion.files import write

from . import charts, formatting
from .digits.summary import summary
from .pages import render


def write_report(
    folder: Path, report: dict[str, Any], pictures: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Write report.json and report.html; each appears under its name only when it is complete.

    Args:
        folder: where to write, made if missing. Training's facts (training.json) and curves
            (metrics.jsonl) are taken from it where they are there, and its config (config.yaml;
            else the page shows the model's).
        report: what `run.evaluate` measured.
        pictures: its sheets; one that is missing or empty is left out of the page.

    Returns:
        The report as written: with `training`, its facts, and `seconds.train`.

    Raises:
        UserError: training.json is damaged.
    """
    report = {**report, **_training(folder / "training.json", report)}
    metrics, run = folder / "metrics.jsonl", folder / "config.yaml"
    page = render(
        "report.html.j2",
        report=report,
        pictures=pictures,
        charts=charts.losses(metrics) if metrics.is_file() else {},
        names=NAMES,
        scores=summary(report) if "judge" in report else [],
        directions=formatting.directions(report, pictures),
        config=run.read_text("utf-8", "replace")
        if run.is_file()
        else yaml.safe_dump(report["config"], sort_keys=False, default_flow_style=None),
        hashes=_hashes(report),
    )
    numbers = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    write(folder / "report.json", f"{numbers}\n".encode("utf-8", "replace"))
    write(folder / "report.html", page)
    return report


def _hashes(report: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of all that the figures depend on, by name."""
    digits = report["inputs"].get("digits", {})
    return {
        "model": report["model_sha256"],
        **{f"digits, {part}": digest for part, digest in digits.items()},
        **formatting.hashes(report["figures"]),
    }


def _training(path: Path, report: dict[str, Any]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        seconds = {**report.get("seconds", {}), "train": float(facts["seconds"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not the facts of a training run with seconds ({error!r}); "
            "delete it, or write the report to another folder"
        ) from None
    return {"seconds": seconds, "training": facts}
