"""`mmfusion serve`."""

import logging
import socket
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmfusion.cli.generate import Device, Dtype, Model
from mmfusion.errors import UserError, user_error

if TYPE_CHECKING:
    from fastapi import FastAPI

    from mmfusion.serving.schemas import Limits

NEEDED = {"fastapi": "FastAPI", "uvicorn": "uvicorn", "python_multipart": "python-multipart",
          "prometheus_client": "prometheus-client"}  # fmt: skip


def serve(
    model: Model = "digits",
    host: Annotated[str, typer.Option(help="0.0.0.0 is every interface: behind a proxy")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8000,
    name: Annotated[str | None, typer.Option(help="what requests call the model")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="requests that share passes")] = 32,
    queue: Annotated[int, typer.Option(min=0, help="requests that may wait")] = 64,
    seconds: Annotated[float, typer.Option(min=1, help="that a request may take")] = 300.0,
    workers: Annotated[int, typer.Option(min=1, help="processes, each with the model")] = 1,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Answer HTTP requests as OpenAI's servers do: pictures, edits and chat."""
    missing = [name for module, name in NEEDED.items() if not find_spec(module)]
    if missing:
        raise UserError(f"serve: needs {', '.join(missing)}; pip install 'mmfusion[serve]'")
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    from mmfusion.serving.schemas import Limits

    listening = listen("serve", host, port)
    limits = Limits(concurrency=concurrency, queue=queue, seconds=seconds)
    called = name or model.rstrip("/").rpartition("/")[2]
    made = partial(_application, model, device, dtype, called, limits)
    app: Any = made() if workers == 1 else made  # others load it in processes of their own
    # Its own log of requests is off: it would hold what they hold.
    options: dict[str, Any] = {"http": "h11", "ws": "none", "log_level": "warning"}
    options |= {"access_log": False, "server_header": False, "workers": workers}
    options["timeout_worker_healthcheck"] = 60  # seconds; to load a model takes some
    config = uvicorn.Config(app, factory=workers > 1, **options)
    address = f"[{host}]" if ":" in host else host
    typer.echo(f"{called}: http://{address}:{listening.getsockname()[1]}/v1, ends with Ctrl-C")
    if workers == 1:
        uvicorn.Server(config).run(sockets=[listening])
    else:
        Multiprocess(config, sockets=[listening]).run()


def _application(
    model: str, device: str | None, dtype: str | None, name: str, limits: "Limits"
) -> "FastAPI":
    """The server of one process."""
    from mmfusion.pipeline import Pipeline
    from mmfusion.serving.engine import Engine
    from mmfusion.serving.server import Server

    logging.basicConfig(format="%(message)s")
    logging.getLogger("mmfusion").setLevel(logging.INFO)
    pipeline = Pipeline.from_pretrained(model, device, dtype)
    return Server(Engine(pipeline), name, limits).app()


def listen(command: str, host: str, port: int) -> socket.socket:
    """A socket at an address, before the model is loaded for it."""
    what = f"{command}: {host} port {port} cannot be had; give another --port, or another --host"
    with user_error(what, OSError, UnicodeError):
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
        return listening
