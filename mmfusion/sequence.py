"""Documents and the tokens they become.

A document is a list of segments: Text, Label or Image. Each token of a row carries, besides its
content, `doc` (which document; -1 is padding), `order` (its place in causal time), `stream`
(0 clean, k >= 1 the k-th noisy copy) and `position` (time, row, column). What may see what
follows from the three integers alone: see `mmfusion.mask`.

Shapes: n tokens written, L row length, N tokens of an image, D numbers in a latent token.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mmfusion.config import ModelConfig
from mmfusion.split import Split, step_weights

PAD, TEXT, LABEL, IMAGE = 0, 1, 2, 3


@dataclass(frozen=True)
class Text:
    """Token ids; the first is a control token that says whether the text is given or answered.

    With `loss`, every id but the first is a next-token target.
    """

    ids: list[int]
    loss: bool = False

    def null(self) -> "Text":
        """The unconditional form: the control token alone."""
        return Text(self.ids[:1])


@dataclass(frozen=True)
class Label:
    """A class number, written as several learned tokens; None is the null class."""

    label: int | None

    def null(self) -> "Label":
        """The unconditional form: the null class."""
        return Label(None)


@dataclass(frozen=True)
class Noise:
    """What turns a clean image into a training target, for K noisy copies.

    Attributes:
        latents: noised latents, (K, N, D).
        target: what the decoder is to predict, (K, N, D).
        timesteps: diffusion timestep of each token, (K, N).
        weight: loss weight of each token by its timestep, (K, N).
        start_weight: loss weight of an AR step that starts at the first token.
    """

    latents: np.ndarray
    target: np.ndarray
    timesteps: np.ndarray
    weight: np.ndarray
    start_weight: float


@dataclass(frozen=True)
class Image:
    """Latent tokens (N, D) on a grid of `columns` columns: a context picture, or a target.

    A context picture is one AR step. A target has `noise` and a `split` into AR steps.
    """

    latents: np.ndarray
    columns: int
    split: Split | None = None
    noise: Noise | None = None

    def null(self) -> "Image":
        """Pictures are kept in the unconditional form."""
        return self


Segment = Text | Label | Image
Document = list[Segment]


def null_form(document: Document) -> Document:
    """The same document with its droppable segments, labels and text, in their null form."""
    return [segment.null() for segment in document]


class Counts(NamedTuple):
    """How many tokens of each kind something holds, or may hold."""

    tokens: int = 0
    text: int = 0
    label: int = 0
    image: int = 0
    noisy: int = 0
    predict: int = 0

    def plus(self, other: "Counts") -> "Counts":
        """The counts of both."""
        return Counts(*map(int.__add__, self, other))

    def fits(self, limit: "Counts") -> bool:
        """Whether every count is within its limit."""
        return all(a <= b for a, b in zip(self, limit, strict=True))

    def beyond(self, limit: "Counts") -> str:
        """Of which tokens there are too many, and the config keys that say so."""
        most = limit._asdict()
        over = {kind: n for kind, n in self._asdict().items() if n > most[kind]}
        rows = over.pop("tokens", None)
        if rows is not None:  # then what its parts are beyond says no more
            return f"{rows} tokens; a row holds {limit.tokens}: raise row_length"
        return ", ".join(
            f"{n} {kind} tokens; a row holds {most[kind]}: raise data.capacity.{kind}"
            for kind, n in over.items()
        )


def count(document: Document, label_tokens: int) -> Counts:
    """Tokens of each kind that `Row.document` will write."""
    total = Counts()
    for place, segment in enumerate(document):
        match segment:
            case Text(ids, loss):
                n = len(ids)
                total = total.plus(Counts(n, text=n, predict=loss * (n - 1)))
            case Label():
                total = total.plus(Counts(label_tokens, label=label_tokens))
            case Image(latents, _, split, noise):
                n, noisy = len(latents), 0
                if noise is not None:
                    noisy = noise.latents.shape[0] * n
                    if place == len(document) - 1:
                        n -= len(split[-1]) if split else n
                total = total.plus(Counts(n + noisy, image=n + noisy, noisy=noisy))
    return total


@dataclass
class Row:
    """Documents one after another, in room for `length` tokens; `used` of them are written.

    Attributes:
        doc, order, stream, kind: (L,) integers.
        position: (L, 3) time, row, column.
        content: (L,) the text id, the image token's grid index, or label * label_tokens + which
            of its tokens; the null class has the number after the last class's.
        latent, target: (L, D) of image tokens and of what noisy ones are to predict.
        timestep: (L,) of noisy tokens.
        weight: (L,) loss weight of noisy tokens; above 0 exactly for those with a target.
        predict: (L,) the next text id where it is a target, else -1.
    """

    length: int
    latent_dim: int
    label_tokens: int
    null_label: int
    used: int = 0
    doc_id: int = -1
    order_now: int = 0
    time_now: int = 0
    doc: np.ndarray = field(init=False)
    order: np.ndarray = field(init=False)
    stream: np.ndarray = field(init=False)
    kind: np.ndarray = field(init=False)
    position: np.ndarray = field(init=False)
    content: np.ndarray = field(init=False)
    latent: np.ndarray = field(init=False)
    target: np.ndarray = field(init=False)
    timestep: np.ndarray = field(init=False)
    weight: np.ndarray = field(init=False)
    predict: np.ndarray = field(init=False)

    @classmethod
    def of(cls, config: ModelConfig, length: int) -> "Row":
        """An empty row for a model's documents."""
        decoder = config.decoder
        tokens, classes = decoder.label_tokens, len(config.classes)
        return cls(length, config.image.latent_dim, tokens, classes)

    def __post_init__(self) -> None:
        size, dim = self.length, self.latent_dim
        self.doc = np.full(size, -1, np.int32)
        # Padding: an order each and stream 1, so that a padded token sees only itself.
        self.order = np.arange(size, dtype=np.int32)
        self.stream = np.ones(size, np.int32)
        self.kind = np.full(size, PAD, np.int8)
        self.position = np.zeros((size, 3), np.int32)
        self.content = np.zeros(size, np.int64)
        self.latent = np.zeros((size, dim), np.float32)
        self.target = np.zeros((size, dim), np.float32)
        self.timestep = np.zeros(size, np.float32)
        self.weight = np.zeros(size, np.float32)
        self.predict = np.full(size, -1, np.int64)

    def document(self, document: Document) -> None:
        """Write a whole document; the clean copy that nothing after needs is left out."""
        self.doc_id, self.order_now, self.time_now = self.doc_id + 1, 0, 0
        for place, segment in enumerate(document):
            self.segment(segment, last=place == len(document) - 1)

    def segment(self, segment: Segment, last: bool = False) -> None:
        """Write one segment at the current place in causal time."""
        match segment:
            case Text(ids, loss):
                self.text(ids, loss)
            case Label(label):
                self.label(label)
            case Image(latents, columns, None, None):
                self.image(latents, np.arange(len(latents)), columns)
                self.end_image()
            case Image():
                self._target_image(segment, last)

    def text(self, ids: list[int], loss: bool = False) -> None:
        """Text tokens, each with an order and a time of its own."""
        n = len(ids)
        at = self._claim(n, TEXT)
        self.order[at] = self.order_now + np.arange(n)
        self.position[at, 0] = self.time_now + np.arange(n)
        self.content[at] = ids
        if loss:
            self.predict[at.start : at.stop - 1] = ids[1:]
        self.order_now += n
        self.time_now += n

    def label(self, label: int | None) -> None:
        """The learned tokens of a label: one order, one time, seen by each other."""
        at = self._claim(self.label_tokens, LABEL)
        number = self.null_label if label is None else label
        self.order[at] = self.order_now
        self.position[at, 0] = self.time_now
        self.content[at] = number * self.label_tokens + np.arange(self.label_tokens)
        self.order_now += 1
        self.time_now += 1

    def image(
        self,
        latents: np.ndarray,
        at_grid: np.ndarray,
        columns: int,
        step: np.ndarray | int = 0,
        stream: int = 0,
    ) -> slice:
        """Image tokens `latents` (n, D) at grid indices `at_grid` (n,); returns their places.

        `step` numbers each token's AR step from the image's first.
        """
        at = self._claim(len(at_grid), IMAGE)
        self.order[at] = self.order_now + step
        self.stream[at] = stream
        self.position[at, 0] = self.time_now
        self.position[at, 1], self.position[at, 2] = np.divmod(at_grid, columns)
        self.content[at], self.latent[at] = at_grid, latents
        return at

    def end_image(self, steps: int = 1) -> None:
        """After an image of so many AR steps: time moves on by one, order by its steps."""
        self.time_now += 1
        self.order_now += steps

    def _target_image(self, image: Image, last: bool) -> None:
        noise, split = image.noise, image.split or [np.arange(len(image.latents))]
        assert noise is not None
        grid = np.concatenate(split)
        sizes = [len(step) for step in split]
        step = np.repeat(np.arange(len(split)), sizes)
        weight = np.repeat(step_weights(split, noise.start_weight), sizes)
        clean = grid[: len(grid) - sizes[-1]] if last else grid
        self.image(image.latents[clean], clean, image.columns, step[: len(clean)])
        for copy in range(len(noise.latents)):
            at = self.image(noise.latents[copy, grid], grid, image.columns, step, copy + 1)
            self.target[at] = noise.target[copy, grid]
            self.timestep[at] = noise.timesteps[copy, grid]
            self.weight[at] = weight * noise.weight[copy, grid]
        self.end_image(len(split))

    def _claim(self, n: int, kind: int) -> slice:
        start, self.used = self.used, self.used + n
        if self.used > self.length:
            raise ValueError(f"{self.used} tokens do not fit a row of {self.length}")
        at = slice(start, self.used)
        self.doc[at], self.kind[at], self.stream[at] = self.doc_id, kind, 0
        return at
