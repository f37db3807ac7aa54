"""A tiny model, random documents, and the visibility rule said a second time, in other words."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image as PILImage

from mmfusion import Pipeline
from mmfusion.attention import ByRow
from mmfusion.codecs.image import PixelCodec
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Config, ModelConfig
from mmfusion.data_pipelines.converters.digits import CONTINUATION, NAMES, captions
from mmfusion.data_pipelines.tokenizer import train_tokenizer
from mmfusion.decoder import Decoder
from mmfusion.diffusion import Diffusion
from mmfusion.generation.session import Session
from mmfusion.generation.stepper import run
from mmfusion.packing import Batch, collate
from mmfusion.sequence import Document, Image, Label, Row, Text
from mmfusion.split import draw_split

PAPER: dict[str, Any] = {"norm": "layer", "mlp": "gelu", "position": "learned"}
LLAMA: dict[str, Any] = {"norm": "rms", "mlp": "swiglu", "position": "rotary", "kv_heads": 2}
STYLES = {"paper": PAPER, "llama": LLAMA}
WIDTH, HEADS, LABEL_TOKENS, TOKENS, COLUMNS, DIM = 32, 4, 2, 16, 4, 4


def model_config(decoder: dict | None = None, **changes: Any) -> ModelConfig:
    """8x8 grey pictures of 16 tokens, ten classes; clean latents are predicted.

    (Clean latents: what an untrained model predicts then stays of order 1 while sampling.)
    """
    base: dict[str, Any] = {
        "row_length": 96,
        "image": {"size": 8, "channels": 1, "patch": 2},
        "text": {"tokenizer": "unused"},
        "classes": NAMES,
        "decoder": {
            "width": WIDTH,
            "depth": 2,
            "heads": HEADS,
            "label_tokens": LABEL_TOKENS,
            **(decoder or {}),
        },
        "diffusion": {"prediction": "sample"},
    }
    return ModelConfig.model_validate({**base, **changes})


def run_config(data: Path, output: Path, **changes: Any) -> Config:
    """A whole run of the tiny model on the shards that `write_digits` wrote to `data`."""
    train = f"{data}/train-*.tar"
    sources = [
        {"name": "class", "task": "class_to_image", "shards": train},
        {"name": "draw", "task": "text_to_image", "shards": train},
        {"name": "caption", "task": "image_to_text", "shards": train},
        {"name": "next", "task": "interleaved", "shards": f"{data}/interleaved-*.tar"},
    ]
    base = {
        **model_config().model_dump(),
        "text": {"tokenizer": str(data / "tokenizer.model")},
        "data": {"rows": 4, "micro_rows": 2, "sources": sources},
        "train": {"output": str(output), "steps": 2, "lr": 1e-3},
    }
    return Config.model_validate({**base, **changes})


def make_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer of the digits' captions."""
    lines = [line for label in range(10) for line in captions(label)]
    return Tokenizer(train_tokenizer([*lines, CONTINUATION], folder / "tokenizer.model", 400))


def random_decoder(config: ModelConfig, vocabulary: int = 0, seed: int = 0) -> Decoder:
    """Every parameter random: the zero-initialised head would hide everything."""
    decoder = Decoder(config, vocabulary)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
    return decoder.eval()


class RawCodec(PixelCodec):
    """Shows latents as they are, so that tests see more than 256 grey levels."""

    def decode(self, tokens: np.ndarray) -> list[Any]:
        return [np.array(picture) for picture in tokens]


def make_pipeline(
    tokenizer: Tokenizer | None,
    style: dict | None = None,
    louder: float = 1,
    seed: int = 0,
    codec: type[PixelCodec] = RawCodec,
    **changes: Any,
) -> Pipeline:
    """A random model; its answers end now and then where its end symbol is `louder`."""
    config = model_config(style, **changes)
    decoder = random_decoder(config, len(tokenizer) if tokenizer else 0, seed)
    if tokenizer:
        with torch.no_grad():
            decoder.text_out.weight[tokenizer.end_id] *= louder
    return Pipeline(config, decoder, tokenizer, codec(config.image))


def begun(pipe: Pipeline, pictures: Sequence[int], room: int = 60, guided: bool = False) -> Session:
    """A session each of whose rows has read `picture(i)`, and is seeded by `i`."""
    generators = [torch.Generator().manual_seed(i) for i in pictures]
    session = Session(pipe.decoder, pipe.config, pipe.tokenizer, room, generators, guided)
    run(pipe.decoder, session.reading([pipe.read.picture(picture(i)) for i in pictures]))
    return session


@contextmanager
def shouting(pipe: Pipeline, ids: int | list[int], by: float = 1e4) -> Iterator[None]:
    """The logits of some ids raised, wherever the model is asked."""

    def shout(module: Any, args: tuple, output: tuple) -> None:
        output[1][..., ids] += by

    handle = pipe.decoder.register_forward_hook(shout)
    yield
    handle.remove()


def picture(seed: int) -> PILImage.Image:
    """An 8x8 grey picture of noise."""
    return PILImage.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8))


# Documents


