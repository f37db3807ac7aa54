"""`mmfusion train`."""

import logging
from typing import Annotated

import typer


def train(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value, such as train.lr=3e-4")
    ] = None,
    config: Annotated[
        str, typer.Option(help="a YAML file, or the bare name of a shipped one")
    ] = "digits",
    dry_run: Annotated[
        bool, typer.Option(help="only print parameters, tokens, memory and FLOPs")
    ] = False,
    ranks: Annotated[int, typer.Option(min=1, help="for --dry-run: on so many ranks")] = 1,
    until: Annotated[
        int | None, typer.Option(help="stop at this step; the next start goes on from there")
    ] = None,
) -> None:
    """Train a model; a second start goes on from the newest checkpoint.

    SIGINT (Ctrl-C) and SIGTERM save a checkpoint after the step that is being done, and end the
    run with 130 or 143; a second one ends it at once.
    """
    from mmfusion.config import load

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    settings = load(config, overrides or [])
    if dry_run:
        from mmfusion.training.estimate import plan

        typer.echo(plan(settings, ranks))
        return
    from mmfusion.data_pipelines.preflight import check_data

    check_data(settings, config)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    from mmfusion.data_pipelines.loader import Loader
    from mmfusion.training.loop import Trainer
    from mmfusion.training.schedule import progress
    from mmfusion.training.together import in_contact

    with in_contact():
        trainer = Trainer(settings, Loader)
        state = trainer.state
        if trainer.rank == 0 and state.step:
            done = progress(settings.train, state.step, state.seconds) >= 1
            what = "already trained" if done else "going on"
            typer.echo(
                f"{what}: {trainer.output} has a checkpoint at step {state.step}"
                + (f"; the model is {trainer.output / 'model'}" if done else "")
            )
        elif trainer.rank == 0 and settings.train.start_from:
            typer.echo(f"a new run begins from the weights of {settings.train.start_from}")
        trainer.run(until)
