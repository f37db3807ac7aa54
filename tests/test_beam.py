"""Beam search against exhaustive search, and against itself written without cache or tensors."""

from copy import copy
from itertools import product
from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import batch_of, begun, forward, picture, shouting
from material import run

from mmfusion import ImageSlot, Pipeline, TextSlot, UserError
from mmfusion.cache import Reading
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Sampling
from mmfusion.generation import session as session_module
from mmfusion.generation import stepper
from mmfusion.generation.decoding import Beams, begin_choice
from mmfusion.generation.session import Session
from mmfusion.sequence import Document, Text

WORDS = 4
FAST: dict[str, Any] = {"num_inference_steps": 4, "scheduler": "ddim"}
Said = tuple[int, ...]


@pytest.fixture(scope="module")
def pipe(ending: Pipeline) -> Pipeline:
    return ending


@pytest.fixture(scope="module")
def terse(pipe: Pipeline) -> Pipeline:
    """The same model, which knows four words."""
    tokenizer = copy(pipe.tokenizer)
    assert tokenizer is not None
    ends = {tokenizer.end_id, tokenizer.image_id}
    words = [i for i in range(len(tokenizer)) if i not in {*tokenizer.unspeakable, *ends}][-WORDS:]
    tokenizer.unspeakable = sorted({*range(len(tokenizer))} - {*words, *ends})
    return Pipeline(pipe.config, pipe.decoder, tokenizer)


@torch.no_grad()
def next_log_p(pipe: Pipeline, prefix: Document, texts: list[Said]) -> torch.Tensor:
    """log p of each id after every text, by full forwards: (texts, V)."""
    assert pipe.tokenizer is not None
    answer = pipe.tokenizer.answer_id
    rows = [[[*prefix, Text([answer, *ids, 0], loss=True)]] for ids in texts]
    logits = forward(pipe.decoder, batch_of(40, *rows))[1]
    last = torch.tensor([len(ids) + 1 for ids in texts]).cumsum(0) - 1
    return logits[last].double().log_softmax(-1)


def ends_of(pipe: Pipeline) -> set[int]:
    assert pipe.tokenizer is not None
    return {pipe.tokenizer.end_id, pipe.tokenizer.image_id}


def spoken(pipe: Pipeline) -> list[int]:
    assert pipe.tokenizer is not None
    return sorted({*range(len(pipe.tokenizer))} - {*pipe.tokenizer.unspeakable})


def plain_beam(
    pipe: Pipeline, prefix: Document, beams: int, penalty: float, most: int
) -> tuple[Said, float]:
    """The search as its docstring says it, over lists: ids with their end, and their score."""
    ends = ends_of(pipe)
    held: list[tuple[Said, float]] = [((), 0.0)]

    def score(of: tuple[Said, float]) -> float:
        return of[1] / len(of[0]) ** penalty

    for _ in range(most):
        ended = [h for h in held if h[0] and h[0][-1] in ends]
        live = [h for h in held if h not in ended]
        if not live:
            break
        table = next_log_p(pipe, prefix, [ids for ids, _ in live])
        more: list[tuple[Said, float]] = [
            ((*ids, token), log_p + float(table[n, token]))
            for n, (ids, log_p) in enumerate(live)
            for token in spoken(pipe)
        ]
        held = sorted([*ended, *more], key=score, reverse=True)[:beams]
        best = max((score(h) for h in held if h[0][-1] in ends), default=-torch.inf)
        held = [h for h in held if h[0][-1] in ends or h[1] / most**penalty > best]
    found = max(held, key=score)
    return found[0], score(found)


def searched(pipe: Pipeline, prefixes: list[Any], **options: Any) -> list[list[int]]:
    generators = [torch.Generator()] * len(prefixes)
    session = Session(pipe.decoder, pipe.config, pipe.tokenizer, 60, generators, guided=False)
    stepper.run(pipe.decoder, session.reading(prefixes))
    return stepper.run(pipe.decoder, session.writing(Sampling(**options), False, False, None))


