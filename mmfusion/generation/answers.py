"""From parts to answers: prompts of one shape side by side in a session, batch by batch."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from tqdm.auto import tqdm

from mmfusion.decoder import Decoder
from mmfusion.errors import UserError
from mmfusion.generation.arguments import Common
from mmfusion.generation.likelihood import Likelihood, best_candidates
from mmfusion.generation.prompt import ImageRequest, PromptPart, PromptReader, TextRequest
from mmfusion.generation.session import Session
from mmfusion.sequence import Segment

Parts = list[list[PromptPart]]
Column = tuple[Any, ...]
"""The parts of prompts side by side that stand at one place."""


class Answers:
    """What a model makes of parts."""

    def __init__(self, decoder: Decoder, read: PromptReader) -> None:
        self.decoder, self.read = decoder, read
        self.config, self.tokenizer, self.codec = read.config, read.tokenizer, read.codec

    def of(self, prompts: Parts, task: str, common: Common) -> list[list[Any]]:
        """The answers to all prompts, pictures and texts; prompts of one shape side by side."""
        seeds = common.seeds(len(prompts) // common.best_of)
        for parts in prompts:
            self.read.check_length(parts)
        answers: list[list[Any]] = [[] for _ in prompts]
        for batch in batches(prompts, task, common):
            columns = list(zip(*(prompts[number] for number in batch), strict=True))
            session = self._session(columns, [seeds[number] for number in batch])
            for place, column in enumerate(columns):
                if isinstance(column[0], ImageRequest):
                    made: list[Any] = self._draw(session, batch, columns[place:], common)
                elif isinstance(column[0], TextRequest):
                    made = self._write(session, batch, columns[place:], common)
                else:
                    session.append(list(column))
                    continue
                for number, answer in zip(batch, made, strict=True):
                    answers[number].append(answer)
        return answers

    def one_each(self, prompts: Parts, task: str, common: Common) -> list[Any]:
        """As `of`, of prompts with one answer each."""
        return [answer for (answer,) in self.of(prompts, task, common)]

    def likelihoods(
        self, documents: Sequence[Sequence[Segment]], common: Common
    ) -> list[Likelihood]:
        """The likelihood of each document's last segment, a text with its loss."""
        found: dict[int, Likelihood] = {}
        for batch in batches(documents, "log_likelihood", common):
            columns = list(zip(*(documents[number] for number in batch), strict=True))
            session = self._session(columns, [0] * len(batch))
            for column in columns[:-1]:
                session.append(list(column))
            log_p = session.log_likelihood(list(columns[-1])).tolist()
            for number, text, value in zip(batch, columns[-1], log_p, strict=True):
                found[number] = Likelihood(value, len(text.ids) - 1)
        return [found[number] for number in range(len(documents))]

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
        return Session(self.decoder, self.config, self.tokenizer, length, generators, guided)

    def _draw(
        self, session: Session, batch: list[int], columns: list[Column], common: Common
    ) -> list[PILImage.Image]:
        """Pictures for the first of the columns that are left."""
        first, follows, kept = columns[0][0], len(columns) > 1, None
        if first.keep is not None:
            kept = np.stack([p.latents for p in columns[0]]), np.stack([p.keep for p in columns[0]])

        def report(share: float, latents: torch.Tensor) -> None:
            if common.on_picture:
                for number, picture in zip(batch, self.codec.decode(latents.numpy()), strict=True):
                    common.on_picture(number, share, picture)

        latents = session.image(first.sampling, follows, kept, report)
        if not np.isfinite(latents).all():
            raise UserError(
                "the picture came out as numbers that are not finite: lower guidance, or load the "
                "model with dtype float32"
            )
        return self.codec.decode(latents)

    def _write(
        self, session: Session, batch: list[int], columns: list[Column], common: Common
    ) -> list[str]:
        """Texts for the first of the columns that are left."""
        assert self.tokenizer is not None
        decode, follows = self.tokenizer.decode, len(columns) > 1
        image_follows = follows and isinstance(columns[1][0], ImageRequest)
        said: list[list[int]] = [[] for _ in batch]

        def report(row: int, token: int) -> None:
            said[row].append(token)
            if common.on_token:
                common.on_token(batch[row], decode(said[row]).strip())

        ids = session.text(columns[0][0].sampling, image_follows, follows, report)
        return [decode(i).strip() for i in ids]


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
