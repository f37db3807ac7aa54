"""A server of its own for tests, and what goes to it and comes from it."""

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import openai
import uvicorn
from PIL import Image as PILImage
from prometheus_client.parser import text_string_to_metric_families

from mmfusion import Pipeline
from mmfusion.eval.pages import data_uri
from mmfusion.serving.engine import Engine
from mmfusion.serving.schemas import Limits
from mmfusion.serving.server import Server

SMALL = Limits(
    concurrency=4,
    queue=200,
    seconds=60,
    body_seconds=3,
    body_bytes=2_000_000,
    pixels=1_000_000,
    characters=500,
)


class Running:
    """A server on a port of its own."""

    def __init__(self, pipeline: Pipeline, limits: Limits) -> None:
        self.server = Server(Engine(pipeline), "digits", limits)
        config = uvicorn.Config(self.server.app(), port=0, http="h11", log_level="critical")
        self.uvicorn = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.uvicorn.run, daemon=True)
        self.thread.start()
        while not self.uvicorn.started:
            time.sleep(0.01)
        self.port = self.uvicorn.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="-", max_retries=0)

    def stop(self) -> None:
        self.uvicorn.should_exit = True
        self.thread.join(60)

    def count(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        )


@contextmanager
def running(pipeline: Pipeline, **limits: Any) -> Iterator[Running]:
    found = Running(pipeline, SMALL.model_copy(update=limits))
    yield found
    found.stop()


def opened(encoded: str | None) -> PILImage.Image:
    assert encoded
    return PILImage.open(io.BytesIO(base64.b64decode(encoded.rpartition(",")[2])))


def same(found: PILImage.Image, expected: PILImage.Image) -> None:
    """Pixels within 1."""
    assert found.size == expected.size
    apart = np.asarray(found).astype(int) - np.asarray(expected)
    assert np.abs(apart).max() <= 1


def seen(*given: PILImage.Image | str) -> Any:
    """A message of pictures and texts."""
    parts = [
        {"type": "text", "text": each}
        if isinstance(each, str)
        else {"type": "image_url", "image_url": {"url": data_uri(each)}}
        for each in given
    ]
    return [{"role": "user", "content": parts}]


def idle(server: Running) -> None:
    """Wait until nothing is worked on any more, and no pass is made."""
    until = time.monotonic() + 30
    while server.server.queue.accepted or server.server.engine.stepper.guests:
        assert time.monotonic() < until
        time.sleep(0.01)
