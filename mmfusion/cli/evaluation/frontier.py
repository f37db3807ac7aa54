"""`mmfusion eval frontier`."""

from pathlib import Path
from typing import Annotated

import typer

from mmfusion.errors import UserError


def frontier(
    reference: Annotated[
        str, typer.Option(help="real pictures: shards, such as 'DATA/train-*.tar', or a folder")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="folder of the page and points")],
    model: Annotated[str, typer.Option(help="a run's folder, or any model")] = "digits",
    task: Annotated[
        str | None, typer.Option(help="class_to_image or text_to_image (captions of the reference)")
    ] = None,
    pictures: Annotated[int, typer.Option(min=2, help="pictures of each point")] = 500,
    ar_steps: Annotated[str, typer.Option(help="numbers of AR steps")] = "1,2,4",
    schedulers: Annotated[
        str, typer.Option(help="default: the model's own default one and dpmsolver++")
    ] = "",
    steps: Annotated[str, typer.Option(help="numbers of inference steps")] = "5,10,20",
    guidance: Annotated[str, typer.Option(help="scales; default: the model's own")] = "",
    features: Annotated[
        str | None, typer.Option(help="as `eval fid` takes them; default: pixels or inception")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="pictures side by side")] = 64,
    seed: int = 0,
    device: Annotated[str | None, typer.Option(help="such as cpu; default: a GPU if any")] = None,
) -> None:
    """Measure quality against time, for the page and for `Pipeline(budget_ms=...)`."""
    from mmfusion.eval.frontier import PAGE, Grid, measure_frontier, name_of
    from mmfusion.generation.budget import FILE, pareto

    grid = Grid(
        _list("--ar-steps", ar_steps, int),
        _list("--schedulers", schedulers, str),
        _list("--steps", steps, int),
        _list("--guidance", guidance, float),
    )
    found = measure_frontier(
        model, task, reference, output, grid, pictures, features, batch_size, seed, device
    )
    figure = found.quality
    for line in found.left_out:
        typer.echo(f"left out: {line}")
    typer.echo(
        f"{found.task} on {found.machine}; {figure['name']}, n = {figure['n']}, features "
        f"{figure['extractor']}, reference {figure['reference']}. The frontier:\n"
    )
    for point in pareto(found.points):
        typer.echo(f"{point.milliseconds:9.1f} ms {point.distance:9.3f}  {name_of(point.options)}")
    if "warning" in figure:
        typer.echo(f"\nwarning: {figure['warning']}")
    typer.echo(f"\nwrote {output / PAGE} and {output / FILE}")


def _list(option: str, text: str, kind: type) -> list:
    try:
        return [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"{option} {text}: give numbers with commas between, such as 1,2") from None