def image(
    rng: np.random.Generator, target: bool, steps: int | None = None, copies: int = 1
) -> Image:
    """A random picture of 16 tokens, with `copies` noisy copies where it is a target."""
    latents = rng.standard_normal((TOKENS, DIM), dtype=np.float32)
    if not target:
        return Image(latents, COLUMNS)
    split = draw_split(TOKENS, 0.9, "random", rng, steps)
    diffusion = Diffusion(model_config().diffusion)
    draws = [diffusion.draw(latents, split, rng) for _ in range(copies)]
    joined = {
        name: np.concatenate([getattr(draw, name) for draw in draws])
        for name in ("latents", "target", "timesteps", "weight")
    }
    noise = type(draws[0])(**joined, start_weight=2.0)
    return Image(latents, COLUMNS, split, noise)


def text(rng: np.random.Generator, loss: bool = False, most: int = 5) -> Text:
    return Text(rng.integers(3, 100, rng.integers(1 + loss, most + 1)).tolist(), loss)


def task_documents(rng: np.random.Generator) -> dict[str, Document]:
    """One document of each task's shape, and an image target with something after it."""
    label = Label(int(rng.integers(10)))
    return {
        "class_to_image": [label, image(rng, True)],
        "unconditional": [label.null(), image(rng, True)],
        "text_to_image": [text(rng), image(rng, True)],
        "image_to_text": [image(rng, False), text(rng, True)],
        "interleaved": [image(rng, False), text(rng), text(rng, True), image(rng, True)],
        "image_first": [text(rng), image(rng, True), text(rng, True)],
    }


def random_document(rng: np.random.Generator) -> Document:
    """Segments of any kind in any order; pictures in 1 to 16 AR steps, with 1 to 2 copies."""
    makers = [
        lambda: text(rng),
        lambda: text(rng, loss=True),
        lambda: Label(None if rng.random() < 0.3 else int(rng.integers(10))),
        lambda: image(rng, False),
        lambda: image(rng, True, copies=int(rng.integers(1, 3))),
    ]
    return [makers[rng.integers(len(makers))]() for _ in range(rng.integers(1, 5))]


def make_row(length: int, *documents: Document) -> Row:
    """Documents one after another in a row."""
    row = Row(length, DIM, LABEL_TOKENS, len(NAMES))
    for document in documents:
        row.document(document)
    return row


def batch_of(length: int, *rows: list[Document]) -> Batch:
    """Rows of so many tokens, each of some documents."""
    return collate([make_row(length, *documents) for documents in rows], padded=True)


def forward(decoder: Decoder, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Padded rows as a whole, without a cache: every pair of a row's tokens, under one mask."""
    return decoder(batch, ByRow(batch, flex=False))


def contents(batch: Batch) -> list[tuple[str, int]]:
    """What each token is: its kind, and its text id, entry in the label table or grid cell."""
    lists = {"text": batch.text_id, "label": batch.label_id, "image": batch.cell}
    held = [(kind, number) for kind, numbers in lists.items() for number in numbers.tolist()]
    return [held[at] for at in batch.place.tolist()]


# The rule in other words: from segments, without `order` and `stream`


class Token(NamedTuple):
    """A token as the paper speaks of it; `copy` 0 is clean, `step` counts from 0."""

    doc: int
    segment: int
    kind: str
    index: int
    step: int = 0
    copy: int = 0


def tokens_of(*documents: Document) -> list[Token]:
    """What each token of a packed row is. `index` of an image token is its grid cell."""
    tokens = []
    for d, document in enumerate(documents):
        for s, segment in enumerate(document):
            match segment:
                case Text():
                    tokens += [Token(d, s, "text", i) for i in range(len(segment.ids))]
                case Label():
                    tokens += [Token(d, s, "label", i) for i in range(LABEL_TOKENS)]
                case Image(_, _, None, None):
                    tokens += [Token(d, s, "image", i) for i in range(TOKENS)]
                case Image(_, _, split, noise):
                    cells = [(step, cell) for step, group in enumerate(split) for cell in group]
                    last = s == len(document) - 1
                    for copy in range(len(noise.latents) + 1):
                        tokens += [
                            Token(d, s, "image", int(cell), step, copy)
                            for step, cell in cells
                            if copy or not last or step < len(split) - 1
                        ]
    return tokens


def sees(query: Token, key: Token) -> bool:
    """Whether the query may read the key, as the paper and the design say it in words."""
    if query.doc != key.doc:
        return False
    if key.copy:  # a noisy token is seen by its own AR step and copy alone
        return (query.segment, query.step, query.copy) == (key.segment, key.step, key.copy)
    if query.segment != key.segment:
        return key.segment < query.segment
    if query.kind == "text":
        return key.index <= query.index
    if query.kind == "label":
        return True
    return key.step < query.step if query.copy else key.step <= query.step


def expected_mask(length: int, *documents: Document) -> np.ndarray:
    """(L, L) visibility of a packed row; what is left over is padding and sees itself."""
    tokens = tokens_of(*documents)
    mask = np.eye(length, dtype=bool)
    for q, query in enumerate(tokens):
        for k, key in enumerate(tokens):
            mask[q, k] = sees(query, key)
    return mask
