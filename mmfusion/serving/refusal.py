"""An answer other than what was asked for, in the shape that OpenAI's clients read."""

from typing import Any

from starlette.responses import JSONResponse, Response

from mmfusion.errors import printable

MOST = 500  # characters of a message


class Refusal(Exception):
    """A status, and one printable line of bounded length, whatever the request held."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        line = printable(" ".join(message.split()))
        super().__init__(line if len(line) <= MOST else f"{line[: MOST - 3]}...")
        self.status, self.param = status, printable(param[:MOST]) if param else None

    def body(self) -> dict[str, Any]:
        """What is answered."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        told = {"message": str(self), "type": kind, "param": self.param, "code": None}
        return {"error": told}

    def response(self) -> Response:
        """The response."""
        headers = {"retry-after": "1"} if self.status == 429 else None
        return JSONResponse(self.body(), self.status, headers)
