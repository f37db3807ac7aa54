"""Tasks: the ways in which a sample becomes a document. No other part knows about tasks.

| task | document |
|---|---|
| class_to_image | label, target picture |
| text_to_image | caption, target picture |
| image_to_text | picture, answer |
| interleaved | what the sample's `content` lists: pictures, texts, answers, target pictures |
"""

from typing import Any

import numpy as np
from PIL import ImageOps

from mmfusion.codecs.image import PixelCodec, patches
from mmfusion.codecs.text import Tokenizer, clean
from mmfusion.config import Config, SourceConfig
from mmfusion.diffusion import Diffusion
from mmfusion.errors import Damage, UserError
from mmfusion.sequence import Document, Image, Label, Segment, Text, count, null_form
from mmfusion.split import draw_split

from .samples import Sample

MOST_CHARACTERS = 1_000_000  # of a text are looked at
MOST_CAPTIONS = 1000  # of a sample are looked at
MOST_LATENT = 1000.0  # latents have about unit variance; one 1e30 would ruin the model's weights


def shown(value: Any) -> str:
    """A value as an error message shows it: not at any length."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # a number of many digits; very deep lists
        text = type(value).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


class DocumentMaker:
    """Turns samples into training documents; every draw comes from the given generator."""

    def __init__(self, config: Config, tokenizer: Tokenizer | None) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.diffusion = Diffusion(config.diffusion)
        self.pixels = PixelCodec(config.image) if config.image.codec == "pixel" else None

    def make(self, source: SourceConfig, sample: Sample, rng: np.random.Generator) -> Document:
        """The sample as a document of the source's task, its condition dropped now and then.

        Raises:
            Damage: the sample lacks what the task needs; the message names shard and key.
            UserError: no sample of the source can have it.
        """
        flip = source.flip and bool(rng.random() < 0.5)
        facts = sample.json()
        document: Document
        match source.task:
            case "class_to_image":
                document = [self._label(facts, sample), self._image(sample, rng, flip, target=True)]
            case "text_to_image":
                prompt = self._text(self._caption(facts, sample, rng))
                document = [prompt, self._image(sample, rng, flip, target=True)]
            case "image_to_text":
                answer = self._text(self._caption(facts, sample, rng), answer=True)
                document = [self._image(sample, rng, flip), answer]
            case "interleaved":
                document = self._content(facts, sample, rng, flip)
        wanted = any(isinstance(s, Image) and s.noise is not None for s in document)
        if wanted and rng.random() < self.config.diffusion.dropout:
            return null_form(document)
        return document

    def _label(self, facts: dict[str, Any], sample: Sample) -> Label:
        label, classes = facts.get("label"), len(self.config.classes)
        if type(label) is not int or not 0 <= label < classes:
            raise Damage(
                "label",
                f"{sample.where}.json: `label` is {shown(label)}; expected 0 to {classes - 1} "
                "(the config's `classes`)",
            )
        return Label(label)

    def _caption(self, facts: dict[str, Any], sample: Sample, rng: np.random.Generator) -> str:
        captions = facts.get("captions")
        if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
            raise Damage("caption", f"{sample.where}.json: `captions` must be a list of strings")
        captions = [
            " ".join(clean(caption[:MOST_CHARACTERS]).split())
            for caption in captions[:MOST_CAPTIONS]
        ]
        captions = [caption for caption in captions if caption]
        if not captions:
            raise Damage("caption", f"{sample.where}.json: `captions` holds no text")
        return captions[rng.integers(len(captions))]

    def _text(self, text: str, answer: bool = False, image_follows: bool = False) -> Text:
        if self.tokenizer is None:
            raise UserError("the mixture has text, but the config has no `text.tokenizer`")
        if answer:
            return self.tokenizer.answer(text, image_follows)
        return self.tokenizer.given(text)

    def _image(
        self,
        sample: Sample,
        rng: np.random.Generator,
        flip: bool,
        target: bool = False,
        name: str | None = None,
    ) -> Image:
        latents = self._latents(sample, rng, flip, name)
        columns = self.config.image.grid[1]
        if not target:
            return Image(latents, columns)
        c = self.config.diffusion
        split = draw_split(len(latents), c.ar_decay, c.order, rng, c.ar_steps)
        return Image(latents, columns, split, self.diffusion.draw(latents, split, rng))

    def _latents(
        self, sample: Sample, rng: np.random.Generator, flip: bool, name: str | None
    ) -> np.ndarray:
        """Normalised latent tokens (N, D): pixels, or a draw from the stored posterior."""
        if self.pixels is not None:
            picture = sample.picture(name)
            try:
                return self.pixels.encode([ImageOps.mirror(picture) if flip else picture])[0]
            except Damage as error:
                raise error.at(sample.where) from None
        member = f"{name.rpartition('.')[0]}.moments.npy" if name else "moments.npy"
        if member not in sample:
            raise Damage(
                "latents",
                f"{sample.where}: no `{member}`; write latents with `mmfusion data latents`",
            )
        moments = sample.array(member)
        image = self.config.image
        side = image.size // image.downsampling
        needed = (2, image.latent_channels, side, side)
        if moments.shape[1:] != needed or not len(moments) or moments.dtype.kind != "f":
            raise Damage(
                "latents",
                f"{sample.where}.{member}: {moments.dtype} latents of shape {moments.shape}; the "
                f"config's image section needs (1 or 2, {', '.join(map(str, needed))}) floats",
            )
        if flip and len(moments) < 2:
            raise Damage(
                "latents",
                f"{sample.where}.{member}: holds no mirrored picture, but `flip` is true; write "
                "latents with `mmfusion data latents --flip`",
            )
        with np.errstate(over="ignore"):  # becomes infinite, and is told below
            mean, deviation = chosen = moments[int(flip)].astype(np.float32)
        if not (np.abs(chosen) <= MOST_LATENT).all():
            raise Damage(
                "latents",
                f"{sample.where}.{member}: holds numbers that are not finite, or above "
                f"{MOST_LATENT:g}; normalised latents have about unit variance",
            )
        drawn = mean + deviation * rng.standard_normal(mean.shape, dtype=np.float32)
        return patches(drawn, image.patch)

    def _content(
        self, facts: dict[str, Any], sample: Sample, rng: np.random.Generator, flip: bool
    ) -> Document:
        content = facts.get("content")
        if not isinstance(content, list) or not content:
            raise Damage(
                "content", f"{sample.where}.json: an interleaved sample needs a `content` list"
            )
        document: list[Segment] = []
        tokens, most = 0, self.config.row_length
        for place, part in enumerate(content):
            following = content[place + 1] if place + 1 < len(content) else {}
            match part:
                case {"text": str(text)} if len(text) <= MOST_CHARACTERS:
                    document.append(self._text(text))
                case {"answer": str(text)} if len(text) <= MOST_CHARACTERS:
                    drawn = isinstance(following, dict) and bool(following.get("target"))
                    document.append(self._text(text, answer=True, image_follows=drawn))
                case {"image": str(name)}:
                    target = bool(part.get("target"))
                    document.append(self._image(sample, rng, flip, target, name))
                case _:
                    raise Damage(
                        "content",
                        f"{sample.where}.json: content {place} is {shown(part)}; expected "
                        '{"text": ...}, {"answer": ...} or {"image": ..., "target": true|false}',
                    )
            tokens += count(document[-1:], 0).tokens
            if tokens > most:  # now, and not after a million parts
                raise Damage(
                    "length",
                    f"{sample.where}.json: its first {place + 1} parts have "
                    f"{tokens} tokens; a row holds {most}",
                )
        return document
