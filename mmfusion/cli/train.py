"""`mmfusion train`."""

import logging
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mmfusion.config import Config


def train(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value, such as train.lr=3e-4")
    ] = None,
    config: Annotated[
        str, typer.Option(help="a YAML file, or the bare name of a shipped one")
    ] = "digits",
    dry_run: Annotated[
        bool, typer.Option(help="only print parameters, memory, FLOPs; checks train.start_from")
    ] = False,
    ranks: Annotated[
        int, typer.Option(min=1, help="start so many processes here; --dry-run: as if on so many")
    ] = 1,
    until: Annotated[
        int | None, typer.Option(min=1, help="stop at this step; the next start goes on from there")
    ] = None,
) -> None:
    """Train a model; a second start goes on from the newest checkpoint.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP (a terminal that closes; not under nohup) save a checkpoint
    after the step that is being done, and end the run with 130, 143 or 129; a second one ends it at
    once.
    """
    from mmfusion.config import load
    from mmfusion.launcher import Place, place, start

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    settings = load(config, overrides or [])
    if dry_run:
        from mmfusion.training.estimate import plan

        typer.echo(plan(settings, ranks))
        return
    from mmfusion.data_pipelines.preflight import check_data

    check_data(settings, config)
    if ranks > 1 and place() == Place():
        settings.data.check_ranks(ranks)
        to = [] if until is None else ["--until", str(until)]
        told = ["train", "--config", config, *to, "--", *(overrides or [])]
        sys.exit(start([sys.executable, "-m", "mmfusion", *told], ranks))
    _run(settings, until)


def _run(settings: "Config", until: int | None) -> None:
    """On this rank."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    from mmfusion.data_pipelines.loader import Loader
    from mmfusion.errors import enough_memory, say
    from mmfusion.training.loop import Trainer
    from mmfusion.training.schedule import progress
    from mmfusion.training.together import in_contact

    less = (
        "lower data.micro_rows, or set train.checkpoint_activations=true; the next "
        "start goes on from the newest checkpoint"
    )
    with in_contact(), enough_memory(less):
        trainer = Trainer(settings, Loader)
        state, tell = trainer.state, say if trainer.rank == 0 else lambda _: None

        def done() -> bool:
            return progress(settings.train, state.step, state.seconds) >= 1

        before, model = state.step, trainer.output / "model"
        if before:
            what, where = "already trained" if done() else "going on", f"; the model is {model}"
            found = f"{what}: {trainer.output} has a checkpoint at step {before}"
            tell(found + (where if done() else ""))
        elif settings.train.start_from:
            tell(f"a new run begins from the weights of {settings.train.start_from}")
        trainer.run(until)
        if not done():
            tell(f"at step {state.step}, as asked; the same command goes on")
        elif state.step > before:
            tell(f"trained {state.step} steps; the model is {model}")
