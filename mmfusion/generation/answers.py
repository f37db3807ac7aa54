"""From parts to answers: prompts of one shape side by side in a session, batch by batch."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from tqdm.auto import tqdm

from mmfusion.decoder import Decoder
from mmfusion.errors import UserError, enough_memory
from mmfusion.generation.arguments import Common
from mmfusion.generation.likelihood import Likelihood, best_candidates
from mmfusion.generation.prompt import ImageRequest, PromptPart, PromptReader, TextRequest
from mmfusion.generation.session import Session, sampler
from mmfusion.generation.stepper import Alone, Passes, Runner
from mmfusion.sequence import Segment

LESS = "give a smaller batch_size, or fewer beams"
Parts = list[list[PromptPart]]
Column = tuple[Any, ...]
"""The parts of prompts side by side that stand at one place."""


class Answers:
    """What a model makes of parts; `runner` gives their passes to it."""

    def __init__(self, decoder: Decoder, read: PromptReader, runner: Runner | None = None) -> None:
        self.decoder, self.read, self.runner = decoder, read, runner or Alone(decoder)
        self.config, self.tokenizer, self.codec = read.config, read.tokenizer, read.codec

    @enough_memory(LESS)
    def of(self, prompts: Parts, task: str, common: Common) -> list[list[Any]]:
        """The answers to all prompts, pictures and texts; prompts of one shape side by side."""
        seeds = common.seeds(len(prompts) // common.best_of)
        for parts in prompts:
            self.read.check_length(parts)
        answers: list[list[Any]] = [[] for _ in prompts]
        for batch in batches(prompts, task, common):
            columns = list(zip(*(prompts[number] for number in batch), strict=True))
            own = [seeds[number] for number in batch]
            for first, *_ in columns:
                if isinstance(first, ImageRequest):  # here, where nobody waits besides the caller
                    sampler(self.config, first.sampling)
            for made in self.runner.run(self._passes(batch, columns, own, common)):
                finished = self._texts(made) if isinstance(made, list) else self._pictures(made)
                for number, answer in zip(batch, finished, strict=True):
                    answers[number].append(answer)
        return answers

    def _passes(
        self, batch: list[int], columns: list[Column], seeds: list[int], common: Common
    ) -> Passes[list[Any]]:
        """What fills the columns that ask for something: latents, or the ids of texts."""
        session = self._session(columns, seeds)
        made: list[Any] = []
        for place, column in enumerate(columns):
            if isinstance(column[0], ImageRequest):
                made.append((yield from self._draw(session, batch, columns[place:], common)))
            elif isinstance(column[0], TextRequest):
                made.append((yield from self._write(session, batch, columns[place:], common)))
            else:
                yield from session.reading(list(column))
        return made

    def one_each(self, prompts: Parts, task: str, common: Common) -> list[Any]:
        """As `of`, of prompts with one answer each."""
        return [answer for (answer,) in self.of(prompts, task, common)]

    @enough_memory(LESS)
    def likelihoods(
        self, documents: Sequence[Sequence[Segment]], common: Common
    ) -> list[Likelihood]:
        """The likelihood of each document's last segment, a text with its loss."""
        found: dict[int, Likelihood] = {}
        for batch in batches(documents, "log_likelihood", common):
            columns = list(zip(*(documents[number] for number in batch), strict=True))
            log_p = self.runner.run(self._likelihood(columns)).tolist()
            for number, text, value in zip(batch, columns[-1], log_p, strict=True):
                found[number] = Likelihood(value, len(text.ids) - 1)
        return [found[number] for number in range(len(documents))]

    def _likelihood(self, columns: list[Column]) -> Passes[torch.Tensor]:
        session = self._session(columns, [0] * len(columns[0]))
        for column in columns[:-1]:
            yield from session.reading(list(column))
        return (yield from session.weighing(list(columns[-1])))

    def best(
        self,
        candidates: list[Any],
        documents: Sequence[Sequence[Segment]],
        common: Common,
        length_penalty: float,
    ) -> list[Any]:
        """The candidate of each item whose document's last text is the likeliest."""
        found = self.likelihoods(documents, common)
        scores = [likelihood.score(length_penalty) for likelihood in found]
        return [candidates[at] for at in best_candidates(scores, common.best_of)]

    def _session(self, columns: list[Column], seeds: list[int]) -> Session:
        """Rows side by side, with room for all their parts, and a twin each where one is guided."""
        length = sum(max(self.read.room(part) for part in column) for column in columns)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = [first for first, *_ in columns if isinstance(first, ImageRequest)]
        guided = any(request.sampling.guidance != 1 for request in drawn)
        return Session(
            self.decoder, self.config, self.tokenizer, length, generators, guided, self.runner.pool
        )

    def _draw(
        self, session: Session, batch: list[int], columns: list[Column], common: Common
    ) -> Passes[np.ndarray]:
        """Latents of pictures for the first of the columns that are left."""
        first, follows, kept = columns[0][0], len(columns) > 1, None
        if first.keep is not None:
            kept = np.stack([p.latents for p in columns[0]]), np.stack([p.keep for p in columns[0]])

        def show(share: float, latents: torch.Tensor) -> None:
            assert common.on_picture
            for number, picture in zip(batch, self.codec.decode(latents.numpy()), strict=True):
                common.on_picture(number, share, picture)

        def report(share: float, latents: torch.Tensor) -> None:
            self.runner.tell(partial(show, share, latents))

        told = report if common.on_picture else None
        return (yield from session.drawing(first.sampling, follows, kept, told))

    def _write(
        self, session: Session, batch: list[int], columns: list[Column], common: Common
    ) -> Passes[list[list[int]]]:
        """Ids of texts for the first of the columns that are left."""
        assert self.tokenizer is not None
        decode, follows = self.tokenizer.decode, len(columns) > 1
        image_follows = follows and isinstance(columns[1][0], ImageRequest)
        said: list[list[int]] = [[] for _ in batch]

        def show(row: int, token: int) -> None:
            assert common.on_token
            said[row].append(token)
            common.on_token(batch[row], decode(said[row]).strip())

        def report(row: int, token: int) -> None:
            self.runner.tell(partial(show, row, token))

        told = report if common.on_token else None
        sampling = columns[0][0].sampling
        return (yield from session.writing(sampling, image_follows, follows, told))

    def _pictures(self, latents: np.ndarray) -> list[PILImage.Image]:
        return self.codec.decode(latents)

    def _texts(self, ids: list[list[int]]) -> list[str]:
        assert self.tokenizer is not None
        return [self.tokenizer.decode(each).strip() for each in ids]


def shape_of(part: PromptPart) -> tuple:
    """What must be equal for parts to be run side by side."""
    if isinstance(part, ImageRequest):
        return part.sampling.model_dump_json(), 0 if part.keep is None else int(part.keep.sum())
    if isinstance(part, TextRequest):
        return ("text", part.sampling.model_dump_json())
    return (type(part).__name__,)


def batches(
    prompts: Sequence[Sequence[PromptPart]], task: str, common: Common
) -> Iterator[list[int]]:
    """Numbers of the prompts that are run side by side, `batch_size` of one shape."""
    if not prompts:
        raise UserError(f"{task}: nothing was given")
    groups: dict[tuple, list[int]] = {}
    for number, parts in enumerate(prompts):
        groups.setdefault(tuple(map(shape_of, parts)), []).append(number)
    with tqdm(total=len(prompts), desc=task, disable=not common.progress) as bar:
        for numbers in groups.values():
            for at in range(0, len(numbers), common.batch_size):
                batch = numbers[at : at + common.batch_size]
                yield batch
                bar.update(len(batch))
