"""Many calls at one decoder: each answer is the one that the call gets alone."""

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from helpers import STYLES, contents, make_pipeline, make_row, picture, random_document

from mmfusion import ImageSlot, Pipeline, TextSlot, UserError
from mmfusion.cache import Reading
from mmfusion.codecs.text import Tokenizer
from mmfusion.packing import collate, join
from mmfusion.serving.engine import Cancelled, Engine, Stopped

Ask = Callable[[Pipeline], Any]
FEW: dict[str, Any] = {"num_inference_steps": 5}
MANY: dict[str, Any] = {"num_inference_steps": 40, "ar_steps": 16}

# Different kinds, lengths, AR splits, steps, schedulers, guidance, beams; rows of several shapes.
ASKED: list[Ask] = [
    lambda p: p.class_to_image(3, seed=1, **FEW),
    lambda p: p.class_to_image([1, 2, 7], seed=2, ar_steps=4, guidance=2.0, num_inference_steps=3),
    lambda p: p.text_to_image("somebody wrote the digit", seed=3, guidance=3.0, ar_sizes=[1, 9, 6],
                              scheduler="dpmsolver++", **FEW),
    lambda p: p.text_to_image(["a", "x then comes the"], seed=4, guidance=2.0, scheduler="unipc",
                              guidance_interval=(0.2, 0.7), num_inference_steps=9),
    lambda p: p.image_to_text(picture(0), best_of=3, seed=5, temperature=1.0, max_new_tokens=8),
    lambda p: p.edit(picture(0), "right", label=4, seed=6, ar_steps=3, order="raster", **FEW),
    lambda p: p.edit([picture(1), picture(2)], ["top", "center"], prompt="the two", seed=7, **FEW),
    lambda p: p.image_to_text(picture(3), max_new_tokens=9),
    lambda p: p.image_to_text([picture(4), picture(5)], temperature=1.0, seed=8, max_new_tokens=14),
    lambda p: p.image_to_text(picture(6), beams=4, max_new_tokens=7),
    lambda p: p.generate([picture(7), "then", TextSlot(beams=2, max_new_tokens=6), ImageSlot(),
                          "and", TextSlot(max_new_tokens=3)], guidance=2.0, ar_steps=2, seed=9,
                         num_inference_steps=2),
    lambda p: p.log_likelihood([picture(8), "a seven"], ["the seven", "one"]),
]  # fmt: skip


def equal(found: Any, alone: Any) -> None:
    if isinstance(alone, np.ndarray):
        np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-4)
    elif isinstance(alone, list):
        assert len(found) == len(alone)
        for one, other in zip(found, alone, strict=True):
            equal(one, other)
    elif hasattr(alone, "log_probability"):
        assert found.log_probability == pytest.approx(alone.log_probability, abs=1e-3)
    else:
        assert found == alone


