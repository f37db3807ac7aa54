"""What requests ask of a pipeline, and what they are answered with, in OpenAI's form."""

import secrets
import time
import uuid
from collections.abc import Sequence
from typing import Any

from PIL import Image as PILImage

from mmfusion.codecs.image import open_image
from mmfusion.generation.prompt import ImageSlot, PromptItem, PromptSlot, TextSlot
from mmfusion.pipeline import Pipeline
from mmfusion.serving.pictures import from_url, side_of, to_base64, to_url, transparent
from mmfusion.serving.queue import Emit, Work
from mmfusion.serving.refusal import Refusal
from mmfusion.serving.schemas import Chat, Drawing, Editing, Given, Limits, Message


def drawing(given: Drawing, limits: Limits) -> Work:
    """Pictures of a prompt; without a tokenizer the prompt is the name or number of a class."""
    _check(given, limits, given.prompt)

    def work(pipeline: Pipeline, emit: Emit) -> dict[str, Any]:
        draw = pipeline.text_to_image if pipeline.tokenizer else pipeline.class_to_image
        own = _Pictures("image_generation", given, pipeline, emit)
        made = draw([given.prompt] * given.n, **own.options, **given.options("budget_ms"))
        return own.answer(made, pictures_read=0)

    return work


def editing(given: Editing, image: bytes, mask: bytes | None, limits: Limits) -> Work:
    """A picture drawn anew where the mask, or without one the picture, is transparent."""
    _check(given, limits, given.prompt)

    def work(pipeline: Pipeline, emit: Emit) -> dict[str, Any]:
        picture = open_image(image, "image", limits.pixels)
        what = "image" if mask is None else "mask"
        holes = picture if mask is None else open_image(mask, what, limits.pixels)
        own = _Pictures("image_edit", given, pipeline, emit)
        condition = "prompt" if pipeline.tokenizer else "label"
        made = pipeline.edit(
            [picture] * given.n,
            transparent(holes, what),
            **{condition: given.prompt},
            **own.options,
            **given.options(),
        )
        return own.answer(made, pictures_read=1)

    return work


def chatting(given: Chat, limits: Limits, name: str) -> Work:
    """Text, a picture, or both, after a document of texts and pictures."""
    parts = [part for message in given.messages for part in _parts(message)]
    texts = [text for text, _ in parts if text]
    _check(given, limits, "".join(texts))
    if sum(url is not None for _, url in parts) > limits.pictures:
        raise Refusal(400, f"messages: more than {limits.pictures} pictures", "messages")
    if not parts:
        raise Refusal(400, "messages: nothing in them but empty text", "messages")
    if len(set(given.modalities)) < len(given.modalities):
        raise Refusal(400, "modalities: text and image once each", "modalities")

    def work(pipeline: Pipeline, emit: Emit) -> dict[str, Any]:
        prompt: list[PromptItem] = []
        room = limits.pixels
        for text, url in parts:
            if url is None:
                prompt.append(text)
            else:
                picture = from_url(url, "image_url", room)
                room -= picture.width * picture.height
                prompt.append(picture)
        return _Talk(given, name, pipeline, emit).answer(prompt)

    return work


class _Pictures:
    """One request's pictures on their way out."""

    def __init__(self, kind: str, given: Drawing, pipeline: Pipeline, emit: Emit) -> None:
        self.kind, self.given, self.pipeline, self.emit = kind, given, pipeline, emit
        size = pipeline.config.image.size
        self.side, self.told = side_of(given.size, size), 0
        self.size = f"{self.side or size}x{self.side or size}"
        self.seed = secrets.randbelow(2**31) if given.seed is None else given.seed
        self.options: dict[str, Any] = {"seed": self.seed}
        if given.stream and given.partial_images:
            self.options["on_picture"] = self._partial

    def answer(self, pictures: Sequence[PILImage.Image], pictures_read: int) -> dict[str, Any]:
        tokens, given = self.pipeline.config.image.tokens, self.given
        read = {"text_tokens": _tokens(self.pipeline, given.prompt)}
        read["image_tokens"] = pictures_read * tokens
        encoded = [to_base64(picture, self.side) for picture in pictures]
        usage = {
            "input_tokens": sum(read.values()),
            "input_tokens_details": read,
            "output_tokens": given.n * tokens,
            "total_tokens": sum(read.values()) + given.n * tokens,
        }
        if given.stream:
            return {**self._event("completed", encoded[0]), "usage": usage, "seed": self.seed}
        return {
            "created": int(time.time()),
            "data": [{"b64_json": each} for each in encoded],
            "output_format": "png",
            "size": self.size,
            "seed": self.seed,
            "usage": usage,
        }

    def _partial(self, item: int, share: float, picture: PILImage.Image) -> None:
        most = self.given.partial_images
        if self.told < most and (self.told + 1) / (most + 1) <= share < 1:
            event = self._event("partial_image", to_base64(picture, self.side))
            self.emit({**event, "partial_image_index": self.told})
            self.told += 1

    def _event(self, what: str, encoded: str) -> dict[str, Any]:
        return {
            "type": f"{self.kind}.{what}",
            "b64_json": encoded,
            "created_at": int(time.time()),
            "size": self.size,
            "output_format": "png",
            "background": "opaque",
            "quality": "auto",
        }


