"""`mmfusion data ...`: raw data to shards."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Argument, Option

from mmfusion.errors import UserError

if TYPE_CHECKING:
    from mmfusion.data_pipelines.shard_writer import Made

app = typer.Typer(help="Prepare data: shards, tokenizers, latents.", no_args_is_help=True)

File = Path | None
Text = str | None
Texts = list[str] | None
Folder = Annotated[Path, Option("-o", "--output", help="folder of the shards")]
Name = Annotated[str, Option(help="how the shards' names begin")]
Size = Annotated[int | None, Option(min=1, help="side in pixels of the centre square that is kept")]
Format = Annotated[Literal["jpeg", "png"], Option(help="what --size saves pictures as")]
Seed = Annotated[int, Option(help="of the shuffle")]
PerShard = Annotated[int, Option(min=1, help="samples or documents of a shard")]
MostLost = Annotated[float, Option(min=0, max=1, help="share of unusable items that is let pass")]


@app.command()
def digits(output: Folder = Path("runs/digits/data")) -> None:
    """Write scikit-learn's handwritten digits as shards, with a tokenizer and the fixed split."""
    from mmfusion.data_pipelines.converters.digits import write_digits

    typer.echo(f"{'wrote' if write_digits(output) else 'already there:'} {output}")


@app.command()
def emoji(
    packages: Annotated[
        list[Path], Argument(help="icon sets, as `npm pack @iconify-json/NAME` fetches them")
    ],
    output: Folder = Path("runs/emoji/data"),
    size: Annotated[int, Option(min=1, max=1024, help="pixels a side")] = 64,
    names: Annotated[
        File, Option(help="file of names, one a line; default: 130 well-known things")
    ] = None,
    most: Annotated[
        int | None, Option(min=1, help="draw so many of all names that the sets share, instead")
    ] = None,
    without: Annotated[
        list[str] | None,
        Option(help="category to leave out (repeatable); default: flags, people, symbols"),
    ] = None,
    seed: Annotated[int, Option(help="of names, split, pairs and order")] = 0,
) -> None:
    """Write several designers' emoji as shards for four tasks, with a tokenizer."""
    from mmfusion.data_pipelines.converters.emoji import NAMES, WITHOUT, write_emoji

    if names and most:
        raise UserError("data emoji: --names is a list, --most a draw; give one of them")
    left_out = tuple(without or WITHOUT)
    _say(write_emoji(packages, output, size, names or NAMES, most, left_out, seed), output)


@app.command()
def imagenet(
    source: Annotated[str, Argument(help="folder with a folder a class, or tars")],
    output: Folder = Path("data/imagenet"),
    names: Annotated[
        File, Option(help="imagenet_class_index.json: {number: [folder, name]}")
    ] = None,
    labels: Annotated[File, Option(help="ILSVRC's devkit, or a table of file and class")] = None,
    captions: Annotated[
        File, Option(help="table of captions, by path or name of the picture")
    ] = None,
    size: Size = None,
    format: Format = "jpeg",
    seed: Seed = 0,
    per_shard: PerShard = 2000,
    name: Name = "train",
    most_lost: MostLost = 0.1,
) -> None:
    """Write pictures by class as shards, and classes.json."""
    from mmfusion.data_pipelines.converters.imagenet import write_imagenet
    from mmfusion.data_pipelines.images import ImageReader
    from mmfusion.data_pipelines.shard_writer import Output

    shards = Output(output, name, ImageReader(size, format), seed, per_shard, most_lost)
    _say(write_imagenet(source, shards, names, labels, captions), output)


@app.command()
def captions(
    source: Annotated[str, Argument(help="table (JSONL, JSON, CSV, TSV, parquet) or tars")],
    output: Folder = Path("data/captions"),
    images: Annotated[File, Option(help="folder in which paths begin")] = None,
    split: Annotated[Texts, Option(help="only these rows (repeatable)")] = None,
    image_column: Annotated[Text, Option(help="of paths, or of pictures")] = None,
    caption_column: Annotated[Text, Option(help="of captions")] = None,
    caption_key: Annotated[Text, Option(help="of captions in tars' json members")] = None,
    size: Size = None,
    format: Format = "jpeg",
    seed: Seed = 0,
    per_shard: PerShard = 2000,
    name: Name = "train",
    most_lost: MostLost = 0.1,
) -> None:
    """Write captioned pictures as shards."""
    from mmfusion.data_pipelines.converters.annotations import Wanted
    from mmfusion.data_pipelines.converters.captions import write_captions
    from mmfusion.data_pipelines.images import ImageReader
    from mmfusion.data_pipelines.shard_writer import Output

    shards = Output(output, name, ImageReader(size, format), seed, per_shard, most_lost)
    wanted = Wanted(images, tuple(split or ()), image_column, caption_column)
    _say(write_captions(source, shards, wanted, caption_key), output)


