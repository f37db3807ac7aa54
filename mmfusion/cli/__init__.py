"""The command `mmfusion`: the Python API from a shell, with one line for a user's mistake."""

import os
import sys
import threading
from typing import Annotated, NoReturn, TextIO

import typer

from mmfusion import __version__
from mmfusion.cli.data import app as data
from mmfusion.cli.demo import demo
from mmfusion.cli.eval import app as evaluation
from mmfusion.cli.generate import caption, chat, edit, generate
from mmfusion.cli.imports import app as imports
from mmfusion.cli.push import push
from mmfusion.cli.serve import serve
from mmfusion.cli.train import train
from mmfusion.cli.usage import UsageError, told
from mmfusion.errors import Elsewhere, UserError, say
from mmfusion.files import no_room

app = typer.Typer(
    name="mmfusion",
    help="One decoder over text and images: train it, draw, caption, edit, talk, evaluate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mmfusion {__version__}")
        raise typer.Exit()


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
]


@app.callback()
def _front(version: Version = False) -> None:
    pass


for _command in (train, generate, caption, edit, chat, serve, demo, push):
    app.command()(_command)
app.add_typer(evaluation, name="eval")
app.add_typer(data, name="data")
app.add_typer(imports, name="import")


LOCAL_RANK = "--local_rank=", "--local-rank="
INTERRUPTED = 130


def _at_home(argument: str) -> str:
    """`~/x` and `--output=~/x`, which shells leave as it is, with the home folder's path."""
    option, equals, value = argument.rpartition("=")
    if value.startswith("~") and (not option or option.startswith("-")):
        return option + equals + os.path.expanduser(value)
    return argument


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Exits with 2, and a line that says what to mend, for a user's mistake."""
    # Before torch is loaded. Threads that spin while they wait take the cores from whatever else
    # runs: beside a test suite on 2 cores training became several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # One that was closed is none; and the next file to be opened would take its number.
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    for stream in filter(None, (sys.stdin, sys.stdout, sys.stderr)):  # any name can be shown
        getattr(stream, "reconfigure", dict)(errors="backslashreplace")
    given = [_at_home(a) for a in (sys.argv[1:] if arguments is None else arguments)]
    for argument in [a for a in given if a.startswith(LOCAL_RANK)]:  # launchers append it
        os.environ["LOCAL_RANK"] = os.environ.get("LOCAL_RANK") or argument.partition("=")[2]
        given.remove(argument)
    threading.excepthook = _thread_failed
    try:
        code = app(given, standalone_mode=False)
        if code == INTERRUPTED:  # typer has taken Ctrl-C
            _end("interrupted", code)
        sys.exit(code or 0)
    except UsageError as error:
        line = told(error)
        _end(line and f"error: {line}", 2)
    except Elsewhere:
        _end(None, 2)
    except UserError as error:
        _end(f"error: {error}", 2)
    except OSError as error:
        if error.filename is None and not no_room(error):
            raise
        where = error.filename or "a file cannot be written"
        remedy = "; make room and start again" if no_room(error) else ""
        _end(f"error: {where}: {error.strerror}{remedy}", 2)
    except KeyboardInterrupt:
        _end("interrupted", INTERRUPTED)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread; when it finds no room, the next call to it says so."""
    if not no_room(failure.exc_value):
        threading.__excepthook__(failure)


def _end(line: str | None, code: int) -> NoReturn:
    if line:
        say(line, err=True)
    torch = sys.modules.get("torch")
    if torch and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        os._exit(code)  # other ranks may be waiting in a collective: do not wait for them
    sys.exit(code)