# What is found


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 3.0])
def test_as_many_beams_as_texts_search_exhaustively(terse: Pipeline, penalty: float) -> None:
    most, ends = 3, ends_of(terse)
    words = [i for i in spoken(terse) if i not in ends]
    assert len(words) == WORDS
    pictures = [terse.read.picture(picture(i)) for i in range(6)]
    found = searched(terse, pictures, beams=110, max_new_tokens=most, length_penalty=penalty)
    for given, ids in zip(pictures, found, strict=True):
        started = [said for n in range(most) for said in product(words, repeat=n)]
        table = dict(zip(started, next_log_p(terse, [given], started), strict=True))

        def log_p(said: Said, table: dict = table) -> float:
            return sum(float(table[said[:n]][token]) for n, token in enumerate(said))

        whole = [(*said, end) for said in started for end in ends]
        whole += product(words, repeat=most)  # cut off
        assert len(whole) == 2 * (1 + 4 + 16) + 64 < 110
        scores = {said: log_p(said) / len(said) ** penalty for said in whole}
        best = max(scores, key=scores.__getitem__)
        assert ids == [i for i in best if i not in ends]


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("beams", [2, 3, 5])
def test_few_beams_are_the_search_by_its_words(pipe: Pipeline, beams: int, penalty: float) -> None:
    """Also what the cache holds after beams have changed places: every score depends on it."""
    pictures = [pipe.read.picture(picture(i)) for i in range(6)]
    options = {"beams": beams, "max_new_tokens": 6, "length_penalty": penalty}
    found = searched(pipe, pictures, **options)
    expected = [plain_beam(pipe, [given], beams, penalty, 6)[0] for given in pictures]
    assert found == [[i for i in said if i not in ends_of(pipe)] for said in expected]
    assert len({len(ids) for ids in found}) > 1, "all end alike: a useless test"


def test_beams_find_at_least_what_greedy_finds(pipe: Pipeline) -> None:
    """Not promised of every text by a search with few beams, but of these."""
    for i in range(6):
        given = pipe.read.picture(picture(i))
        one, many = (plain_beam(pipe, [given], beams, 1.0, 6) for beams in (1, 5))
        alone = searched(pipe, [given], max_new_tokens=6)[0]
        assert [t for t in one[0] if t not in ends_of(pipe)] == alone  # one beam is greedy
        assert many[1] > one[1] - 1e-6  # another batch, other roundings


def test_greedy_text_equals_argmax_of_full_forwards(pipe: Pipeline, tokenizer: Tokenizer) -> None:
    """Of pictures side by side, whose texts end at different places."""
    pictures = [picture(i) for i in range(12)]
    said = [plain_beam(pipe, [pipe.read.picture(p)], 1, 1.0, 10)[0] for p in pictures]
    expected = [[i for i in ids if i not in ends_of(pipe)] for ids in said]
    assert len({len(ids) for ids in expected}) > 2, "all end alike: a useless test"
    answers = pipe.image_to_text(pictures, max_new_tokens=10)
    assert answers == [tokenizer.decode(ids).strip() for ids in expected]


