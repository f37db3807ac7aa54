"""`mmfusion eval --model M --config E.yaml`: a model's whole evaluation."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    seed: Annotated[int | None, typer.Option(min=0, help="answer i uses seed + i")] = None,
    work: Annotated[
        Path | None, typer.Option(help="where references' features are kept (default: your cache)")
    ] = None,
) -> None:
    """Measure a model in all directions and write report.html and report.json."""
    if context.invoked_subcommand:
        return
    from mmfusion.eval.report import write_report
    from mmfusion.eval.run import Evaluation
    from mmfusion.eval.shown import table
    from mmfusion.eval.work import rank
    from mmfusion.export import locate, model_digest
    from mmfusion.pipeline import Pipeline

    folder = locate(model)
    run = Path(model) if (Path(model) / "config.yaml").is_file() else None
    settings = _settings(config, run, data, seed)
    local = Path(model).resolve().name if Path(model).exists() else model.replace("/", "--")
    output = output or run or Path("runs") / local
    evaluation = Evaluation(
        Pipeline.from_pretrained(folder), settings, output, model_digest(folder), model, work
    )
    report = output / "report.json"
    if not again and _is_of(report, evaluation.facts):
        if rank() == 0:
            typer.echo(f"already there, of the same: {output / 'report.html'} and {report}")
        return
    measured, sheets = evaluation.run()
    if rank() == 0:
        write_report(output, measured, sheets)
        for name, figures in measured.get("figures", {}).items():
            typer.echo(f"\n{name}\n{table(figures)}")
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


def _is_of(report: Path, facts: dict[str, Any]) -> bool:
    """Whether a report is of the same model, settings, data, networks and versions."""
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
        known = {"model": found["model"], **{name: found.get(name) for name in facts}}
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise UserError(f"{report}: not a report of this program; move it away") from None
    return known == json.loads(json.dumps(facts))