@pytest.fixture(scope="module", params=STYLES)
def each(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Pipeline:
    """In double precision: several denoising steps of a random model amplify what is rounded."""
    pipe = make_pipeline(tokenizer, STYLES[request.param], louder=3)
    pipe.decoder.double()
    return pipe


@pytest.fixture(scope="module")
def pipe(tokenizer: Tokenizer) -> Pipeline:
    return make_pipeline(tokenizer)


@pytest.fixture
def engine(pipe: Pipeline) -> Iterator[Engine]:
    with Engine(pipe) as engine:
        yield engine


class Passes(list[tuple[int, bool, bool]]):
    """Of each pass: its guests, and whether it denoises and whether it writes."""

    def __init__(self, pipe: Pipeline) -> None:
        self.more = threading.Condition()
        self.handle = pipe.decoder.register_forward_hook(self.note)

    def note(self, decoder: Any, args: tuple, output: Any) -> None:
        if isinstance(args[1], Reading):
            with self.more:
                noisy = bool((args[0].stream > 0).any())
                self.append((len(args[1].seats), noisy, bool((args[1].sizes == 1).any())))
                self.more.notify_all()

    def wait(self, count: int) -> None:
        with self.more:
            assert self.more.wait_for(lambda: len(self) >= count, 60)


def test_answers_do_not_depend_on_who_shares_their_passes(each: Pipeline) -> None:
    """Two callers of each kind, who join at random passes, twice over."""
    alone = [ask(each) for ask in ASKED]
    rng = np.random.default_rng(0)
    with Engine(each) as engine, ThreadPoolExecutor(2 * len(ASKED)) as threads:
        for _ in range(2):
            passes = Passes(each)

            def call(number: int, after: int, passes: Passes = passes) -> Any:
                passes.wait(after)
                return ASKED[number](engine.pipeline)

            who = rng.permutation([*range(len(ASKED))] * 2).tolist()
            late = [0, 0, 0, *rng.integers(1, 8, len(who) - 3).tolist()]
            found = list(threads.map(call, who, late, timeout=120))
            passes.handle.remove()
            for number, answer in zip(who, found, strict=True):
                equal(answer, alone[number])
            assert max(guests for guests, *_ in passes) > 6
            assert any(noisy and writes for _, noisy, writes in passes)
    gc.collect()  # the engine's thread has ended: it may hold its last guests until then
    engine.pool._merge()
    assert engine.pool.free == [(0, engine.pool.kv.shape[2])], "places were not given back"


def test_joined_batches_hold_what_each_holds() -> None:
    rng = np.random.default_rng(0)
    rows = [[[random_document(rng)] for _ in range(count)] for count in (1, 3, 2)]
    batches = [collate([make_row(400, *documents) for documents in some]) for some in rows]
    joined = join(batches)
    assert contents(joined) == [each for batch in batches for each in contents(batch)]
    assert joined.timestep[joined.level].tolist() == [
        value for batch in batches for value in batch.timestep[batch.level].tolist()
    ]
    assert len(joined.doc.unique()) == sum(len(batch.doc.unique()) for batch in batches)
    noisy, clean = (
        torch.cat([batch.latent.tensor_split([len(batch.level)])[part] for batch in batches])
        for part in (0, 1)
    )
    assert torch.equal(joined.latent, torch.cat([noisy, clean]))
    for name in ("noisy_at", "predict_at"):
        starts = np.cumsum([0, *(len(batch.doc) for batch in batches)])
        parts = [getattr(b, name) + start for b, start in zip(batches, starts, strict=False)]
        assert torch.equal(getattr(joined, name), torch.cat(parts))


def beside(engine: Engine, pipe: Pipeline, odd: Callable[[], None]) -> None:
    """Something odd happens while others are answered, who do not notice."""
    asked = [ASKED[number] for number in (0, 2, 8, 9)]
    alone = [ask(pipe) for ask in asked]
    with ThreadPoolExecutor(len(asked) + 1) as threads:
        first = threads.submit(odd)
        for ask, expected in zip(asked, alone, strict=True):
            equal(threads.submit(ask, engine.pipeline).result(60), expected)
        found = list(threads.map(lambda ask: ask(engine.pipeline), asked, timeout=60))
        for answer, expected in zip(found, alone, strict=True):
            equal(answer, expected)
        first.result(60)


class Mishap(Exception):
    pass


def test_a_callback_that_fails_ends_its_own_call(engine: Engine, pipe: Pipeline) -> None:
    seen: list[str] = []

    def fail(*_: Any) -> None:
        seen.append(threading.current_thread().name)
        if len(seen) == 2:
            raise Mishap

    def odd() -> None:
        with pytest.raises(Mishap):
            engine.pipeline.class_to_image(1, on_picture=fail, **MANY)
        assert seen == [threading.current_thread().name] * 2, "not made by who called"

    beside(engine, pipe, odd)


def test_a_mistake_found_between_passes_is_its_callers(engine: Engine, pipe: Pipeline) -> None:
    def odd() -> None:
        for _ in range(5):
            with pytest.raises(UserError, match="order: needs each"):
                engine.pipeline.class_to_image(1, order=[0] * 16)
        with pytest.raises(UserError, match="not finite"):
            engine.pipeline.class_to_image(1, guidance=1e38, num_inference_steps=9, ar_steps=2)

    beside(engine, pipe, odd)


def test_a_pass_that_fails_is_its_guests(engine: Engine, pipe: Pipeline) -> None:
    def fail(decoder: Any, args: tuple) -> None:
        if (args[0].label_id // 2 == 9).any():
            raise Mishap

    def odd() -> None:
        for _ in range(5):
            with pytest.raises(Mishap):
                engine.pipeline.class_to_image(9, **FEW)

    handle = pipe.decoder.register_forward_pre_hook(fail)
    beside(engine, pipe, odd)
    handle.remove()


def test_a_call_is_cancelled_between_passes(engine: Engine, pipe: Pipeline) -> None:
    def odd() -> None:
        cancel, shares = threading.Event(), list[float]()

        def told(item: int, share: float, picture: Any) -> None:
            shares.append(share)
            cancel.set()

        with engine.request(cancel) as own, pytest.raises(Cancelled):
            own.class_to_image(1, on_picture=told, **MANY)
        assert shares
        assert shares[-1] < 0.5

    beside(engine, pipe, odd)


def test_stop_finishes_what_was_accepted_and_refuses_what_is_new(pipe: Pipeline) -> None:
    engine, begun, stopping = Engine(pipe), threading.Event(), threading.Event()
    several: dict[str, Any] = {"best_of": 2, "batch_size": 1, "temperature": 1.0}

    def long() -> Any:
        with engine.request() as own:
            begun.set()
            assert stopping.wait(60)
            return own.image_to_text(picture(0), **several)

    with ThreadPoolExecutor(2) as threads:
        accepted = threads.submit(long)
        assert begun.wait(60)
        ended = threads.submit(engine.stop)
        while not engine._stopping:
            pass
        with pytest.raises(Stopped):
            engine.pipeline.class_to_image(1)
        with pytest.raises(Stopped), engine.request():
            pass
        stopping.set()
        equal(accepted.result(60), pipe.image_to_text(picture(0), **several))
        ended.result(60)
    assert not engine._thread.is_alive()


def test_stop_gives_up_what_takes_too_long(pipe: Pipeline) -> None:
    engine, drawn = Engine(pipe), threading.Event()

    def told(*_: Any) -> None:
        drawn.set()

    def draw() -> None:
        with pytest.raises(Cancelled):
            engine.pipeline.class_to_image(1, on_picture=told, **MANY)

    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(draw)
        assert drawn.wait(60)
        engine.stop(0.01)
        call.result(60)