def test_one_beam_is_greedy_decoding(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [picture(i) for i in range(12)]
    greedy = pipe.image_to_text(pictures, max_new_tokens=10)
    assert pipe.image_to_text(pictures, max_new_tokens=10, beams=1) == greedy

    def beam(sampling: Sampling, tokenizer: Tokenizer, generators: list, *rest: Any) -> Beams:
        return Beams(sampling, tokenizer, len(generators), *rest)

    monkeypatch.setattr(session_module, "begin_choice", beam)
    assert pipe.image_to_text(pictures, max_new_tokens=10) == greedy
    assert len(set(map(len, greedy))) > 2, "all end alike: a useless test"


# The formula, by hand

HAND = SimpleNamespace(end_id=2, image_id=3, unspeakable=[4])
NEVER = 1e-30


def by_hand(penalty: float, turns: list[list[list[float]]], most: int = 3) -> list[list[int]]:
    """Answers where the probabilities after each beam are given; and the turns it took."""
    sampling = Sampling(beams=2, length_penalty=penalty, max_new_tokens=most)
    choice = begin_choice(sampling, HAND, [torch.Generator()], torch.device("cpu"), None)  # type: ignore[arg-type]
    fed: list[Any] = []
    for turn in turns:
        fed = choice.extend(torch.tensor(turn).log())
        if not any(token is not None for token in fed):
            break
    return choice.answers()


FIRST = [[0.55, NEVER, 0.4, NEVER, 0.05]] * 2
SECOND = [[0.3, NEVER, 0.6, NEVER, 0.1], [0.3, NEVER, 0.6, NEVER, 0.1]]


@pytest.mark.parametrize(
    ("penalty", "answer", "scores"),
    [
        (0.0, [], (log(0.4), log(0.55 * 0.6))),
        (0.1, [], (log(0.4), log(0.55 * 0.6) / 2**0.1)),
        (1.0, [0], (log(0.4), log(0.55 * 0.6) / 2)),
        (2.0, [0], (log(0.4), log(0.55 * 0.6) / 4)),
    ],
)
def test_score_is_log_p_over_length_to_the_penalty(
    penalty: float, answer: list[int], scores: tuple[float, float]
) -> None:
    """As transformers' BeamHypotheses: the end counts as a token; higher is better."""
    assert (scores[1] > scores[0]) == bool(answer)
    assert by_hand(penalty, [FIRST, SECOND], most=2) == [answer]


def test_a_search_ends_when_nothing_alive_can_win() -> None:
    def turns(penalty: float, end: float, most: int) -> bool:
        sampling = Sampling(beams=2, length_penalty=penalty, max_new_tokens=most)
        choice = begin_choice(sampling, HAND, [torch.Generator()], torch.device("cpu"), None)  # type: ignore[arg-type]
        table = torch.tensor([[1 - end, NEVER, end, NEVER, NEVER]] * 2)
        return any(token is not None for token in choice.extend(table.log()))

    # The live one, of probability 1 - end, could at best keep it until it is cut off.
    assert not turns(0.0, 0.51, most=100)
    assert turns(0.0, 0.49, most=100)
    assert turns(1.0, 0.9, most=100)  # log 0.1 / 100 is above log 0.9
    assert not turns(1.0, 0.9, most=2)  # log 0.1 / 2 is below it
    assert turns(2.0, 0.9, most=5)  # log 0.1 / 25 is above it
    assert not turns(2.0, 0.9, most=4)  # log 0.1 / 16 is below it


def test_what_no_answer_holds_is_never_said_but_keeps_its_share(
    pipe: Pipeline, tokenizer: Tokenizer
) -> None:
    with shouting(pipe, tokenizer.unspeakable, 1e2):
        search = begun(pipe, range(6)).writing(
            Sampling(beams=3, max_new_tokens=6), False, False, None
        )
        found = stepper.run(pipe.decoder, search)
    assert sum(map(len, found)) > 6
    assert not {i for ids in found for i in ids} & {*tokenizer.unspeakable}


# Rows, cache and callbacks


def test_the_prompt_is_read_once_a_row(pipe: Pipeline) -> None:
    readings: list[Reading] = []
    handle = pipe.decoder.register_forward_hook(lambda m, args, out: readings.append(args[1]))
    pipe.image_to_text([picture(0), picture(1)], beams=4, max_new_tokens=5)
    handle.remove()
    sizes = [reading.sizes.tolist() for reading in readings]
    assert sizes[:2] == [[16, 16], [1, 1]]  # the pictures, <answer>
    assert len(sizes[2]) == 8
    assert all(later == [1] * len(later) and len(later) <= 8 for later in sizes[2:])
    assert len(sizes) <= 2 + 4


def test_an_answer_does_not_depend_on_its_batch(pipe: Pipeline) -> None:
    prompts: list[Any] = [
        [picture(i), words, TextSlot(), ImageSlot()]
        for i, words in enumerate(["then comes", "x", "somebody wrote the digit", "a", "the"])
    ]
    options = {"beams": 3, "max_new_tokens": 9, "guidance": 2.0, "ar_steps": 2, **FAST}
    together = pipe.generate(prompts, **options)
    assert len({len(filled[2]) for filled in together}) > 2, "all end alike: a useless test"
    for i, prompt in enumerate(prompts):
        alone = pipe.generate(prompt, seed=i, **options)
        assert together[i][2] == alone[2]
        assert together[i][3].tobytes() == alone[3].tobytes()


def test_what_follows_reads_the_chosen_answer_alone(pipe: Pipeline, tokenizer: Tokenizer) -> None:
    """The picture after it is the one that the same words, given, are followed by; guided too."""
    drawn = Sampling(guidance=2.0, ar_steps=2, **FAST)
    search, told = (begun(pipe, range(4), guided=True) for _ in range(2))
    beams = Sampling(beams=4, max_new_tokens=6)
    ids = stepper.run(pipe.decoder, search.writing(beams, True, True, None))
    assert len({len(answer) for answer in ids}) > 1, "all end alike: a useless test"
    answer, image = tokenizer.answer_id, tokenizer.image_id
    given = [Text([answer, *said, image]) for said in ids]
    stepper.run(pipe.decoder, told.reading(given))
    np.testing.assert_array_equal((search.order, search.time), (told.order, told.time))
    for session in (search, told):
        kept = [16 + 2 + len(said) for said in ids]
        assert session.cache.used.tolist() == kept + [17] * 4  # the others: picture and <answer>
    found, expected = (
        torch.from_numpy(stepper.run(pipe.decoder, session.drawing(drawn, False)))
        for session in (search, told)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_longest_answer_fits_its_room(pipe: Pipeline, tokenizer: Tokenizer) -> None:
    """Prompts that fill the cache to the last token, with the answer cut off."""
    session = begun(pipe, range(2), room=16 + 7 + 2)
    with shouting(pipe, [tokenizer.end_id, tokenizer.image_id], -1e4):
        beams = Sampling(beams=3, max_new_tokens=7)
        ids = stepper.run(pipe.decoder, session.writing(beams, False, True, None))
    assert [len(answer) for answer in ids] == [7, 7]
    assert session.cache.used.tolist() == [session.cache.length] * 2


def test_callbacks_are_told_of_the_chosen_answer(pipe: Pipeline) -> None:
    told: list[tuple[int, str]] = []
    pictures = [picture(i) for i in range(4)]
    answers = pipe.image_to_text(
        pictures, beams=3, max_new_tokens=6, on_token=lambda *args: told.append(args)
    )
    for item, answer in enumerate(answers):
        texts = [text for i, text in told if i == item]
        assert (texts[-1] if texts else "") == answer
        assert all(answer.startswith(text) for text in texts)


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 4, "temperature": 0.5}, "beams: 4 at temperature 0.5.*temperature 0"),
        ({"beams": 0}, "beams"),
        ({"beams": 2.5}, "beams"),
        ({"length_penalty": -1.0}, "length_penalty"),
        ({"length_penalty": float("nan")}, "length_penalty"),
    ],
)
def test_mistakes_are_named(pipe: Pipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipe.image_to_text(picture(0), **options)


def test_caption_with_beams(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    picture(0).save(tmp_path / "a.png")
    common = ("caption", tmp_path / "a.png", "--model", model_folder)
    short = ("--set", "max_new_tokens=6", "--set")
    pipeline = Pipeline.from_pretrained(model_folder, "cpu")
    capsys.readouterr()
    assert run(*common, *short, "beams=4") == 0
    assert capsys.readouterr().out.strip() == pipeline.image_to_text(
        picture(0), beams=4, max_new_tokens=6
    )
    assert run(*common, *short, "beams=4", "--set", "temperature=1.0") == 2
    assert "beam search draws nothing" in capsys.readouterr().err