@app.command()
def interleaved(
    documents: Annotated[str, Argument(help="JSONL, JSONL.gz or parquet; or a glob in quotes")],
    output: Folder = Path("data/interleaved"),
    images: Annotated[File, Option(help="of the pictures; default: the documents' folder")] = None,
    image_table: Annotated[File, Option(help="a table with the columns url and path")] = None,
    learn: Annotated[
        Literal["text", "pictures", "both"], Option(help="of MMC4 and OBELICS")
    ] = "both",
    min_similarity: Annotated[
        float | None, Option(help="of MMC4's pictures to their sentences")
    ] = None,
    max_pictures: Annotated[int, Option(min=1, help="of a sample")] = 8,
    max_tokens: Annotated[int, Option(min=16, help="of a sample's texts")] = 1024,
    tokenizer: Annotated[File, Option(help="counts tokens; default: 3 bytes are one")] = None,
    size: Size = None,
    format: Format = "jpeg",
    seed: Seed = 0,
    per_shard: PerShard = 2000,
    name: Name = "train",
    most_lost: MostLost = 0.1,
) -> None:
    """Write documents of pictures and texts as shards: our own JSONL, MMC4 or OBELICS."""
    from mmfusion.data_pipelines.converters.interleaved import write_interleaved
    from mmfusion.data_pipelines.converters.interleaved_formats import Reading
    from mmfusion.data_pipelines.converters.splitting import Limits
    from mmfusion.data_pipelines.images import ImageReader
    from mmfusion.data_pipelines.shard_writer import Output

    shards = Output(output, name, ImageReader(size, format), seed, per_shard, most_lost)
    reading = Reading(learn, min_similarity)
    limits = Limits(max_pictures, max_tokens, tokenizer)
    _say(write_interleaved(documents, shards, reading, limits, images, image_table), output)


