"""What stands before the routes: a body of bounded size and time, a line in the log, a count."""

import asyncio
import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmfusion.errors import printable
from mmfusion.serving.metrics import Metrics
from mmfusion.serving.refusal import Refusal
from mmfusion.serving.schemas import Limits

log = logging.getLogger("mmfusion.serving")
DRAINED = 5  # times what a body may have: read and thrown away, so that the client reads why


class Guard:
    """ASGI middleware; names in the log and in the counts are the routes', never a request's."""

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._guarded(scope, receive, noted)
        except Refusal as error:
            await error.response()(scope, receive, noted)
        except Exception as error:
            log.error("%s: %s", type(error).__name__, printable(str(error))[:500])
            if not status:
                failed = Refusal(500, "the server failed at this request")
                await failed.response()(scope, receive, noted)
        seconds = time.perf_counter() - begun
        route = getattr(scope.get("route"), "path", "other")
        self.metrics.note(route, status, seconds)
        log.info("%s %d %.0f ms", route, status, 1000 * seconds)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        seconds = self.limits.body_seconds
        try:
            body = await asyncio.wait_for(self._body(receive), seconds)
        except (TimeoutError, asyncio.TimeoutError):
            raise Refusal(408, f"the body has not arrived within {seconds:g} s") from None
        held = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return held.pop() if held else await receive()

        if body is not None:
            await self.app(scope, replayed, send)

    async def _body(self, receive: Receive) -> bytes | None:
        """The body; None where the client has gone."""
        parts, size, more, most = list[bytes](), 0, True, self.limits.body_bytes
        while more and size <= DRAINED * most:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size <= most:
                parts.append(part)
        if size > most:
            raise Refusal(413, f"the body has more than {most:,} bytes")
        return b"".join(parts)
