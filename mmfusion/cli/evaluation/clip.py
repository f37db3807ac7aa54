"""`mmfusion eval clip`."""

import json
from pathlib import Path
from typing import Annotated

import typer


def clip(
    pictures: Annotated[str, typer.Argument(help="a folder of pictures, or shards with captions")],
    model: Annotated[
        str, typer.Option(help="MODEL:TAG, MODEL:FILE, a folder that open_clip saved, hf-hub:ID")
    ],
    texts: Annotated[
        Path | None, typer.Option(help="for a folder: JSON {name: text}, JSON lines, or COCO's")
    ] = None,
    prefix: Annotated[str, typer.Option(help='before each text, such as "A photo depicts "')] = "",
    others: Annotated[int, typer.Option(min=1, help="texts that each is told from")] = 99,
    seed: Annotated[int, typer.Option(min=0, help="of the choice of those texts")] = 0,
    work: Annotated[
        Path | None, typer.Option(help="folder for embeddings that processes share and keep")
    ] = None,
    insist: Annotated[
        bool, typer.Option(help="take weights that look as if trained with the other activation")
    ] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON file")] = None,
) -> None:
    """Measure how well pictures match their texts: CLIP score and retrieval."""
    from mmfusion.eval.alignment import clip_score, retrieval
    from mmfusion.eval.clip.captioned import open_captioned
    from mmfusion.eval.clip.model import load_clip
    from mmfusion.eval.clip.pairs import embed_pairs
    from mmfusion.eval.work import rank

    captioned = open_captioned(pictures, texts)
    loaded = load_clip(model)
    pairs = embed_pairs(loaded, captioned, captioned.texts, prefix, work, captioned.digest, insist)
    figures = {**clip_score(pairs), **retrieval(pairs, seed, others)}
    if rank():
        return
    typer.echo(f"{loaded.name}, weights {loaded.sha256[:16]}, {len(pairs.words)} pairs")
    for name, figure in figures.items():
        among = f"  of {figure['among']}" if "among" in figure else ""
        typer.echo(f"{name:12} {figure['value']:9.4f}{among}")
    warnings = [*dict.fromkeys(f["warning"] for f in figures.values() if "warning" in f)]
    if captioned.unused:
        warnings.append(f"{captioned.unused} texts have no picture")
    for warning in warnings:
        typer.echo(f"warning: {warning}")
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(figures, indent=1), encoding="utf-8")
        typer.echo(f"wrote {output}")
