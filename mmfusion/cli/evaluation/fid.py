"""`mmfusion eval fid`."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mmfusion.errors import UserError


def fid(
    pictures: Annotated[
        str, typer.Argument(help="what to judge: a folder, shards (.tar), or an .npz of samples")
    ],
    reference: Annotated[
        str, typer.Argument(help="what to compare with: the same, or an ADM reference .npz")
    ],
    features: Annotated[
        str,
        typer.Option(
            help="inception[:FILE], dinov2:FOLDER, clip:MODEL[:TAG], module:FILE or pixels"
        ),
    ] = "inception",
    metrics: Annotated[
        str | None,
        typer.Option(help="some of fid,sfid,is,precision,recall,kid (default: all there can be)"),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="resize and cut all pictures to this side first")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="write the figures to this JSON file")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="where features are kept (default: the user's cache)")
    ] = None,
) -> None:
    """Measure FID, sFID, Inception score, precision, recall and KID of pictures.

    Under a launcher the ranks share the work. Features are kept: the same pictures are never run
    through the same network twice.
    """
    from mmfusion.eval.distribution import METRICS, impossible, key_of, measure
    from mmfusion.eval.extractors import make_extractor
    from mmfusion.eval.pictures import open_pictures

    asked = [name for name in (metrics or "").replace(",", " ").lower().split() if name]
    for name in asked:
        if name not in METRICS:
            raise UserError(f"--metrics {name}: choose from {', '.join(METRICS)}")
    if output and output.is_dir():
        raise UserError(f"--output {output}: is a folder; name a JSON file")
    made, real = open_pictures(pictures, size), open_pictures(reference, size)
    extractor = make_extractor(features)
    figures = measure(made, real, extractor, asked or None, work)
    if not figures:
        return  # another rank's
    _show(figures)
    for metric, why in impossible(made, real, extractor).items():
        typer.echo(f"left out: {key_of(metric, extractor)}: {why}")
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        part = output.with_name(f".{output.name}.{os.getpid()}.part")
        part.write_text(json.dumps(figures, indent=1, ensure_ascii=False), encoding="utf-8")
        os.replace(part, output)
        typer.echo(f"wrote {output}")


def _show(figures: dict[str, dict[str, Any]]) -> None:
    typer.echo(f"{'figure':<18}{'value':>12}{'n':>10}{'reference n':>14}")
    for name, figure in figures.items():
        given = "moments" if figure.get("reference_moments") else figure.get("n_reference", "-")
        shown = f"{given:,}" if isinstance(given, int) else given
        typer.echo(f"{name:<18}{figure['value']:>12.5g}{figure['n']:>10,}{shown:>14}")
    about: dict[str, str] = {}
    for figure in figures.values():
        for what in ("extractor", "source", "reference"):
            if what in figure:
                digest = figure[f"{what}_sha256"]
                about[what] = figure[what] + (f" (sha256 {digest[:12]})" if digest else "")
    for what, told in about.items():
        typer.echo(f"{what:<10} {told}")
    for name, figure in figures.items():
        if "warning" in figure:
            typer.echo(f"warning: {name}: {figure['warning']}")
