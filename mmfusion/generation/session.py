"""A conversation of several rows with the decoder over one cache.

Clean tokens are appended to the cache, pictures are denoised while reading it, text is decoded
token by token. With guidance every row has an unconditional twin, whose labels and text are in
their null form; every clean pass appends to both. Rows of different lengths are padded, which the
visibility rule hides, so a row's answer does not depend on the rows beside it.

Shapes: R rows asked for, 2R with their twins, N tokens of an image, D numbers in a token.
"""

import math
from collections.abc import Callable, Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmfusion.cache import Cache
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import ModelConfig, Sampling
from mmfusion.decoder import Decoder
from mmfusion.diffusion import Diffusion
from mmfusion.errors import UserError
from mmfusion.generation.decoding import OnToken, begin_choice
from mmfusion.packing import Batch, collate
from mmfusion.sequence import Row, Segment, Text, count
from mmfusion.split import even_sizes

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
    ) -> None:
        """Make room for `length` tokens a row, written passes' padding included."""
        self.decoder, self.config, self.tokenizer = decoder, config, tokenizer
        self.generators, self.guided = generators, guided
        self.rows = len(generators)
        every = self.rows * (2 if guided else 1)
        weight = decoder.latent_in.weight
        self.device = weight.device
        self.cache = Cache(decoder.config, every, length, weight.device, weight.dtype)
        self.order, self.time = [0] * every, [0] * every
        self.diffusion = Diffusion(config.diffusion)

    @torch.inference_mode()
    def append(self, segments: list[Segment]) -> None:
        """Append one clean segment to each row, and its null form to the row's twin."""
        unconditional = [segment.null() for segment in segments] if self.guided else []
        self._append([*segments, *unconditional])

    @torch.inference_mode()
    def image(
        self,
        sampling: Sampling,
        follows: bool,
        kept: tuple[np.ndarray, np.ndarray] | None = None,
        on_step: OnStep | None = None,
    ) -> np.ndarray:
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
        noise = torch.stack([torch.randn(tokens, dim, generator=g) for g in self.generators])
        orders = [self._order(sampling, g) for g in self.generators]
        latents = noise.clone()
        if kept is not None:
            given, keep = torch.from_numpy(kept[0]), torch.from_numpy(kept[1])
            latents[keep] = given[keep]
            at_grid = torch.stack([row.nonzero().flatten() for row in keep])
            self._image_pass(latents, at_grid, clean=True)
            orders = [o[~row[o]] for o, row in zip(orders, keep, strict=True)]
        order = torch.stack(orders)
        sizes = self._sizes(sampling, order.shape[1])
        there = tokens - order.shape[1]
        for step, at_grid in enumerate(order.split(sizes, dim=1)):

            def report(share: float, step: int = step) -> None:
                if on_step:
                    on_step((step + share) / len(sizes), latents)

            there += at_grid.shape[1]
            self._denoise(latents, at_grid, sampling, there / tokens, report)
            if follows or step < len(sizes) - 1:
                self._image_pass(latents, at_grid, clean=True)
        self.time = [time + 1 for time in self.time]
        return latents.numpy()

    @torch.inference_mode()
    def text(
        self, sampling: Sampling, image_follows: bool, follows: bool, on_token: OnToken | None
    ) -> list[list[int]]:
        """Decode an answer in every row; ids without control symbols.

        Beams live in a branch that is thrown away; the chosen answer is then read in one clean
        pass, so that the cache never holds another. The ending symbol (`<image>` where a picture
        is to follow, else `</s>`) is appended when anything follows.
        """
        assert self.tokenizer is not None
        begin = Text([self.tokenizer.answer_id])
        logits = self._append([begin] * len(self.order), ask=True)[: self.rows]
        branch, since, branched = self, self.cache.used, sampling.beams > 1
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
                branch._take(branch, choice.origin, since)
            said = [None if token is None else Text([token]) for token in feed]
            logits = branch._append(said, ask=True)
        answers = choice.answers()
        if follows:
            end = self.tokenizer.image_id if image_follows else self.tokenizer.end_id
            self._append([Text([*ids, end] if branched else [end]) for ids in answers])
        return answers

    @torch.inference_mode()
    def log_likelihood(self, answers: list[Text]) -> Tensor:
        """Log p of each row's answer, a text with its loss, after what came before: (R,), nats."""
        batch = self._clean_batch(answers)
        logits = self._pass(batch)[1]
        assert logits is not None
        nats = F.cross_entropy(
            logits.flatten(0, 1), batch.predict_id.flatten(), ignore_index=-1, reduction="none"
        )
        return -nats.view(batch.predict_id.shape).cpu().double().sum(1)

    def _append(self, segments: Sequence[Segment | None], ask: bool = False) -> Tensor:
        """One clean pass over the first len(segments) rows; logits (rows, V) after the last."""
        # Rows without a segment predict nothing; their padded entry is cut off in the decoder.
        logits = self._pass(self._clean_batch(segments, ask))[1]
        return logits[:, 0] if ask and logits is not None else torch.empty(0)

    def _clean_batch(self, segments: Sequence[Segment | None], ask: bool = False) -> Batch:
        """A segment of each row, or None; with `ask` the last token predicts what comes next."""
        tokens = self.config.decoder.label_tokens
        sizes = [count([s], tokens).tokens if s else 0 for s in segments]
        rows = []
        for at, segment in enumerate(segments):
            row = self._row(at, max(sizes))
            if segment:
                row.segment(segment)
                if ask:
                    row.predict[row.used - 1] = 0
            self._leave(at, row)
            rows.append(row)
        return collate(rows).to(self.device)

    def _branch(self, beams: int, room: int) -> "Session":
        """Each row, without its twin, `beams` times, with room for that many more tokens."""
        branch = copy(self)
        rows = torch.arange(self.rows, device=self.device).repeat_interleave(beams)
        branch.rows, branch.guided = len(rows), False
        length, kv = self.cache.used + room, self.cache.kv
        branch.cache = Cache(self.decoder.config, len(rows), length, kv.device, kv.dtype)
        branch._take(self, rows)
        return branch

    def _take(self, other: "Session", rows: Tensor, since: int = 0) -> None:
        """Go on from where `rows` of another session, or of this one, are; equal before `since`."""
        self.cache.take(other.cache, rows, since)
        self.order = [other.order[row] for row in rows.tolist()]
        self.time = [other.time[row] for row in rows.tolist()]

    def _denoise(
        self,
        latents: Tensor,
        at_grid: Tensor,
        sampling: Sampling,
        done: float,
        report: Callable[[float], None],
    ) -> None:
        """Denoise one AR step's tokens (R, n) in place, from the noise that lies there.

        `done` is the share of the image's tokens that are there afterwards.
        """
        scheduler = self.diffusion.scheduler(sampling.scheduler, sampling.num_inference_steps)
        batch = self._image_batch(latents, at_grid, clean=False)
        mask = self.cache.mask(batch)
        at = at_grid[..., None].expand(-1, -1, latents.shape[2])
        x = latents.gather(1, at).to(self.device)
        for step in range(len(scheduler.timesteps)):
            t = self.diffusion.timestep(scheduler, step)
            scale = guidance_scale(sampling, t / self.config.diffusion.timesteps, done)
            guided = self.guided and scale != 1
            part = slice(0, self.rows * (2 if guided else 1))
            latent = torch.cat([x, x]) if guided else x
            noisy = batch.rows(part).with_noisy(latent, torch.full_like(latent[..., 0], t))
            output, _ = self.decoder(noisy, mask[part], self.cache.part(part))
            if guided:
                cond, uncond = output.chunk(2)
                output = uncond + scale * (cond - uncond)
            x = self.diffusion.step(scheduler, step, output, x, self.generators)
            latents.scatter_(1, at, x.cpu())
            report((step + 1) / len(scheduler.timesteps))

    def _image_pass(self, latents: Tensor, at_grid: Tensor, clean: bool) -> None:
        self._pass(self._image_batch(latents, at_grid, clean))
        self.order = [order + 1 for order in self.order]

    def _image_batch(self, latents: Tensor, at_grid: Tensor, clean: bool) -> Batch:
        """One AR step's tokens of each row and its twin, clean or noisy."""
        rows = []
        for at in range(len(self.order)):
            row = self._row(at, at_grid.shape[1])
            cells = at_grid[at % self.rows].numpy()
            values = latents[at % self.rows].numpy()[cells]
            row.image(values, cells, self.config.image.grid[1], stream=0 if clean else 1)
            rows.append(row)
        return collate(rows).to(self.device)

    def _pass(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Clean tokens through the decoder and into the cache."""
        part = self.cache.part(slice(0, len(batch.doc)))
        output = self.decoder(batch, part.mask(batch), part)
        part.keep(batch)
        self.cache.used = part.used
        return output

    def _row(self, at: int, length: int) -> Row:
        row = Row(length, self.config.image.latent_dim, self.config.decoder.label_tokens)
        row.doc_id, row.order_now, row.time_now = 0, self.order[at], self.time[at]
        return row

    def _leave(self, at: int, row: Row) -> None:
        self.order[at], self.time[at] = row.order_now, row.time_now

    def _order(self, sampling: Sampling, generator: torch.Generator) -> Tensor:
        tokens = self.config.image.tokens
        if isinstance(sampling.order, list):
            if sorted(sampling.order) != list(range(tokens)):
                raise UserError(f"order: needs each of the grid indices 0 to {tokens - 1} once")
            return torch.tensor(sampling.order)
        if sampling.order == "raster":
            return torch.arange(tokens)
        return torch.randperm(tokens, generator=generator)

    def _sizes(self, sampling: Sampling, tokens: int) -> list[int]:
        if sampling.ar_sizes is None:
            return even_sizes(tokens, sampling.ar_steps)
        if sum(sampling.ar_sizes) != tokens:
            raise UserError(
                f"ar_sizes: {sampling.ar_sizes} add up to {sum(sampling.ar_sizes)}; "
                f"{tokens} tokens are to be generated"
            )
        return sampling.ar_sizes


def guidance_scale(sampling: Sampling, noise: float, done: float) -> float:
    """Scale w of uncond + w (cond - uncond) at a denoising step (Ho & Salimans 2022).

    Where it is 1 no unconditional pass is needed.

    Args:
        noise: timestep as a share of the noise schedule, 0 clean to 1 noise.
        done: share of the image's tokens that are there after this AR step, 0 to 1.

    Outside [low, high) of the interval it is 1 (Kynkäänniemi et al. 2024); high 1 takes in the
    noise itself.
    """
    low, high = sampling.guidance_interval
    if noise < low or (noise >= high and high < 1):
        return 1.0
    match sampling.guidance_schedule:
        case "linear":
            share = 1 - noise
        case "cosine":
            share = (1 + math.cos(math.pi * noise)) / 2
        case "tokens":
            share = done
        case _:
            share = 1.0
    return 1 + (sampling.guidance - 1) * share
