"""A model behind OpenAI's HTTP interface: pictures, edits and chat, whose steps are shared."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from mmfusion.serving.engine import Engine
from mmfusion.serving.guard import Guard
from mmfusion.serving.metrics import Metrics
from mmfusion.serving.queue import Queue, Work
from mmfusion.serving.refusal import Refusal
from mmfusion.serving.schemas import Chat, Drawing, Editing, Given, Limits, unknown
from mmfusion.serving.tasks import chatting, drawing, editing

MOST_FIELDS, MOST_FILES = 32, 4  # of a form
GIVEN: dict[str, type[Given]] = {"generations": Drawing, "edits": Editing, "completions": Chat}
"""What a request holds, by the end of its address."""


class Server:
    """The routes of one model."""

    def __init__(self, engine: Engine, name: str, limits: Limits) -> None:
        self.engine, self.name, self.limits = engine, name, limits
        self.queue, self.since = Queue(engine, limits), int(time.time())
        self.metrics = Metrics(engine, self.queue)

    def app(self) -> FastAPI:
        """The ASGI application; when it is shut down the engine stops."""
        app = FastAPI(
            title="mmfusion",
            lifespan=self._lifespan,
            docs_url=None,  # its page would be fetched from elsewhere
            redoc_url=None,
            redirect_slashes=False,
        )
        app.post("/v1/images/generations")(self.generations)
        app.post("/v1/images/edits")(self.edits)
        app.post("/v1/chat/completions")(self.completions)
        app.get("/v1/models")(self.models)
        app.get("/v1/models/{name}")(self.model)
        app.get("/health")(self.health)
        app.get("/metrics")(self.measured)
        for kind in (Refusal, RequestValidationError, ValidationError, HTTPException):
            app.exception_handler(kind)(refused)
        app.add_middleware(Guard, limits=self.limits, metrics=self.metrics)
        return app

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self.engine.stop, self.limits.seconds)
        self.queue.threads.shutdown(wait=False)

    async def generations(self, given: Drawing, request: Request) -> Response:
        """Draw."""
        self._known(given)
        return await self._answer(request, drawing(given, self.limits), given.stream, "")

    async def edits(self, request: Request) -> Response:
        """Draw a part anew."""
        form = await request.form(max_files=MOST_FILES, max_fields=MOST_FIELDS)
        files, fields = {}, {}
        for name, value in form.multi_items():
            name = name.removesuffix("[]")
            if isinstance(value, UploadFile) != (name in ("image", "mask")):
                raise Refusal(400, f"{name}: image and mask are files, what else there is, fields")
            if name in files or name in fields:
                raise Refusal(400, f"{name}: given twice; one picture is edited at a time", name)
            if isinstance(value, UploadFile):
                files[name] = await value.read()
            else:
                fields[name] = value
        if "image" not in files:
            raise Refusal(400, "image: missing; send the picture as a file of the form", "image")
        given = Editing.model_validate(fields)
        self._known(given)
        work = editing(given, files["image"], files.get("mask"), self.limits)
        return await self._answer(request, work, given.stream, "")

    async def completions(self, given: Chat, request: Request) -> Response:
        """Go on with a document of texts and pictures."""
        self._known(given)
        work = chatting(given, self.limits, self.name)
        return await self._answer(request, work, given.stream, "data: [DONE]\n\n")

    async def models(self) -> dict[str, Any]:
        """The one model there is."""
        return {"object": "list", "data": [self._model()]}

    async def model(self, name: str) -> dict[str, Any]:
        """The same by its name."""
        self._known(Given(model=name))
        return self._model()

    async def health(self) -> Response:
        """200 while the engine runs."""
        if self.engine.alive:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "stopped"}, 503)

    async def measured(self) -> Response:
        """For Prometheus."""
        text, kind = self.metrics.text()
        return Response(text, headers={"content-type": kind})

    def _model(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.since, "owned_by": "mmfusion"}

    def _known(self, given: Given) -> None:
        if given.model not in (None, self.name):
            raise Refusal(404, f"model {given.model!r}: this server has {self.name!r}", "model")

    async def _answer(self, request: Request, work: Work, stream: bool, end: str) -> Response:
        """What work comes to; if it cannot be begun, that is an answer of its own status."""

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        told = self.queue.answer(work, gone)
        first = await anext(told)
        if not stream:
            return JSONResponse(first[1])  # nothing is emitted where nobody reads it

        async def events() -> AsyncIterator[str]:
            yield event(first[1])
            try:
                async for _, what in told:
                    yield event(what)
                yield end
            except Refusal as error:
                yield event(error.body())
            finally:
                await told.aclose()  # type: ignore[attr-defined]

        return StreamingResponse(events(), media_type="text/event-stream")


def event(what: dict[str, Any]) -> str:
    """A server-sent event."""
    name = f"event: {what['type']}\n" if "type" in what else ""
    return f"{name}data: {json.dumps(what)}\n\n"


async def refused(request: Request, error: Exception) -> Response:
    """The response to a request that is not answered."""
    if isinstance(error, (RequestValidationError, ValidationError)):
        # The deepest: of what may be a text or a list, a fault within the list.
        fault = max(error.errors(), key=lambda fault: len(fault["loc"]))
        path = [str(key) for key in fault["loc"] if key != "body"]
        where = ".".join([*(key for key in path[:-1] if "[" not in key), *path[-1:]])
        told = fault["msg"]
        if fault["type"] == "json_invalid":
            where, told = "", f"not JSON at character {path[-1]}: {fault['ctx']['error']}"
        elif fault["loc"] == ("body",):  # what is no object has no field to be named
            told = "send a JSON object, with the header content-type: application/json"
        if fault["type"] == "extra_forbidden":
            told = unknown(str(fault["loc"][-1]), GIVEN[request.url.path.rpartition("/")[2]])
        error = Refusal(400, f"{where or 'body'}: {told}", where or None)
    elif isinstance(error, HTTPException):
        error = Refusal(error.status_code, str(error.detail))
    assert isinstance(error, Refusal)
    return error.response()
