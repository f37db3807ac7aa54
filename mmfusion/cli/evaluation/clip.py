"""`mmfusion eval clip`."""

import hashlib
import json
from pathlib import Path
from typing import Annotated

import typer

from mmfusion import launcher
from mmfusion.cli.evaluation.output import check_output, show


def clip(
    pictures: Annotated[str, typer.Argument(help="a folder of pictures, or shards with captions")],
    model: Annotated[
        str, typer.Option(help="MODEL:TAG, MODEL:FILE, a folder that open_clip saved, hf-hub:ID")
    ],
    texts: Annotated[
        Path | None, typer.Option(help="for a folder: JSON {name: text}, JSON lines, or COCO's")
    ] = None,
    others: Annotated[int, typer.Option(min=1, help="texts that each is told from")] = 99,
    seed: Annotated[int, typer.Option(min=0, help="of the choice of those texts")] = 0,
    work: Annotated[
        Path | None,
        typer.Option(
            help="folder for embeddings that processes share and keep; default: "
            "none, and with several processes the user's cache"
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON file")] = None,
) -> None:
    """Measure how well pictures match their texts: CLIP score and retrieval."""
    from mmfusion.eval.alignment import clip_score, embed_pairs, retrieval
    from mmfusion.eval.clip.captioned import open_captioned
    from mmfusion.eval.clip.model import load_clip
    from mmfusion.eval.work import rank
    from mmfusion.home import cache_folder

    check_output(output)
    captioned = open_captioned(pictures, texts)
    if work is None and launcher.place().world > 1:
        work = cache_folder() / "embeddings"  # else each rank would embed everything
    pairs = embed_pairs(
        load_clip(model), captioned.pictures, captioned.texts, work=work, digest=captioned.digest
    )
    about = {
        "source": pictures,
        "source_sha256": captioned.digest,
        "texts": str(texts or pictures),
        "texts_sha256": hashlib.sha256(json.dumps(captioned.texts).encode()).hexdigest(),
    }
    if rank() == 0:
        figures = {**clip_score(pairs), **retrieval(pairs, seed, others)}
        show({name: {**figure, **about} for name, figure in figures.items()}, output)
        if captioned.unused:
            typer.echo(f"warning: {captioned.unused} texts have no picture")
