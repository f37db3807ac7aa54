"""`mmfusion eval --model M --config E.yaml`: a model's whole evaluation; and each metric."""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mmfusion.cli.metrics import captions, clip, codec, fid, frontier, selftest
from mmfusion.errors import UserError

if TYPE_CHECKING:
    from mmfusion.config import EvaluationConfig, ModelConfig


class _Evaluation(TyperGroup):
    """`mmfusion eval MODEL` is short for `mmfusion eval --model MODEL`.

    A model takes no further words, so what stands before one is a metric, written wrongly.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            more = not all(word.startswith("-") for word in args[1:2])
            slip = more or get_close_matches(args[0], self.commands, 1, 0.75)
            if slip and not _is_model(args[0]):
                raise UserError(
                    f"eval {args[0]}: no such metric; choose {', '.join(self.commands)}, or give "
                    "a model"
                )
            args = ["--model", *args]
        return super().parse_args(ctx, args)


def _is_model(name: str) -> bool:
    from mmfusion.export import SHIPPED

    return Path(name).exists() or (SHIPPED / name).is_dir()


app = typer.Typer(cls=_Evaluation, invoke_without_command=True, no_args_is_help=True)
for _metric in (fid, clip, captions, codec, frontier, selftest):
    app.command()(_metric)


@app.callback()
def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="a run's folder, or any model")] = "digits",
    config: Annotated[
        str | None,
        typer.Option(help="what to measure: a YAML (default: what the run's config says)"),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="the digits or the emoji suite's data")] = None,
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
    from mmfusion import files
    from mmfusion.config import is_run
    from mmfusion.eval.report import write_report
    from mmfusion.eval.run import Evaluation
    from mmfusion.eval.work import rank
    from mmfusion.export import locate, model_digest
    from mmfusion.pipeline import Pipeline

    folder = locate(model)
    within = folder.name == "model" and is_run(folder.parent / "config.yaml")
    run = folder.parent if within else None
    pipeline = Pipeline.from_pretrained(folder)
    settings = _settings(model, pipeline.config, config, run, data, seed)
    output = _output(output, model, run)
    page, report = output / "report.html", output / "report.json"
    files.check_free(page, report.exists())
    evaluation = Evaluation(pipeline, settings, output, model_digest(folder), model, work)
    found = _of_the_same(report, evaluation.facts)
    if found is None or again:
        found, sheets = evaluation.run()
        if rank() == 0:
            write_report(output, found, sheets)
            _tell(found, f"wrote {page} and {report}")
    elif rank() == 0:
        _tell(found, f"already there, of the same: {page} and {report}")


def _output(given: Path | None, model: str, run: Path | None) -> Path:
    """The report's folder: that of the model's run, or one that is no run's."""
    from mmfusion.config import is_run

    output = given or run
    if output is None:
        local = Path(model).resolve().name if Path(model).exists() else model.replace("/", "--")
        output = Path("runs", local)
        if is_run(output / "config.yaml"):  # as `digits`, the shipped one, and who trains digits
            output = Path("runs", f"{local}-eval")
    if output.is_file():
        raise UserError(f"--output {output}: is a file; name a folder")
    if is_run(output / "config.yaml") and not (run and output.samefile(run)):
        raise UserError(f"--output {output}: is the folder of another run; name another folder")
    return output


def _tell(report: dict[str, Any], last: str) -> None:
    from mmfusion.eval.digits.suite import summary
    from mmfusion.eval.formatting import columns, table

    if "judge" in report:
        typer.echo("\n".join(["\nthe digits suite", *columns(summary(report))]))
    for name, figures in report["figures"].items():
        typer.echo(f"\n{name}\n{table(figures)}")
    typer.echo(f"\n{last}")


def _settings(
    name: str,
    model: "ModelConfig",
    config: str | None,
    run: Path | None,
    data: Path | None,
    seed: int | None,
) -> "EvaluationConfig":
    from mmfusion.config import EvaluationConfig, load, load_evaluation
    from mmfusion.config.evaluation import Digits
    from mmfusion.eval.own import own_evaluation

    if config:
        found = load_evaluation(config)
    else:
        found = own_evaluation(name, model, load(str(run / "config.yaml")) if run else None)
    suites = {name: suite for name in ("digits", "emoji") if (suite := getattr(found, name))}
    if data and suites:
        at = {name: suite.model_copy(update={"data": str(data)}) for name, suite in suites.items()}
        found = found.model_copy(update=at)
    elif data and config:
        raise UserError("--data: is a suite's, digits or emoji; say in the --config what to read")
    elif data:
        found = EvaluationConfig(digits=Digits(data=str(data)))
    return found if seed is None else found.model_copy(update={"seed": seed})


def _of_the_same(report: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """A report that is there, if it is of the same model, settings, data, networks and versions."""
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
        known = {"model": found["model"], **{name: found.get(name) for name in facts}}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise UserError(f"{report}: not a report of this program; move it away") from None
    return found if known == json.loads(json.dumps(facts)) else None
