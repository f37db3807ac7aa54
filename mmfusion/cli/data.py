"""`mmfusion data ...`: raw data to shards."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmfusion import launcher
from mmfusion.errors import UserError

if TYPE_CHECKING:
    from mmfusion.data_pipelines.shard_writer import Made

app = typer.Typer(help="Prepare data: shards, tokenizers, latents.", no_args_is_help=True)

Output = Annotated[Path, typer.Option("-o", "--output", help="folder of the shards")]
Name = Annotated[str, typer.Option(help="how the shards' names begin")]
Size = Annotated[
    int | None, typer.Option(min=1, help="keep only a centre square of so many pixels a side")
]
PerShard = Annotated[int, typer.Option(min=1, help="samples in a shard")]
MostLost = Annotated[
    float, typer.Option(min=0, max=1, help="share of the items that may be unusable")
]
Format = Annotated[Literal["jpeg", "png"], typer.Option(help="what --size saves pictures as")]


@app.command()
def digits(output: Output = Path("runs/digits/data")) -> None:
    """Write scikit-learn's handwritten digits as shards, with a tokenizer and the fixed split."""
    from mmfusion.data_pipelines.converters.digits import write_digits

    if not write_digits(output):
        typer.echo(f"already there: {output}")
        return
    typer.echo(f"wrote {output}")


@app.command()
def emoji(
    packages: Annotated[
        list[Path], typer.Argument(help="icon sets, as `npm pack @iconify-json/NAME` fetches them")
    ],
    output: Output = Path("runs/emoji/data"),
    size: Annotated[int, typer.Option(min=1, max=1024, help="pixels a side")] = 64,
    most: Annotated[int, typer.Option(min=1, help="names, of those that all sets have")] = 600,
    without: Annotated[
        list[str] | None,
        typer.Option(help="category to leave out (repeatable); default: flags, people, symbols"),
    ] = None,
    seed: Annotated[int, typer.Option(help="of names, split, pairs and order")] = 0,
) -> None:
    """Write several designers' emoji as shards for four tasks, with a tokenizer."""
    from mmfusion.data_pipelines.converters.emoji import WITHOUT, write_emoji

    _say(write_emoji(packages, output, size, most, tuple(without or WITHOUT), seed), output)


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
    most_lost: MostLost = 0.1,
) -> None:
    """Write pictures by class as shards, and classes.json."""
    from mmfusion.data_pipelines.converters.imagenet import write_imagenet
    from mmfusion.data_pipelines.images import ImageReader

    reader = ImageReader(size, format)
    made = write_imagenet(
        source, output, name, names, reader, seed, per_shard, labels, captions, most_lost
    )
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
    seed: Annotated[int, typer.Option(help="of the shuffle of a table's pictures")] = 0,
    per_shard: PerShard = 2000,
    name: Name = "train",
    most_lost: MostLost = 0.1,
) -> None:
    """Write captioned pictures as shards."""
    from mmfusion.data_pipelines.converters.annotations import Wanted
    from mmfusion.data_pipelines.converters.captions import write_captions
    from mmfusion.data_pipelines.images import ImageReader

    wanted = Wanted(images, tuple(split or ()), image_column, caption_column)
    reader = ImageReader(size, format)
    made = write_captions(
        source, output, name, reader, seed, per_shard, wanted, caption_key, most_lost
    )
    _say(made, output)


