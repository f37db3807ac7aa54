"""Tasks: the ways in which a sample becomes a document. No other part knows about tasks.

| task | document |
|---|---|
| class_to_image | label, target picture |
| text_to_image | caption, target picture |
| image_to_text | picture, answer |
| interleaved | what the sample's `content` lists: pictures, texts, answers, target pictures |
"""

from itertools import zip_longest

import numpy as np
from PIL import ImageOps

from mmfusion.codecs.image import make_codec, patches
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Config, SourceConfig
from mmfusion.diffusion import Diffusion
from mmfusion.errors import CorruptSample, UserError
from mmfusion.sequence import Document, Image, Label, Segment, Text, count, null_form
from mmfusion.split import draw_split

from .samples import Sample, moments_name


class DocumentMaker:
    """Turns samples into training documents; every draw comes from the given generator."""

    def __init__(self, config: Config, tokenizer: Tokenizer | None) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.diffusion = Diffusion(config.diffusion)
        self.codec = make_codec(config.image) if config.image.codec != "vae" else None

    def make(self, source: SourceConfig, sample: Sample, rng: np.random.Generator) -> Document:
        """The sample as a document of the source's task, its condition dropped now and then.

        Raises:
            CorruptSample: the sample lacks what the task needs; the message names shard and key.
        """
        flip = source.flip and bool(rng.random() < 0.5)
        document: Document
        match source.task:
            case "class_to_image":
                document = [
                    Label(sample.label(len(self.config.classes))),
                    self._image(sample, rng, flip, target=True),
                ]
            case "text_to_image":
                prompt = self._text(_drawn(sample.captions(), rng))
                document = [prompt, self._image(sample, rng, flip, target=True)]
            case "image_to_text":
                answer = self._text(_drawn(sample.captions(), rng), answer=True)
                document = [self._image(sample, rng, flip), answer]
            case "interleaved":
                document = self._content(sample, rng, flip)
        wanted = any(isinstance(s, Image) and s.noise is not None for s in document)
        if wanted and rng.random() < self.config.diffusion.dropout:
            return null_form(document)
        return document

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
        """Normalised latent tokens (N, D), of pixels or drawn from the stored posterior."""
        if self.codec is not None:
            picture = sample.picture(name)
            try:
                return self.codec.encode([ImageOps.mirror(picture) if flip else picture])[0]
            except CorruptSample as error:
                raise error.at(sample.where) from None
        member = moments_name(name)
        if member not in sample:
            what = f": no `{member}`; write latents with `mmfusion data latents`"
            raise sample.corrupt("latents", what)
        image = self.config.image
        side = image.size // image.downsampling
        moments = sample.moments(member, (image.latent_channels, side, side))
        if flip and len(moments) < 2:
            raise sample.corrupt(
                "latents",
                f".{member}: holds no mirrored picture, but `flip` is true; write latents with "
                "`mmfusion data latents --flip`",
            )
        mean, deviation = moments[int(flip)].astype(np.float32)
        drawn = mean + deviation * rng.standard_normal(mean.shape, dtype=np.float32)
        return patches(drawn, image.patch)

    def _content(self, sample: Sample, rng: np.random.Generator, flip: bool) -> Document:
        document: list[Segment] = []
        tokens, most = 0, self.config.row_length
        parts = sample.content()
        for part, following in zip_longest(parts, parts[1:]):
            if part.kind == "image":
                document.append(self._image(sample, rng, flip, part.target, part.value))
            elif part.kind == "answer":
                drawn = following is not None and following.target
                document.append(self._text(part.value, answer=True, image_follows=drawn))
            else:
                document.append(self._text(part.value))
            tokens += count(document[-1:], 0).tokens
            if tokens > most:  # now, and not after a million parts
                first = f".json: its first {len(document)} parts have {tokens} tokens"
                raise sample.corrupt("length", f"{first}; a row holds {most}")
        return document


def _drawn(captions: list[str], rng: np.random.Generator) -> str:
    return captions[rng.integers(len(captions))]
