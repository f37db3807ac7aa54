"""What requests may hold: OpenAI's fields as far as they mean something here, and a few of ours."""

from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mmfusion.config.section import Section, keys

MOST_OF_NAME = 100  # characters that are compared
Whole = Annotated[int, Field(gt=0, le=2**31)]


class Limits(Section):
    """What a server takes on; beyond it a request is refused."""

    concurrency: int = Field(32, gt=0)
    """Requests that share passes."""
    queue: int = Field(64, ge=0)
    """Requests that wait for their turn; others are told to come back (429)."""
    seconds: float = Field(300.0, gt=0)
    """That a request may take once its body is there, waiting included."""
    body_seconds: float = Field(30.0, gt=0)
    """In which a request's body must arrive."""
    body_bytes: int = Field(20_000_000, gt=0)
    characters: int = Field(8_000, gt=0)
    """Of all texts of a request; the model's own limit, in tokens, is mostly far below."""
    pixels: int = Field(16_000_000, gt=0)
    """Of a picture that is sent, or of all pictures of a chat."""
    pictures: int = Field(10, gt=0)
    """Sent in one request, or asked for."""
    steps: int = Field(250, gt=0)
    """Denoising steps of an AR step."""


class Given(BaseModel):
    """A request's fields: unknown ones are refused, so that a slip of the pen is not ignored."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    model: str | None = None
    user: str | None = None
    seed: int | None = Field(None, ge=0, lt=2**62)
    guidance: float | None = Field(None, ge=0, le=1000)
    num_inference_steps: Whole | None = None
    ar_steps: Whole | None = None

    def options(self, *more: str) -> dict[str, Any]:
        """The pipeline's options among the fields, those that are given."""
        names = "guidance", "num_inference_steps", "ar_steps", *more
        found = {name: getattr(self, name) for name in names}
        return {name: value for name, value in found.items() if value is not None}


class Drawing(Given):
    """`POST /v1/images/generations`."""

    prompt: str
    n: int = Field(1, gt=0, le=1000)
    size: str = Field("auto", max_length=20)
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png"] = "png"
    background: Literal["auto", "opaque"] = "auto"
    quality: str | None = Field(None, max_length=20)
    moderation: str | None = Field(None, max_length=20)
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3)
    budget_ms: float | None = Field(None, gt=0)


class Editing(Drawing):
    """The form fields of `POST /v1/images/edits`, beside its files `image` and `mask`."""

    input_fidelity: str | None = Field(None, max_length=20)
    budget_ms: None = None


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    """Where a picture is: in the address itself."""

    url: str
    detail: str | None = None


class ImagePart(BaseModel):
    """A part of a message; `index` is there where it comes back from an answer."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["image_url"]
    image_url: ImageUrl
    index: int | None = None


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(BaseModel):
    """Of whom it is does not matter: the model reads one document of texts and pictures."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    images: list[ImagePart] = Field([])


class StreamOptions(BaseModel):
    """What the stream ends with."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class Chat(Given):
    """`POST /v1/chat/completions`; `modalities` are asked for in their order."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    modalities: list[Literal["text", "image"]] = Field(["text"], min_length=1, max_length=8)
    max_tokens: Whole | None = None
    max_completion_tokens: Whole | None = None
    temperature: float | None = Field(None, ge=0, le=1000)
    top_p: float | None = Field(None, gt=0, le=1)
    n: Literal[1] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None


def unknown(name: str, kind: type[Given]) -> str:
    """What is said of a field that there is not: the nearest one, or all of a request."""
    near = get_close_matches(name[:MOST_OF_NAME], [str(key[-1]) for key in keys(kind)], 1)
    if near:
        return f"there is no such field; did you mean {near[0]}?"
    return f"there is no such field; choose from {', '.join(kind.model_fields)}"
