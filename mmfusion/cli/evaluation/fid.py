"""`mmfusion eval fid`."""

from pathlib import Path
from typing import Annotated

import typer

from mmfusion.cli.evaluation.output import check_output, show
from mmfusion.errors import UserError


def fid(
    pictures: Annotated[
        str, typer.Argument(help="what to judge: a folder, shards (.tar), or an .npz of samples")
    ],
    reference: Annotated[
        str | None,
        typer.Argument(
            help="what to compare with: the same, or an ADM reference .npz; without it, only "
            "the Inception Score is measured"
        ),
    ] = None,
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
    from mmfusion.eval.image_sets import open_images

    asked = [name for name in (metrics or "").replace(",", " ").lower().split() if name]
    for name in asked:
        if name not in METRICS:
            raise UserError(f"--metrics {name}: choose from {', '.join(METRICS)}")
    check_output(output)
    made = open_images(pictures, size)
    real = open_images(reference, size) if reference else None
    extractor = make_extractor(features)
    figures = measure(made, real, extractor, asked or None, work)
    if figures:  # else they are another rank's
        cannot = impossible(made, real, extractor)
        left_out = {key_of(metric, extractor): why for metric, why in cannot.items() if not asked}
        show({**figures, "left_out": left_out}, output)
