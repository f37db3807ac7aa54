"""`mmfusion eval captions`: a model's captions against references."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from mmfusion.cli.evaluation.output import check_output, show


def captions(
    results: Annotated[Path, typer.Argument(help='JSON list of {"image_id", "caption"}')],
    references: Annotated[
        Path, typer.Argument(help="COCO's annotations, Karpathy's splits, or {id: [captions]}")
    ],
    metrics: Annotated[
        str | None,
        typer.Option(help="bleu, rouge_l, cider, meteor, spice (default: what can be measured)"),
    ] = None,
    tokenizer: Annotated[
        Literal["auto", "ptb", "plain", "spaces"],
        typer.Option(help="auto: as published where Java is, else plain"),
    ] = "auto",
    partial: Annotated[
        bool, typer.Option("--partial", help="score the pictures that are in both files")
    ] = False,
    per_picture: Annotated[
        Path | None, typer.Option(help="write each picture's scores, one JSON object a line")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON of figures")] = None,
) -> None:
    """BLEU, ROUGE-L, CIDEr-D, METEOR and SPICE of captions, as COCO's evaluation gives them."""
    from mmfusion.eval.captions.coco import pair, read_references, read_results
    from mmfusion.eval.captions.scores import score
    from mmfusion.files import writing
    from mmfusion.manifest import sha256

    check_output(output)
    check_output(per_picture)
    paired = pair(read_results(results), read_references(references), partial)
    wanted = None if metrics is None else [m for m in metrics.replace(",", " ").split() if m]
    scores = score(paired.references, paired.candidates, wanted, tokenizer, paired.names)
    if per_picture:
        with writing(per_picture) as part, part.open("w", encoding="utf-8") as lines:
            for number, name in enumerate(paired.names):
                each = {key: values[number] for key, values in scores.per_picture.items()}
                line = {"image_id": name, "caption": paired.candidates[number], **each}
                lines.write(json.dumps(line) + "\n")
    about = {
        "results": results.name,
        "results_sha256": sha256(results),
        "references": references.name,
        "references_sha256": sha256(references),
        **{what.replace(" ", "_"): count for what, count in paired.left_out.items()},
    }
    figures = {key: {**figure, **about} for key, figure in scores.figures.items()}
    show({**figures, "left_out": {**scores.left_out, **paired.left_out}}, output)
