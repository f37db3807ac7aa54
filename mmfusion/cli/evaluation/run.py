"""`mmfusion eval --model M`: a model's whole evaluation."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mmfusion.errors import UserError


def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="a run's folder, or any model")] = "digits",
    data: Annotated[
        Path | None, typer.Option(help="the suite's data (default: what the run's config says)")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="folder of the report")
    ] = None,
    again: Annotated[bool, typer.Option(help="measure again what is already there")] = False,
    seed: int = 0,
) -> None:
    """Measure all tasks and write report.html and report.json."""
    if context.invoked_subcommand:
        return
    from mmfusion.config import EvaluationConfig, load
    from mmfusion.eval.digits.suite import evaluate as measure
    from mmfusion.eval.report import write_report
    from mmfusion.export import WEIGHTS, locate
    from mmfusion.manifest import sha256
    from mmfusion.pipeline import Pipeline

    folder = locate(model)
    run = Path(model) if (Path(model) / "config.yaml").is_file() else None
    settings = EvaluationConfig(data=str(data or "runs/digits/data"))
    if run:
        settings = load(str(run / "config.yaml")).evaluation or settings
        if data:
            settings = settings.model_copy(update={"data": str(data)})
    output = output or run or Path("runs") / Path(model).name
    weights = sha256(folder / WEIGHTS)
    report = output / "report.json"
    if not again and _is_of(report, weights):
        typer.echo(f"already there: {output / 'report.html'} and {report} of these weights")
        return
    measured, pictures = measure(
        Pipeline.from_pretrained(folder),
        Path(settings.data),
        settings,
        seed,
        progress=True,
        model=model,
    )
    measured["weights_sha256"] = weights
    write_report(output, measured, pictures)
    typer.echo(f"wrote {output / 'report.html'} and {report}")


def _is_of(report: Path, weights: str) -> bool:
    try:
        return json.loads(report.read_text(encoding="utf-8"))["weights_sha256"] == weights
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError, OSError):
        raise UserError(f"{report}: not a report of this program; move it away") from None
