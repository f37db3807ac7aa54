"""`mmfusion data ...`: raw data to shards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmfusion.errors import UserError

if TYPE_CHECKING:
    from mmfusion.data_pipelines.jobs import Made
    from mmfusion.data_pipelines.pictures import PictureReader

app = typer.Typer(help="Prepare data: shards, tokenizers, latents.", no_args_is_help=True)

Output = Annotated[Path, typer.Option("-o", "--output", help="folder of the shards")]
Name = Annotated[str, typer.Option(help="how the shards' names begin")]
Size = Annotated[
    int | None, typer.Option(min=1, help="keep only a centre square of so many pixels a side")
]
PerShard = Annotated[int, typer.Option(min=1, help="samples in a shard")]
Format = Annotated[Literal["jpeg", "png"], typer.Option(help="what --size saves pictures as")]


@app.command()
def digits(output: Output = Path("runs/digits/data")) -> None:
    """Write scikit-learn's handwritten digits as shards, with a tokenizer and the fixed split."""
    from mmfusion.data_pipelines.digits import write_digits

    if (output / "split.json").is_file():
        typer.echo(f"already there: {output}")
        return
    write_digits(output)
    typer.echo(f"wrote {output}")


@app.command()
def imagenet(
    source: Annotated[
        str, typer.Argument(help="folder with a folder a class, or tars ('train/*.tar')")
    ],
    output: Output = Path("data/imagenet"),
    names: Annotated[
        Path | None, typer.Option(help="imagenet_class_index.json: {number: [folder, name]}")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="ILSVRC's devkit, or a table of file and class")
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(help="table with captions of the pictures, by path or name")
    ] = None,
    size: Size = None,
    format: Format = "jpeg",
    seed: Annotated[int, typer.Option(help="of the shuffle")] = 0,
    per_shard: PerShard = 2000,
    name: Name = "train",
) -> None:
    """Write pictures by class as shards, and classes.json."""
    from mmfusion.data_pipelines.imagenet import write_imagenet

    reader = _reader(size, format)
    made = write_imagenet(source, output, name, names, reader, seed, per_shard, labels, captions)
    _say(made, output)


@app.command()
def captions(
    source: Annotated[
        str, typer.Argument(help="table (JSONL, JSON, CSV, TSV, parquet) or tars ('*.tar')")
    ],
    output: Output = Path("data/captions"),
    images: Annotated[Path | None, typer.Option(help="folder in which paths begin")] = None,
    split: Annotated[list[str] | None, typer.Option(help="only these rows (repeatable)")] = None,
    image_column: Annotated[str | None, typer.Option(help="of paths, or of pictures")] = None,
    caption_column: Annotated[str | None, typer.Option(help="of captions")] = None,
    caption_key: Annotated[
        str | None, typer.Option(help="of captions in the json members of tars")
    ] = None,
    size: Size = None,
    format: Format = "jpeg",
    per_shard: PerShard = 2000,
    name: Name = "train",
) -> None:
    """Write captioned pictures as shards."""
    from mmfusion.data_pipelines.captions import write_captions
    from mmfusion.data_pipelines.tables import Wanted

    wanted = Wanted(images, tuple(split or ()), image_column, caption_column)
    reader = _reader(size, format)
    made = write_captions(source, output, name, reader, 0, per_shard, wanted, caption_key)
    _say(made, output)


@app.command()
def interleaved(
    lines: Annotated[Path, typer.Argument(help='JSONL of {"content": [{"text": ...}, ...]}')],
    output: Output = Path("data/interleaved"),
    size: Size = None,
    format: Format = "jpeg",
    name: Name = "train",
) -> None:
    """Write documents of pictures and texts as shards."""
    from mmfusion.data_pipelines.interleaved import write_interleaved

    _say(write_interleaved(lines, output, name, _reader(size, format)), output)


@app.command()
def latents(
    shards: Annotated[str, typer.Argument(help="glob of shards of pictures, in quotes")],
    output: Output,
    config: Annotated[str, typer.Option(help="whose image section names the autoencoder")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value")] = None,
    flip: Annotated[bool, typer.Option("--flip", help="of mirrored pictures too")] = False,
    batch: Annotated[int, typer.Option(min=1, help="pictures encoded side by side")] = 32,
) -> None:
    """Write shards of pictures as shards of latents."""
    from mmfusion.config import load
    from mmfusion.data_pipelines.latents import write_latents
    from mmfusion.export import default_device

    image = load(config, overrides or []).image
    _say(write_latents(shards, output, image, flip, batch, default_device()), output)


@app.command()
def tokenizer(
    output: Annotated[Path, typer.Option("-o", "--output", help="the model's file")],
    shards: Annotated[
        list[str] | None, typer.Option(help="glob of shards with captions or content (repeatable)")
    ] = None,
    text: Annotated[list[Path] | None, typer.Option(help="text file (repeatable)")] = None,
    vocabulary: Annotated[int, typer.Option(min=1, help="most pieces")] = 32_000,
) -> None:
    """Train a tokenizer from the texts of shards and text files."""
    from mmfusion.data_pipelines.tokenizer import corpus, train_tokenizer

    if not shards and not text:
        raise UserError("tokenizer: give --shards or --text to train it from")
    typer.echo(f"wrote {train_tokenizer(corpus(shards or [], text or []), output, vocabulary)}")


def _reader(size: int | None, format: Literal["jpeg", "png"]) -> "PictureReader":
    from mmfusion.data_pipelines.pictures import PictureReader

    return PictureReader(size, format)


def _say(made: "Made", output: Path) -> None:
    from mmfusion.data_pipelines.jobs import LOST, reasons

    typer.echo(f"wrote {made.new} of {made.shards + made.missing} shards to {output}")
    if made.missing:
        typer.echo(f"other processes are at work on {made.missing}")
    if made.lost:
        typer.echo(f"left out: {reasons(made.lost)}; listed in {output / LOST}")
