"""Prompts and answers of several rows over one cache, as passes that others may share.

Clean tokens are appended to the cache, images are denoised while reading it, text is decoded token
by token. With guidance every row has an unconditional row, whose labels and text are in their null
form; every clean pass appends to both. A row's answer does not depend on the rows beside it.

What a session does are generators of passes for `generation.stepper`, which gives one session's to
the decoder, or those of many together.

Shapes: R rows asked for, 2R with the unconditional ones, N tokens of an image, n of an AR step, D
numbers in a token.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmfusion.cache import Cache, Pool, Seat
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import ModelConfig, Sampling
from mmfusion.decoder import Decoder
from mmfusion.errors import UserError
from mmfusion.generation.coefficients import HISTORY, Step, steps_of
from mmfusion.generation.decoding import OnToken, begin_choice
from mmfusion.generation.image_plan import guidance_scale, step_sizes, token_order
from mmfusion.generation.stepper import Output, Passes
from mmfusion.packing import Batch, collate
from mmfusion.sequence import Row, Segment, Text, count

OnStep = Callable[[float, Tensor], None]


class Session:
    """R rows, each with a generator of its own, so that no draw depends on the batch."""

    def __init__(
        self,
        decoder: Decoder,
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        length: int,
        generators: list[torch.Generator],
        guided: bool,
        pool: Pool | None = None,
    ) -> None:
        """Make room for `length` tokens a row, in a pool of its own without one."""
        self.decoder, self.config, self.tokenizer = decoder, config, tokenizer
        self.generators, self.guided = generators, guided
        self.rows = len(generators)
        every = self.rows * (2 if guided else 1)
        weight = decoder.latent_in.weight
        self.device = weight.device
        pool = pool or Pool(decoder.config, weight.device, weight.dtype)
        self.cache = Cache(pool, every, length)
        self.order, self.time = np.zeros(every, int), np.zeros(every, int)

    def reading(self, segments: list[Segment]) -> Passes[None]:
        """Append one clean segment to each row, and its null form to its unconditional row."""
        unconditional = [segment.null() for segment in segments] if self.guided else []
        yield from self._read([*segments, *unconditional])

    def drawing(
        self,
        sampling: Sampling,
        follows: bool,
        kept: tuple[np.ndarray, np.ndarray] | None = None,
        on_step: OnStep | None = None,
    ) -> Passes[np.ndarray]:
        """Generate one image in every row.

        Args:
            sampling: scheduler, steps, guidance, AR steps and their order.
            follows: whether anything will be asked after this image.
            kept: latents (R, N, D) and booleans (R, N) of tokens to keep, as many in each row:
                they are one step before the others.
            on_step: told the share done and the latents as they stand, (R, N, D).

        Returns:
            Latents (R, N, D); kept ones are bit for bit those given.
        """
        tokens, dim = self.config.image.tokens, self.config.image.latent_dim
        latents = torch.stack([torch.randn(tokens, dim, generator=g) for g in self.generators])
        orders = [token_order(sampling, tokens, g) for g in self.generators]
        if kept is not None:
            given, keep = torch.from_numpy(kept[0]), torch.from_numpy(kept[1])
            latents[keep] = given[keep]
            cells = torch.stack([row.nonzero().flatten() for row in keep])
            yield from self._keep_image(latents, cells)
            orders = [o[~row[o]] for o, row in zip(orders, keep, strict=True)]
        order = torch.stack(orders)
        sizes = step_sizes(sampling, order.shape[1])
        latents = latents.to(self.device)
        there = tokens - order.shape[1]
        for step, cells in enumerate(order.split(sizes, dim=1)):

            def report(share: float, step: int = step) -> None:
                assert on_step
                on_step((step + share) / len(sizes), latents.to("cpu", copy=True))

            there += cells.shape[1]
            told = report if on_step else None
            yield from self._denoise(latents, cells, sampling, there / tokens, told)
            if follows or step < len(sizes) - 1:
                yield from self._keep_image(latents, cells)
        self.time += 1
        return _finite("picture", latents).cpu().numpy()

    def writing(
        self, sampling: Sampling, image_follows: bool, follows: bool, on_token: OnToken | None
    ) -> Passes[list[list[int]]]:
        """Decode an answer in every row; ids without control symbols.

        Beams live in a branch that is thrown away; the chosen answer is then read in one clean
        pass, so that the cache never holds another. The ending symbol (`<image>` where an image
        is to follow, else `</s>`) is appended when anything follows.
        """
        assert self.tokenizer is not None
        begin = Text([self.tokenizer.answer_id])
        logits = yield from self._read([begin] * len(self.order), asked=self.rows)
        branch, since, branched = self, int(self.cache.used[: self.rows].min()), sampling.beams > 1
        if branched:
            branch = self._branch(sampling.beams, room=sampling.max_new_tokens)
            logits = logits.repeat_interleave(sampling.beams, 0)
        choice = begin_choice(sampling, self.tokenizer, self.generators, self.device, on_token)
        for turn in range(sampling.max_new_tokens):
            feed = choice.extend(logits)
            last = turn == sampling.max_new_tokens - 1 and (branched or not follows)
            if last or not any(token is not None for token in feed):
                break
            if choice.origin is not None:
                branch._take(branch, choice.origin.tolist(), since)
            logits = yield from branch._next(feed, logits)
        answers = choice.answers()
        if follows:
            end = self.tokenizer.image_id if image_follows else self.tokenizer.end_id
            read = [Text([*ids, end] if branched else [end]) for ids in answers]
            yield from self._read(read)
        return answers

    def weighing(self, answers: list[Text]) -> Passes[Tensor]:
        """Log p of each row's answer, a text with its loss, after what came before: (R,), nats."""
        batch = self._segments(answers, range(len(answers)), 0)
        _, found = yield from self._clean(range(len(answers)), batch)
        logits = _finite("text", found)
        nats = F.cross_entropy(logits, batch.predict_id.to(logits.device), reduction="none")
        owner = batch.doc[batch.predict_at].long()
        return -torch.zeros(len(answers), dtype=torch.double).index_add(
            0, owner, nats.cpu().double()
        )

    def _read(self, segments: Sequence[Segment], asked: int = 0) -> Passes[Tensor]:
        """Clean segments of the first rows; logits (asked, V) after those of the first of them."""
        rows = range(len(segments))
        _, logits = yield from self._clean(rows, self._segments(segments, rows, asked))
        return _finite("text", logits) if asked else torch.empty(0)

    def _next(self, feed: list[int | None], logits: Tensor) -> Passes[Tensor]:
        """One token more in the rows that have one: their new logits, in a copy of the last."""
        rows = [row for row, token in enumerate(feed) if token is not None]
        each = torch.arange(len(rows))
        time = torch.from_numpy(self.time[rows])
        batch = _batch(
            self.config,
            doc=each,
            order=torch.from_numpy(self.order[rows]),
            stream=torch.zeros_like(each),
            position=torch.stack([time, *[torch.zeros_like(time)] * 2], 1),
            text_id=torch.tensor([token for token in feed if token is not None]),
            predict_at=each,
        )
        self.order[rows] += 1
        self.time[rows] += 1
        _, found = yield from self._clean(rows, batch)
        places = torch.tensor(rows, device=logits.device)
        return logits.index_copy(0, places, _finite("text", found))

    def _clean(self, rows: Sequence[int], batch: Batch) -> Passes[Output]:
        """A pass of clean tokens, which stay in the cache."""
        output = yield batch, Seat(self.cache, list(rows))
        self.cache.keep(rows, np.bincount(batch.doc.numpy()))
        return output

    def _segments(self, segments: Sequence[Segment], rows: Sequence[int], asked: int) -> Batch:
        """A segment of each row; the last token of the first `asked` predicts what comes next."""
        tokens, written = self.config.decoder.label_tokens, []
        for at, segment in zip(rows, segments, strict=True):
            row = Row.of(self.config, count([segment], tokens).tokens)
            row.doc_id, row.order_now, row.time_now = 0, self.order[at], self.time[at]
            row.segment(segment)
            if at < asked:
                row.predict[row.used - 1] = 0
            self.order[at], self.time[at] = row.order_now, row.time_now
            written.append(row)
        return collate(written)

    def _branch(self, beams: int, room: int) -> "Session":
        """Each row, without its unconditional one, `beams` times, with room for more tokens."""
        branch = copy(self)
        rows = np.arange(self.rows).repeat(beams).tolist()
        branch.rows, branch.guided = len(rows), False
        branch.cache = Cache(self.cache.pool, len(rows), int(self.cache.used.max()) + room)
        branch._take(self, rows)
        return branch

    def _take(self, other: "Session", rows: list[int], since: int = 0) -> None:
        """Go on from where `rows` of another session, or of this one, are; equal before `since`."""
        self.cache.take(other.cache, rows, since)
        self.order, self.time = other.order[rows], other.time[rows]

    def _denoise(
        self,
        latents: Tensor,
        cells: Tensor,
        sampling: Sampling,
        done: float,
        report: Callable[[float], None] | None,
    ) -> Passes[None]:
        """Denoise one AR step's tokens, at `cells` (R, n), in place, from the noise there.

        `done` is the share of the image's tokens that are there afterwards.
        """
        timesteps, steps = self.config.diffusion.timesteps, sampler(self.config, sampling)
        at = cells[..., None].expand(-1, -1, latents.shape[2]).to(self.device)
        x = latents.gather(1, at)
        before: list[tuple[Tensor, Tensor]] = []
        fresh = self._noise(x, sum(step.noise != 0 for step in steps))
        passes: dict[bool, tuple[Batch, Seat]] = {}
        for number, step in enumerate(steps):
            scale = guidance_scale(sampling, step.timestep / timesteps, done)
            guided = self.guided and scale != 1
            if guided not in passes:
                rows = range(self.rows * (2 if guided else 1))
                batch = self._image_batch(rows, cells, noisy=True)
                passes[guided] = batch, Seat(self.cache, list(rows))
            batch, seat = passes[guided]
            latent = (torch.cat([x, x]) if guided else x).flatten(0, 1)
            level = torch.full((1,), step.timestep, device=self.device)
            output, _ = yield replace(batch, latent=latent, timestep=level), seat
            output = output.unflatten(0, (-1, cells.shape[1]))
            if guided:
                cond, uncond = output.chunk(2)
                output = uncond + scale * (cond - uncond)
            before = [(x, output), *before][:HISTORY]
            shares = zip(step.latents, step.outputs, before, strict=True)
            x = torch.stack([a * was + b * made for a, b, (was, made) in shares]).sum(0)
            if step.noise:
                x = x + step.noise * next(fresh)
            if report or number == len(steps) - 1:
                latents.scatter_(1, at, x)
            if report:
                report((number + 1) / len(steps))

    def _noise(self, x: Tensor, draws: int) -> Iterator[Tensor]:
        """Fresh noise like x (R, n, D), as often as a sampler needs, from each row's generator."""
        shape = 1, *x.shape[1:]
        drawn = [[torch.randn(shape, generator=g) for _ in range(draws)] for g in self.generators]
        return (torch.cat(each).to(self.device) for each in zip(*drawn, strict=True))

    def _keep_image(self, latents: Tensor, cells: Tensor) -> Passes[None]:
        """One AR step's tokens, at `cells` (R, n), into the cache of every row."""
        rows = range(len(self.order))
        batch = self._image_batch(rows, cells, noisy=False)
        at = cells[..., None].expand(-1, -1, latents.shape[2]).to(latents.device)
        latent = latents.gather(1, at).repeat(len(rows) // self.rows, 1, 1).flatten(0, 1)
        yield from self._clean(rows, replace(batch, latent=latent))
        self.order += 1

    def _image_batch(self, rows: range, cells: Tensor, noisy: bool) -> Batch:
        """One AR step's tokens of some rows, still without their latents."""
        size = cells.shape[1]
        cell = cells.repeat(len(rows) // self.rows, 1).flatten()
        number = torch.arange(len(rows)).repeat_interleave(size)
        time = torch.from_numpy(self.time[: len(rows)])[number]
        columns = self.config.image.grid[1]
        return _batch(
            self.config,
            doc=number,
            order=torch.from_numpy(self.order[: len(rows)])[number],
            stream=torch.full_like(number, int(noisy)),
            position=torch.stack([time, cell // columns, cell % columns], 1),
            cell=cell,
            noisy_at=torch.arange(len(cell) if noisy else 0),
            level=torch.zeros(len(cell) if noisy else 0, dtype=torch.long),
        )


def _finite(what: str, numbers: Tensor | None) -> Tensor:
    """What a decoder has made, if it is of use: in half precision numbers may overflow."""
    assert numbers is not None
    if numbers.isfinite().all():
        return numbers
    raise UserError(
        f"the {what} came out as numbers that are not finite: lower guidance, or load the model "
        "with dtype float32"
    )


def sampler(config: ModelConfig, sampling: Sampling) -> tuple[Step, ...]:
    """The denoising steps that a call asks for."""
    name = sampling.scheduler or config.diffusion.schedulers[0]
    return steps_of(config.diffusion.model_dump_json(), name, sampling.num_inference_steps)


def _batch(config: ModelConfig, **given: Tensor) -> Batch:
    """T tokens of one kind, of which nothing is learned; `place` is their order."""
    none, size = torch.zeros(0, dtype=torch.long), len(given["doc"])
    latents = torch.zeros(0, config.image.latent_dim)
    lists = dict.fromkeys(("text_id", "label_id", "cell", "level", "noisy_at", "predict_at"), none)
    unused = {"latent": latents, "timestep": latents[:, 0], "target": latents}
    unused |= {"weight": latents[:, 0], "predict_id": none, "place": torch.arange(size)}
    return Batch(**{**lists, **unused, **given}, rows=0, noisy=0, targets=0)