class _Talk:
    """One request's answer in words and pictures."""

    def __init__(self, given: Chat, name: str, pipeline: Pipeline, emit: Emit) -> None:
        self.given, self.pipeline, self.emit = given, pipeline, emit
        self.sent, self.tokens = "", 0
        self.head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": name,
        }
        most = given.max_completion_tokens or given.max_tokens
        self.most = most or pipeline.config.generation.interleaved.max_new_tokens

    def answer(self, prompt: list[PromptItem]) -> dict[str, Any]:
        given, pipeline = self.given, self.pipeline
        seed = secrets.randbelow(2**31) if given.seed is None else given.seed
        slots = [self._slot(kind) for kind in given.modalities]
        options: dict[str, Any] = {"seed": seed, "on_token": self._token}
        if given.stream:
            self._chunk({"role": "assistant", "content": ""})
        made = pipeline.generate([*prompt, *slots], **options)[len(prompt) :]
        text = next((each for each in made if isinstance(each, str)), None)
        images = [
            {"type": "image_url", "image_url": {"url": to_url(each)}, "index": number}
            for number, each in enumerate(each for each in made if not isinstance(each, str))
        ]
        usage = self._usage(prompt, len(images))
        finish = "length" if text is not None and self.tokens >= self.most else "stop"
        if given.stream:
            if text and text != self.sent and text.startswith(self.sent):
                self._chunk({"content": text[len(self.sent) :]})
            if images:
                self._chunk({"images": images})
            last = {"object": "chat.completion.chunk", **self.head}
            last["choices"] = [{"index": 0, "delta": {}, "finish_reason": finish}]
            asked = given.stream_options and given.stream_options.include_usage
            return {**last, "usage": usage} if asked else last
        message = {"role": "assistant", "content": text, "refusal": None, "images": images}
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        return {"object": "chat.completion", **self.head, "choices": [choice], "usage": usage}

    def _slot(self, kind: str) -> PromptSlot:
        if kind == "image":
            return ImageSlot(**self.given.options())
        own = {"temperature": self.given.temperature, "top_p": self.given.top_p}
        given = {name: value for name, value in own.items() if value is not None}
        return TextSlot(**given, max_new_tokens=self.most)

    def _token(self, item: int, said: str) -> None:
        self.tokens += 1
        said = said.rstrip("\N{REPLACEMENT CHARACTER}")  # a character whose bytes are not all there
        if self.given.stream and said.startswith(self.sent) and said != self.sent:
            self._chunk({"content": said[len(self.sent) :]})
            self.sent = said

    def _chunk(self, delta: dict[str, Any]) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        self.emit({"object": "chat.completion.chunk", **self.head, "choices": [choice]})

    def _usage(self, prompt: list[PromptItem], drawn: int) -> dict[str, int]:
        tokens = self.pipeline.config.image.tokens
        read = sum(
            _tokens(self.pipeline, item) if isinstance(item, str) else tokens for item in prompt
        )
        said = self.tokens + drawn * tokens
        return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}


def _check(given: Given, limits: Limits, text: str) -> None:
    """Refuse what is too much."""
    if len(text) > limits.characters:
        raise Refusal(400, f"{len(text)} characters of text; at most {limits.characters}")
    if (given.num_inference_steps or 0) > limits.steps:
        raise Refusal(400, f"num_inference_steps: at most {limits.steps}", "num_inference_steps")
    if isinstance(given, Drawing):
        if given.n > limits.pictures:
            raise Refusal(400, f"n: at most {limits.pictures} pictures", "n")
        if given.stream and given.n > 1:
            raise Refusal(400, "stream: one picture at a time; leave n out", "stream")


def _parts(message: Message) -> list[tuple[str, str | None]]:
    """A message's texts, and its pictures' addresses."""
    content = message.content or []
    if isinstance(content, str):
        found: list[tuple[str, str | None]] = [(content, None)]
    else:
        found = [
            (part.text, None) if part.type == "text" else ("", part.image_url.url)
            for part in content
        ]
    found += [("", part.image_url.url) for part in message.images]
    return [(text, url) for text, url in found if text.strip() or url is not None]


def _tokens(pipeline: Pipeline, text: str) -> int:
    return len(pipeline.tokenizer.encode(text)) if pipeline.tokenizer else 0