@app.command()
def latents(
    shards: Annotated[str, Argument(help="glob of shards of pictures, in quotes")],
    output: Folder,
    config: Annotated[str, Option(help="whose image section names the autoencoder")],
    overrides: Annotated[Texts, Argument(help="key.path=value")] = None,
    flip: Annotated[bool, Option("--flip", help="of mirrored pictures too")] = False,
    batch: Annotated[int, Option(min=1, help="pictures encoded side by side")] = 32,
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
def autoencoder(
    shards: Annotated[str, Argument(help="glob of shards of pictures, in quotes")],
    output: Annotated[Path, Option("-o", "--output", help="folder of the autoencoder")],
    config: Annotated[str, Option(help="whose image section says size, channels, downsampling")],
    overrides: Annotated[Texts, Argument(help="key.path=value")] = None,
    steps: Annotated[int, Option(min=1, help="more of them go on where fewer ended")] = 4000,
    batch: Annotated[int, Option(min=1, help="pictures of a step")] = 16,
    lr: Annotated[float, Option(min=0.0, help="highest learning rate")] = 2e-3,
    width: Annotated[int, Option(min=4, help="channels at full size, a multiple of 4")] = 16,
    noise: Annotated[
        float, Option(min=0.0, help="most noise on latents in training, in their deviation")
    ] = 0.2,
    seed: Annotated[int, Option(help="of weights, held-out pictures, order and noise")] = 0,
    save_every: Annotated[int, Option(min=1, help="steps between checkpoints")] = 100,
) -> None:
    """Train a small diffusers AutoencoderKL (codec `vae`) on the pictures of shards.

    A twentieth of the pictures, at most 256, is held out and measured at the end. The same command
    goes on from its last checkpoint; Ctrl-C and SIGTERM write one.
    """
    from mmfusion.codecs.image import make_codec
    from mmfusion.config import load
    from mmfusion.data_pipelines.autoencoder import PAGE, Pictures, Recipe, Trainer
    from mmfusion.eval.reconstruction import reconstruct, write_page
    from mmfusion.export import default_device

    image = load(config, overrides or []).image
    pictures, device = Pictures(shards, image, seed), default_device()
    trainer = Trainer(pictures, output, Recipe(batch, lr, width, noise, seed), device)
    trainer.run(steps, save_every)
    parameters = trainer.write()
    codec = make_codec(image.model_copy(update={"vae": str(output)}), device)
    found = reconstruct(codec, pictures.held_out())
    write_page(output / PAGE, codec, found, f"{shards} that were held out")
    typer.echo(f"wrote {output}: {parameters:,} parameters, step {trainer.step:,}; held out:")
    for line in found.lines():
        typer.echo(f"  {line}")


@app.command()
def tokenizer(
    output: Annotated[Path, Option("-o", "--output", help="the model's file")],
    shards: Annotated[Texts, Option(help="glob of shards with texts (repeatable)")] = None,
    text: Annotated[Texts, Option(help="text file or glob in quotes (repeatable)")] = None,
    take: Annotated[Text, Option(help="instead, a tokenizer: file, folder or hub id")] = None,
    vocabulary: Annotated[
        int, Option(min=256, help="most pieces, the 256 bytes included")
    ] = 32_000,
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
    shards: Annotated[list[str], Argument(help="globs, braces or URLs of shards, in quotes")],
    quick: Annotated[bool, Option("--quick", help="only tar headers and checksums")] = False,
    reindex: Annotated[
        bool, Option("--reindex", help="the shards were changed on purpose: index them anew")
    ] = False,
    json: Annotated[File, Option(help="file for the list of all damage")] = None,
) -> None:
    """Read every member of every shard; exits with 1 when something is damaged."""
    from mmfusion.data_pipelines.inspection.verification import verify

    report = verify(shards, quick, reindex, json)
    for line in report.lines():
        typer.echo(line)
    if report.damaged:
        raise typer.Exit(1)


@app.command()
def inspect(
    shards: Annotated[
        Texts, Argument(help="globs, braces or URLs in quotes; and key.path=value")
    ] = None,
    output: Annotated[
        File, Option("-o", "--output", help="x.png: a contact sheet; also x.json")
    ] = None,
    config: Annotated[
        Text, Option(help="count tokens and draw packed rows, to x.rows.png, for it")
    ] = None,
    task: Annotated[Text, Option(help="read the shards as this task alone")] = None,
    count: Annotated[int, Option(min=1, help="samples on the sheet")] = 24,
    most: Annotated[int, Option(min=1, help="samples of which the facts are read")] = 100_000,
    pictures: Annotated[int, Option(min=0, help="samples whose pictures are read")] = 256,
    seed: Annotated[int, Option(help="of what is chosen")] = 0,
) -> None:
    """Show what is in shards: figures, a sheet of samples, and documents as packed rows."""
    from mmfusion.config import Config, load
    from mmfusion.data_pipelines.inspection.inspect import ROWS, TASKS, inspect, lines

    if task is not None and (task not in TASKS or config is None):
        raise UserError(f"--task goes with --config and is one of {', '.join(TASKS)}; got {task}")
    if output is not None and output.suffix.lower() != ".png":
        raise UserError(f"--output {output}: the sheet is a PNG; give a name that ends in .png")
    # With a config, what begins with one of its keys changes it, as in all other commands.
    keys = tuple(Config.model_fields) if config else ()
    given = shards or []
    there = [g for g in given if os.path.exists(g) or os.path.isdir(os.path.dirname(g))]
    named = [g for g in given if "=" in g and g not in there]
    overrides = [g for g in named if g.split("=")[0].split(".")[0] in keys]
    patterns = [g for g in given if g not in overrides]
    run = load(config, overrides) if config else None
    only = next((name for name in TASKS if name == task), None)
    result = inspect(patterns, output, run, only, count, most, pictures, seed)
    for line in lines(result):
        typer.echo(line)
    if output:
        rows = [output.with_suffix(ROWS)] if config else []
        made = [output, output.with_suffix(".json"), *(row for row in rows if row.exists())]
        typer.echo("wrote " + ", ".join(map(str, made)))
