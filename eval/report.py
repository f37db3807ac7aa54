"""The report: report.json for programs, and report.html, one page, for people."""

import json
from pathlib import Path
from typing import Any

import yaml

from mmfusion.data_pipelines.converters.digits import NAMES
from mmfusion.errors import UserError
from mmfusion.files import write

from . import formatting
from .digits.suite import summary
from .pages import losses, render

DIRECTIONS = {
    "class_to_image": "Class → image",
    "text_to_image": "Text → image",
    "image_to_text": "Image → text",
    "emoji": "Emoji",
}


def write_report(
    folder: Path, report: dict[str, Any], sheets: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Write report.json and report.html; returns the report as written.

    The facts of a training run (training.json), its curves (metrics.jsonl) and its config
    (config.yaml) are taken from the folder where they are there. A sheet that is missing or empty
    is left out of the page.
    """
    report = {**report, **_training(folder / "training.json", report)}
    run, figures = folder / "config.yaml", report["figures"]
    page = render(
        "report.html.j2",
        report=report,
        pictures=sheets,
        charts=losses(folder / "metrics.jsonl"),
        names=NAMES,
        scores=summary(report) if "judge" in report else [],
        directions=[
            (key, name, *formatting.tabulated(figures[key]), sheets.get(f"{key}_answers", []))
            for key, name in DIRECTIONS.items()
            if key in figures
        ],
        config=run.read_text("utf-8", "replace")
        if run.is_file()
        else yaml.safe_dump(report["config"], sort_keys=False, default_flow_style=None),
        hashes={
            "model": report["model_sha256"],
            **{f"digits, {part}": d for part, d in report["inputs"].get("digits", {}).items()},
            **formatting.hashes(figures),
        },
    )
    formatting.save(folder / "report.json", report)
    write(folder / "report.html", page)
    return report


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
