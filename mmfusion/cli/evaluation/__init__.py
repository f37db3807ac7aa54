"""`mmfusion eval`: a model's evaluation, and each metric by itself on files."""

from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from mmfusion.cli.evaluation.captions import captions
from mmfusion.cli.evaluation.clip import clip
from mmfusion.cli.evaluation.fid import fid
from mmfusion.cli.evaluation.frontier import frontier
from mmfusion.cli.evaluation.run import evaluate
from mmfusion.cli.evaluation.selftest import selftest
from mmfusion.errors import UserError


class _Evaluation(TyperGroup):
    """`mmfusion eval MODEL` is short for `mmfusion eval --model MODEL`.

    A model takes no further words, so what stands before one is a metric, written wrongly.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            if not all(word.startswith("-") for word in args[1:2]) and not _is_model(args[0]):
                raise UserError(
                    f"eval {args[0]}: no such metric; choose {', '.join(self.commands)}, or give "
                    "a model"
                )
            args = ["--model", *args]
        return super().parse_args(ctx, args)


def _is_model(name: str) -> bool:
    from mmfusion.export import SHIPPED

    return Path(name).exists() or (SHIPPED / name).is_dir()


app = typer.Typer(cls=_Evaluation, invoke_without_command=True, no_args_is_help=True)
app.callback()(evaluate)
app.command()(fid)
app.command()(clip)
app.command()(captions)
app.command()(frontier)
app.command()(selftest)
