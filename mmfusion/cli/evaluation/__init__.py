"""`mmfusion eval`: a model's evaluation, and each metric by itself on files."""

from typing import Any

import typer
from typer.core import TyperGroup

from mmfusion.cli.evaluation.captions import captions
from mmfusion.cli.evaluation.clip import clip
from mmfusion.cli.evaluation.fid import fid
from mmfusion.cli.evaluation.frontier import frontier
from mmfusion.cli.evaluation.run import evaluate
from mmfusion.cli.evaluation.selftest import selftest


class _Evaluation(TyperGroup):
    """`mmfusion eval MODEL` is short for `mmfusion eval --model MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["--model", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_Evaluation, invoke_without_command=True, no_args_is_help=True)
app.callback()(evaluate)
app.command()(fid)
app.command()(clip)
app.command()(captions)
app.command()(frontier)
app.command()(selftest)
