"""`mmfusion demo`."""

import os
import signal
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from mmfusion.cli.generate import Device, Dtype, Model
from mmfusion.cli.serve import listen
from mmfusion.errors import UserError


def demo(
    model: Model = "emoji",
    prompt: Annotated[
        list[str] | None, typer.Option(help="an example of what it draws (repeatable)")
    ] = None,
    host: Annotated[str, typer.Option(help="address to serve on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Serve a page on which a model is tried by hand: draw, edit, caption, chat."""
    if find_spec("gradio") is None:
        raise UserError("demo: needs gradio; pip install 'mmfusion[demo]'")
    listen("demo", host, port).close()  # before the model is loaded for it
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from mmfusion.pipeline import Pipeline
    from mmfusion.serving.engine import Engine
    from mmfusion.serving.page import serving

    name = Path(model).resolve().name if Path(model).is_dir() else model
    pipeline = Pipeline.from_pretrained(model, device, dtype)
    with (
        Engine(pipeline) as engine,
        serving(engine, name, prompt or _examples(pipeline.source), host, port) as address,
    ):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        typer.echo(f"{model} is served at {address} (Ctrl-C ends it)")
        threading.Event().wait()


def _examples(folder: Path | None) -> list[str]:
    """What a model's card or run gives as examples, or the shipped config of a shipped model."""
    from mmfusion.card import examples
    from mmfusion.config import load
    from mmfusion.export import SHIPPED

    found = examples(folder)
    if not found and folder and folder.parent == SHIPPED:
        found = load(str(SHIPPED.parent / "configs" / f"{folder.name}.yaml")).train.sheet_prompts
    return found
