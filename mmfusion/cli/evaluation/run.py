"""`mmfusion eval --model M --config E.yaml`: a model's whole evaluation."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmfusion.errors import UserError

if TYPE_CHECKING:
    from mmfusion.config import EvaluationConfig


def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="a run's folder, or any model")] = "digits",
    config: Annotated[
        str | None,
        typer.Option(help="what to measure: a YAML (default: what the run's config says)"),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="the digits suite's data")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="folder of report, answers and features")
    ] = None,
    again: Annotated[bool, typer.Option(help="write a report that is there anew")] = False,
    seed: Annotated[int | None, typer.Option(help="answer i uses seed + i")] = None,
) -> None:
    """Measure a model in all directions and write report.html and report.json."""
    if context.invoked_subcommand:
        return
    from mmfusion.eval.report import write_report
    from mmfusion.eval.run import evaluate as measure
    from mmfusion.eval.work import rank
    from mmfusion.export import locate, weights_digest
    from mmfusion.pipeline import Pipeline

    folder = locate(model)
    run = Path(model) if (Path(model) / "config.yaml").is_file() else None
    settings = _settings(config, run, data, seed)
    output = output or run or Path("runs") / Path(model).name
    weights = weights_digest(folder)
    report = output / "report.json"
    if not again and _is_of(report, weights, settings):
        if rank() == 0:
            typer.echo(f"already there: {output / 'report.html'} and {report} of these weights")
        return
    measured, sheets = measure(
        Pipeline.from_pretrained(folder), settings, output, weights, model=model
    )
    if rank() == 0:
        write_report(output, measured, sheets)
        typer.echo(f"wrote {output / 'report.html'} and {report}")


def _settings(
    config: str | None, run: Path | None, data: Path | None, seed: int | None
) -> "EvaluationConfig":
    from mmfusion.config import EvaluationConfig, load, load_evaluation
    from mmfusion.config.evaluation import Digits

    found = None
    if config:
        found = load_evaluation(config)
    elif run:
        found = load(str(run / "config.yaml")).evaluation
    found = found or EvaluationConfig(digits=Digits(data="runs/digits/data"))
    if data:
        if found.digits is None:
            raise UserError("--data: is the digits suite's; say in the --config what to read")
        digits = found.digits.model_copy(update={"data": str(data)})
        found = found.model_copy(update={"digits": digits})
    return found if seed is None else found.model_copy(update={"seed": seed})


def _is_of(report: Path, weights: str, settings: "EvaluationConfig") -> bool:
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
        return (found["weights_sha256"], found.get("settings")) == (weights, settings.model_dump())
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise UserError(f"{report}: not a report of this program; move it away") from None
