"""The report: report.json for programs, and report.html, one page that loads nothing, for people.

All pictures are embedded, so that the page can be mailed, archived and opened without a network;
what a model wrote is escaped, since a caption is as little to be trusted as any other input.
"""

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from mmfusion.data_pipelines.corpora.digits import NAMES
from PIL import Image as Picture

from mmfusion.errors import UserError

from . import curves, shown


def write_report(
    folder: Path, report: dict[str, Any], pictures: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Write report.json and report.html; each appears under its name only when it is complete.

    Args:
        folder: where to write, made if missing. Training's facts (training.json) and curves
            (metrics.jsonl) are taken from it where they are there.
        report: what `run.evaluate` measured.
        pictures: its sheets; one that is missing or empty is left out of the page.

    Returns:
        The report as written: with `training`, its facts, and `seconds.train`.

    Raises:
        UserError: training.json is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = {**report, **_training(folder / "training.json", report)}
    metrics = folder / "metrics.jsonl"
    page = _template().render(
        report=report,
        pictures=pictures,
        charts=curves.charts(curves.read_metrics(metrics)) if metrics.is_file() else [],
        box=curves,
        names=NAMES,
        directions=shown.directions(report, pictures),
    )
    numbers = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    _write(folder / "report.json", numbers + "\n")
    _write(folder / "report.html", page)
    return report


def data_uri(picture: Picture.Image) -> str:
    """A picture as a PNG inside a URL."""
    file = io.BytesIO()
    picture.save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


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


def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "data_uri": data_uri,
        "percent": lambda share: f"{100 * share:.1f}%",
        "duration": lambda s: f"{s:.1f} s" if s < 60 else f"{s // 60:.0f} min {s % 60:.0f} s",
    }
    return environment.get_template("report.html.j2")


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    # A caption from a damaged model may hold lone surrogates, which UTF-8 cannot.
    part.write_text(text, encoding="utf-8", errors="replace")
    os.replace(part, path)
