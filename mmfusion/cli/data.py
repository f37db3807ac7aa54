"""`mmfusion data ...`: raw data to shards."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Prepare data: shards, tokenizers, latents.", no_args_is_help=True)


@app.command()
def digits(
    output: Annotated[Path, typer.Option("-o", "--output")] = Path("runs/digits/data"),
) -> None:
    """Write scikit-learn's handwritten digits as shards, with a tokenizer and the fixed split."""
    from mmfusion.data_pipelines.digits import write_digits

    if (output / "split.json").is_file():
        typer.echo(f"already there: {output}")
        return
    write_digits(output)
    typer.echo(f"wrote {output}")
