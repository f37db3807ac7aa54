"""`mmfusion push`."""

from typing import Annotated

import typer
from typer import Argument, Option


def push(
    model: Annotated[str, Argument(help="a run's folder, a model's folder or a shipped name")],
    repo: Annotated[str, Argument(help="of the hub: NAME or ORGANISATION/NAME")],
    private: Annotated[bool, Option(help="make the repository so, if it is not there")] = False,
    revision: Annotated[str | None, Option(help="branch (default: main)")] = None,
    message: Annotated[str, Option(help="of the commit")] = "Upload a model with mmfusion",
    license: Annotated[str | None, Option(help="the hub's key of one, such as mit")] = None,
    dtype: Annotated[str | None, Option(help="of the weights (default: as saved)")] = None,
) -> None:
    """Put a model on the hub, with its card. Log in first, `hf auth login`, or set HF_TOKEN."""
    from mmfusion.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained(model, "cpu", dtype)
    typer.echo(
        pipeline.push_to_hub(
            repo,
            private=private or None,
            revision=revision,
            commit_message=message,
            license=license,
        )
    )
