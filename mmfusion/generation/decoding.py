"""How an answer's tokens are chosen: greedily, by nucleus sampling, or by beam search.

All three are one loop of the session. Each turn a choice reads the logits of the next token, says
which token every hypothesis goes on with, and, where there are several a row, which earlier one it
continues. Probabilities are the model's own over its whole vocabulary; ids that no answer holds
are left out afterwards, so a score is the likelihood of what is said.

Shapes: R rows, K beams of each, V ids in the vocabulary.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Sampling

OnToken = Callable[[int, int], None]
LEAST = 1e-6  # temperature and top_p: below it the most likely token is as good as certain


class Choice(Protocol):
    """The hypotheses of an answer in every row.

    Attributes:
        origin: (hypotheses,) which hypothesis of the turn before each one continues; None where
            each continues itself.
    """

    origin: Tensor | None

    def extend(self, logits: Tensor) -> list[int | None]:
        """The token that each hypothesis goes on with, given (hypotheses, V); None if it ended."""

    def answers(self) -> list[list[int]]:
        """The ids of each row's answer, without what ended it."""


class Single:
    """One hypothesis a row: the most likely token, or a draw (Holtzman et al. 2020)."""

    origin: Tensor | None = None

    def __init__(
        self,
        sampling: Sampling,
        tokenizer: Tokenizer,
        generators: list[torch.Generator],
        on_token: OnToken | None,
    ) -> None:
        self.sampling, self.generators, self.callback = sampling, generators, on_token
        self.unspeakable, self.ends = tokenizer.unspeakable, {tokenizer.end_id, tokenizer.image_id}
        self.said: list[list[int]] = [[] for _ in generators]
        self.alive = [True] * len(generators)

    def extend(self, logits: Tensor) -> list[int | None]:
        feed: list[int | None] = [None] * len(self.said)
        for row, token in enumerate(self._choose(logits.cpu())):
            self.alive[row] &= token not in self.ends
            if self.alive[row]:
                self.said[row].append(token)
                feed[row] = token
                if self.callback:
                    self.callback(row, token)
        return feed

    def answers(self) -> list[list[int]]:
        return self.said

    def _choose(self, logits: Tensor) -> list[int]:
        """The next id of each row.

        A row that has ended draws nothing: its generator must not depend on the others' lengths.
        """
        logits[:, self.unspeakable] = -torch.inf
        if self.sampling.temperature == 0:
            return logits.argmax(-1).tolist()
        # Beyond these, values overflow fp32, or are 0 in it.
        temperature = min(max(self.sampling.temperature, LEAST), 1 / LEAST)
        top_p = max(self.sampling.top_p, LEAST)
        share, place = (logits / temperature).softmax(-1).sort(-1, descending=True)
        share = share.masked_fill(share.cumsum(-1) - share >= top_p, 0)
        drawn = [
            int(torch.multinomial(p, 1, generator=g)) if drawing else 0
            for p, g, drawing in zip(share, self.generators, self.alive, strict=True)
        ]
        return place[torch.arange(len(drawn)), torch.tensor(drawn)].tolist()


class Beams:
    """K hypotheses a row; each turn the K best of all their continuations stay.

    A hypothesis has the score log p / n ** length_penalty, its n tokens counted with its end. One
    that has ended stays as it is and competes with the others; one that reaches `max_new_tokens`
    is cut off there and counts as it stands. A live one that could not overtake its row's best
    ended one, even if all its further tokens were certain, is dropped; with none alive a row is
    done. One beam alone would be greedy decoding; as many as there are texts, exact search.
    """

    def __init__(
        self,
        sampling: Sampling,
        tokenizer: Tokenizer,
        rows: int,
        device: torch.device,
        on_token: OnToken | None,
    ) -> None:
        self.sampling, self.callback = sampling, on_token
        self.unspeakable, self.end = tokenizer.unspeakable, tokenizer.end_id
        self.ends = torch.tensor([tokenizer.end_id, tokenizer.image_id], device=device)
        shape = (rows, sampling.beams)
        self.ids = torch.zeros((*shape, 0), dtype=torch.long, device=device)
        self.length = torch.zeros(shape, dtype=torch.long, device=device)
        self.ended = torch.zeros(shape, dtype=torch.bool, device=device)
        # All begin alike: the first turn must choose among the continuations of one.
        self.log_p = torch.full(shape, -torch.inf, device=device)
        self.log_p[:, 0] = 0
        self.origin: Tensor | None = None

    def extend(self, logits: Tensor) -> list[int | None]:
        rows, beams = self.log_p.shape
        next_log_p = logits.log_softmax(-1).view(rows, beams, -1)
        next_log_p[..., self.unspeakable] = -torch.inf
        # What has ended has one continuation: itself, in the place of the end symbol.
        next_log_p.masked_fill_(self.ended[..., None], -torch.inf)
        next_log_p[..., self.end].masked_fill_(self.ended, 0)
        log_p = self.log_p[..., None] + next_log_p
        length = self.length + ~self.ended
        best = self._score(log_p, length[..., None]).flatten(1).topk(beams).indices

        parent, token = best // log_p.shape[2], best % log_p.shape[2]
        ids = self.ids.gather(1, parent[..., None].expand(-1, -1, self.ids.shape[2]))
        self.ids = torch.cat([ids, token[..., None]], -1)
        self.log_p, self.length = log_p.flatten(1).gather(1, best), length.gather(1, parent)
        self.ended = self.ended.gather(1, parent) | torch.isin(token, self.ends)
        self._drop_hopeless()
        first = torch.arange(rows, device=token.device)[:, None] * beams
        self.origin = (first + parent).flatten()
        pairs = zip(token.flatten().tolist(), self.ended.flatten().tolist(), strict=True)
        return [None if ended else token for token, ended in pairs]

    def answers(self) -> list[list[int]]:
        best = self._score(self.log_p, self.length).argmax(1).tolist()
        ends = set(self.ends.tolist())
        answers = [self.ids[row, k, : self.length[row, k]].tolist() for row, k in enumerate(best)]
        answers = [ids[:-1] if ids[-1] in ends else ids for ids in answers]
        for row, ids in enumerate(answers):
            for token in ids:
                if self.callback:
                    self.callback(row, token)
        return answers

    def _drop_hopeless(self) -> None:
        """End live hypotheses whose score can only stay below their row's best ended one.

        log p never rises, and is divided by the most at the greatest length.
        """
        ended = self._score(self.log_p, self.length).masked_fill(~self.ended, -torch.inf)
        longest = torch.full_like(self.length, self.sampling.max_new_tokens)
        bound = self._score(self.log_p, longest)
        hopeless = ~self.ended & (bound <= ended.amax(1, keepdim=True))
        self.log_p.masked_fill_(hopeless, -torch.inf)
        self.ended |= hopeless

    def _score(self, log_p: Tensor, length: Tensor) -> Tensor:
        return log_p / length**self.sampling.length_penalty


def begin_choice(
    sampling: Sampling,
    tokenizer: Tokenizer,
    generators: list[torch.Generator],
    device: torch.device,
    on_token: OnToken | None,
) -> Choice:
    """What `sampling` asks for, in as many rows as there are generators.

    `on_token` is told each row and token as soon as it stays: at once, or by beams at the end.
    """
    if sampling.beams > 1:
        return Beams(sampling, tokenizer, len(generators), device, on_token)
    return Single(sampling, tokenizer, generators, on_token)