@app.command()
def interleaved(
    documents: Annotated[
        str, typer.Argument(help="JSONL, JSONL.gz or parquet; a glob in quotes for several files")
    ],
    output: Output = Path("data/interleaved"),
    images: Annotated[
        Path | None, typer.Option(help="folder of the pictures; default: that of the documents")
    ] = None,
    image_table: Annotated[
        Path | None, typer.Option(help="JSONL, CSV or parquet with the columns url and path")
    ] = None,
    learn: Annotated[
        Literal["text", "pictures", "both"], typer.Option(help="of MMC4 and OBELICS")
    ] = "both",
    min_similarity: Annotated[
        float | None, typer.Option(help="of MMC4's pictures to their sentences")
    ] = None,
    max_pictures: Annotated[int, typer.Option(min=1, help="of a sample")] = 8,
    max_tokens: Annotated[int, typer.Option(min=16, help="of a sample's texts")] = 1024,
    tokenizer: Annotated[
        Path | None, typer.Option(help="model that counts tokens; default: 3 bytes are one")
    ] = None,
    size: Size = None,
    format: Format = "jpeg",
    seed: Annotated[int, typer.Option(help="of the shuffle")] = 0,
    name: Name = "train",
    per_shard: Annotated[int, typer.Option(min=1, help="documents of a shard")] = 2000,
    most_lost: MostLost = 0.1,
) -> None:
    """Write documents of pictures and texts as shards: our own JSONL, MMC4 or OBELICS."""
    from mmfusion.data_pipelines.converters.interleaved import write_interleaved
    from mmfusion.data_pipelines.converters.interleaved_formats import Reading
    from mmfusion.data_pipelines.converters.splitting import Limits
    from mmfusion.data_pipelines.images import ImageReader

    made = write_interleaved(
        documents,
        output,
        name,
        ImageReader(size, format),
        seed,
        Reading(learn, min_similarity),
        Limits(max_pictures, max_tokens, tokenizer),
        images,
        image_table,
        per_shard,
        most_lost,
    )
    _say(made, output)


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
def linear_codec(
    shards: Annotated[str, typer.Argument(help="glob of shards of pictures, in quotes")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the codec's file")],
    config: Annotated[str, typer.Option(help="whose image section says size, patch and numbers")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value")] = None,
) -> None:
    """Fit the codec `linear` to the pictures of shards: principal components of patches."""
    from mmfusion.codecs.linear import fit
    from mmfusion.config import load
    from mmfusion.data_pipelines.shards import Shards

    image = load(config, overrides or []).image
    pictures = (sample.picture() for sample in Shards(shards))
    kept = fit(pictures, image, output)
    typer.echo(
        f"wrote {output}: {image.latent_dim} numbers a token keep {kept:.2%} of the variance"
    )


@app.command()
def tokenizer(
    output: Annotated[Path, typer.Option("-o", "--output", help="the model's file")],
    shards: Annotated[
        list[str] | None, typer.Option(help="glob of shards with captions or content (repeatable)")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="text file, or a glob in quotes (repeatable)")
    ] = None,
    take: Annotated[
        str | None,
        typer.Option(help="an existing tokenizer instead: a file, a folder or a hub id"),
    ] = None,
    vocabulary: Annotated[int, typer.Option(min=1, help="most pieces")] = 32_000,
) -> None:
    """Train a tokenizer from the texts of shards and text files, or take an existing one.

    Of more than a million lines, as many are drawn at random from each --shards and --text.
    """
    if take and (shards or text):
        raise UserError("tokenizer: --take trains nothing; leave out --shards and --text")
    if take:
        from mmfusion.data_pipelines.import_tokenizer import take_tokenizer

        typer.echo(f"wrote {take_tokenizer(take, output)}")
        return
    if not shards and not text:
        raise UserError("tokenizer: give --shards or --text to train it from, or --take one")
    from mmfusion.data_pipelines.tokenizer import corpus, train_tokenizer

    lines = corpus(shards or [], text or [], report=typer.echo)
    typer.echo(f"wrote {train_tokenizer(lines, output, vocabulary)}")


def _say(made: "Made", output: Path) -> None:
    from mmfusion.data_pipelines.shard_writer import LOST, reasons

    typer.echo(f"wrote {made.new} of {made.shards + made.missing} shards to {output}")
    if made.missing:
        typer.echo(f"other processes are at work on {made.missing}")
    if made.lost:
        typer.echo(f"left out: {reasons(made.lost)}; listed in {output / LOST}")


# What is in shards, and whether it is whole.


@app.command()
def verify(
    shards: Annotated[list[str], typer.Argument(help="globs, braces or URLs of shards, in quotes")],
    quick: Annotated[bool, typer.Option("--quick", help="only tar headers and checksums")] = False,
    reindex: Annotated[
        bool, typer.Option("--reindex", help="the shards were changed on purpose: index them anew")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="file for the list of all damage")] = None,
) -> None:
    """Read every member of every shard; exits with 1 when something is damaged."""
    from mmfusion.data_pipelines.inspection.damage_report import together
    from mmfusion.data_pipelines.inspection.verification import verify

    report = together(verify(shards, quick, reindex, json))
    # One process speaks for all: a launcher stops it when another one ends with an exit code.
    if launcher.place().rank > 0 and os.environ.get("MASTER_ADDR"):
        return
    for line in report.lines():
        typer.echo(line)
    if report.damaged:
        raise typer.Exit(1)


@app.command()
def inspect(
    shards: Annotated[
        list[str] | None, typer.Argument(help="globs, braces or URLs in quotes; and key.path=value")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="x.png: a contact sheet; also x.json")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="count tokens and draw packed rows, to x.rows.png, for it")
    ] = None,
    task: Annotated[str | None, typer.Option(help="read the shards as this task alone")] = None,
    count: Annotated[int, typer.Option(min=1, help="samples on the sheet")] = 24,
    most: Annotated[int, typer.Option(min=1, help="samples of which the facts are read")] = 100_000,
    pictures: Annotated[int, typer.Option(min=0, help="samples whose pictures are read")] = 256,
    seed: Annotated[int, typer.Option(help="of what is chosen")] = 0,
) -> None:
    """Show what is in shards: figures, a sheet of samples, and documents as packed rows."""
    from mmfusion.config import Config, load
    from mmfusion.data_pipelines.inspection.inspect import TASKS, inspect, lines

    if task is not None and (task not in TASKS or config is None):
        raise UserError(f"--task goes with --config and is one of {', '.join(TASKS)}; got {task}")
    if output is not None and output.suffix.lower() != ".png":
        raise UserError(f"--output {output}: the sheet is a PNG; give a name that ends in .png")
    # With a config, what begins with one of its keys changes it, as in all other commands.
    keys = tuple(Config.model_fields) if config else ()
    given = shards or []
    named = [g for g in given if "=" in g and not os.path.exists(g)]
    overrides = [g for g in named if g.split("=")[0].split(".")[0] in keys]
    patterns = [g for g in given if g not in overrides]
    run = load(config, overrides) if config else None
    only = next((name for name in TASKS if name == task), None)
    result = inspect(patterns, output, run, only, count, most, pictures, seed)
    for line in lines(result):
        typer.echo(line)
    if output:
        rows = [output.with_suffix(".rows.png")] if config else []
        made = [output, output.with_suffix(".json"), *(row for row in rows if row.exists())]
        typer.echo("wrote " + ", ".join(map(str, made)))
