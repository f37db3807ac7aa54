"""Where the commands' figures go: to the terminal, and to a JSON file if one is named."""

from pathlib import Path
from typing import Any

import typer

from mmfusion.errors import UserError


def check_output(output: Path | None) -> None:
    """Refuse a place that cannot be written, before the work and not after it."""
    if output is None:
        return
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; name a JSON file")
    output.parent.mkdir(parents=True, exist_ok=True)


def show(entries: dict[str, Any], output: Path | None) -> None:
    """Print a table of the figures among the entries, and write all of them."""
    from mmfusion.eval.formatting import save, table

    typer.echo(table(entries))
    if output:
        save(output, entries)
        typer.echo(f"wrote {output}")
