"""Prompts: what a user writes, and the parts that a session runs through.

A prompt is a list of str, PIL pictures and slots. A part is a segment that is given, or a slot to
be filled; class labels and edits are parts too, so that all five tasks are one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image as PILImage

from mmfusion.codecs.image import ImageCodec, upright
from mmfusion.codecs.text import Tokenizer, clean
from mmfusion.config import ModelConfig, Sampling, build
from mmfusion.errors import UserError, shown
from mmfusion.generation.arguments import COMMON, check_names, ours, whole
from mmfusion.generation.edit_masks import EditMask, regenerated
from mmfusion.sequence import Image, Label, Segment, Text, count

OWN = {
    "class_to_image": ("budget_ms",),
    "text_to_image": ("best_of", "budget_ms"),
    "image_to_text": ("best_of",),
}
"""Options that not every method takes, beside those of `Sampling`."""
MOST_DIGITS = 20  # of a class number in text


class PromptSlot:
    """A place in a prompt to be filled; keyword arguments override `Sampling` options there."""

    def __init__(self, **options: Any) -> None:
        self.options = ours(options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.options.items())})"


class ImageSlot(PromptSlot):
    """A picture is wanted here."""


class TextSlot(PromptSlot):
    """Text is wanted here."""


PromptItem = str | PILImage.Image | PromptSlot
Prompt = list[PromptItem]


@dataclass(frozen=True)
class ImageRequest:
    """A picture to generate; with `keep` (N,), those tokens of `latents` (N, D) stay."""

    sampling: Sampling
    latents: np.ndarray | None = None
    keep: np.ndarray | None = None


@dataclass(frozen=True)
class TextRequest:
    """Text to generate."""

    sampling: Sampling


PromptPart = Segment | ImageRequest | TextRequest


class PromptReader:
    """Turns what the user gives into parts, or says what is wrong with it."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer | None, codec: ImageCodec) -> None:
        self.config, self.tokenizer, self.codec = config, tokenizer, codec

    def sampling(self, task: str, options: dict[str, Any]) -> Sampling:
        """The task's default sampling with single options replaced."""
        if "best_of" in options:
            raise UserError(
                f"best_of: {task} has no text that its candidates could be judged by; "
                "text_to_image and image_to_text have"
            )
        known = (*COMMON, *OWN.get(task, ()), *Sampling.model_fields)
        check_names(options, known, f"option of {task}")
        base: Sampling = getattr(self.config.generation, task)
        given: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in options.items()
            if value is not None
        }
        sampling = build(Sampling, {**base.model_dump(), **given}, f"options of {task}")
        why = self.config.refusal(sampling)
        if why and task != "image_to_text":
            raise UserError(why)
        return sampling

    def _tokenizer(self, text: Any = "", what: str = "a prompt") -> Tokenizer:
        """The model's tokenizer, for a text that is one."""
        if self.tokenizer is None:
            raise UserError("this model reads and writes no text: it has no tokenizer")
        if not isinstance(text, str):
            raise UserError(f"expected {what} of text, got {type(text).__name__}")
        return self.tokenizer

    def text(self, text: str) -> Text:
        """A given text."""
        tokenizer = self._tokenizer(text)
        if not text.strip():
            raise UserError("the prompt is empty; write what is wanted")
        return tokenizer.given(" ".join(text.split()))

    def answer(self, text: str) -> Text:
        """A text whose likelihood is asked, on one line as the captions of training; may be ""."""
        return self._tokenizer(text, "an answer").answer(" ".join(clean(text).split()))

    def image_slot(self, task: str, options: dict[str, Any]) -> ImageRequest:
        """A picture to be generated."""
        return ImageRequest(self.sampling(task, options))

    def text_slot(self, task: str, options: dict[str, Any]) -> TextRequest:
        """Text to be written."""
        self._tokenizer()
        return TextRequest(self.sampling(task, options))

    def label(self, label: int | str) -> Label:
        """A class by number or name."""
        classes = self.config.classes
        if not classes:
            raise UserError("this model knows no classes; give a prompt")
        if isinstance(label, str) and label in classes:
            return Label(classes.index(label))
        number: Any = label
        if isinstance(label, str) and label.isdecimal() and len(label) < MOST_DIGITS:
            number = int(label)
        if not whole(number) or not 0 <= number < len(classes):
            some = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
            raise UserError(
                f"unknown class {shown(label)}: give 0 to {len(classes) - 1}, or a name ({some})"
            )
        return Label(int(number))

    def picture(self, picture: PILImage.Image) -> Image:
        """A given picture."""
        return Image(self.codec.encode([picture])[0], self.config.image.grid[1])

    def edit(
        self, picture: PILImage.Image, mask: EditMask, options: dict[str, Any]
    ) -> ImageRequest:
        """A picture of which the masked tokens are generated anew."""
        picture = upright(picture)
        keep = ~regenerated(mask, self.config.image, picture.size)
        return ImageRequest(self.sampling("edit", options), self.picture(picture).latents, keep)

    def given(self, prompt: str | PILImage.Image | Sequence[str | PILImage.Image]) -> list[Segment]:
        """What an answer is given: a text, a picture, or a list of them."""
        items = [prompt] if isinstance(prompt, (str, PILImage.Image)) else prompt
        if not isinstance(items, (list, tuple)):
            raise UserError(
                f"a prompt is a str, a PIL picture or a list of them, not {type(prompt).__name__}"
            )
        return [self.text(i) if isinstance(i, str) else self.picture(i) for i in items]

    def prompt(self, prompt: Prompt, options: dict[str, Any]) -> list[PromptPart]:
        """An interleaved prompt, with slots for its answers."""
        parts = [self._part(item, options) for item in prompt]
        if not any(isinstance(item, PromptSlot) for item in prompt):
            raise UserError(
                "the prompt has no slot: put mmfusion.ImageSlot() or mmfusion.TextSlot() where "
                "something is to be generated"
            )
        return parts

    def _part(self, item: PromptItem, options: dict[str, Any]) -> PromptPart:
        match item:
            case str():
                return self.text(item)
            case PILImage.Image():
                return self.picture(item)
            case ImageSlot():
                return self.image_slot("interleaved", {**options, **item.options})
            case TextSlot():
                return self.text_slot("interleaved", {**options, **item.options})
        raise UserError(
            "a prompt holds str, PIL pictures, ImageSlot() and TextSlot(), not "
            + (item.__name__ if isinstance(item, type) else type(item).__name__)
        )

    def room(self, part: PromptPart) -> int:
        """Tokens that a part takes in the cache."""
        if isinstance(part, ImageRequest):
            return self.config.image.tokens
        if isinstance(part, TextRequest):
            return part.sampling.max_new_tokens + 2
        return count([part], self.config.decoder.label_tokens).tokens

    def check_length(self, parts: Sequence[PromptPart], what: str = "the prompt") -> None:
        """Refuse a prompt that is longer than anything the model was trained on."""
        limit = self.config.row_length
        used = sum(self.room(part) for part in parts)
        if used > limit:
            lower = any(isinstance(part, TextRequest) for part in parts)
            raise UserError(
                f"{what} takes {used} tokens with its answers, the model's rows hold {limit}; "
                f"shorten it{', or lower max_new_tokens' if lower else ''}"
            )
