"""The command `mmfusion`: the Python API from a shell, with one line for a user's mistake."""

import errno
import os
import sys
from typing import Annotated, NoReturn

import typer

from mmfusion import __version__
from mmfusion.cli.data import app as data
from mmfusion.cli.evaluation import app as evaluation
from mmfusion.cli.generate import caption, chat, edit, generate
from mmfusion.cli.imports import app as imports
from mmfusion.cli.train import train
from mmfusion.errors import UserError

app = typer.Typer(
    name="mmfusion",
    help="One decoder over text and images: train it, draw, caption, edit, talk, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mmfusion {__version__}")
        raise typer.Exit()


@app.callback()
def _front(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


app.command()(train)
app.command()(generate)
app.command()(caption)
app.command()(edit)
app.command()(chat)
app.add_typer(evaluation, name="eval")
app.add_typer(data, name="data")
app.add_typer(imports, name="import")


FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
LOCAL_RANK = "--local_rank=", "--local-rank="


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Exits with 2, and a line that says what to mend, for a user's mistake."""
    # Before torch is loaded. Threads that spin while they wait take the cores from whatever else
    # runs: beside a test suite on 2 cores training became several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = list(sys.argv[1:] if arguments is None else arguments)
    for argument in [a for a in given if a.startswith(LOCAL_RANK)]:  # launchers append it
        os.environ.setdefault("LOCAL_RANK", argument.partition("=")[2])
        given.remove(argument)
    try:
        app(given)
    except UserError as error:
        _refuse(str(error))
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise
        where = error.filename or "a file cannot be written"
        _refuse(f"{where}: {error.strerror}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os._exit(2)  # other ranks may be waiting in a collective: do not wait for them
    sys.exit(2)
