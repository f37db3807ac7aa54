"""Generation against the same model without a cache, and every promise of the public API.

The judge is `plain`: rows as in training, run whole under the dense mask at every denoising step.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import (
    COLUMNS,
    DIM,
    LLAMA,
    PAPER,
    STYLES,
    TOKENS,
    RawCodec,
    batch_of,
    begun,
    contents,
    forward,
    image,
    make_pipeline,
    make_row,
    picture,
    shouting,
)
from PIL import Image as PILImage

from mmfusion import ImageSlot, Pipeline, TextSlot, UserError
from mmfusion.cache import Cache, Pool, Reading, Seat
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Sampling
from mmfusion.decoder import Decoder
from mmfusion.diffusion import Diffusion
from mmfusion.generation.edit_masks import REGIONS, regenerated
from mmfusion.generation.session import Session
from mmfusion.generation.stepper import Passes, run
from mmfusion.packing import Batch, collate
from mmfusion.sequence import Document, Image, Label, Noise, Row, Text, null_form
from mmfusion.split import Split, cut

SCHEDULERS = ("ddpm", "ddim", "dpmsolver++", "unipc")
FAST: dict[str, Any] = {"num_inference_steps": 4, "scheduler": "ddim"}
ONES = np.ones((1, TOKENS))
ORDER = [5, 0, 3, 12, 9, 7, 1, 15, 2, 4, 8, 6, 11, 14, 10, 13]
SPLITS = {"one": [16], "even": [6, 5, 5], "uneven": [1, 9, 2, 4]}


@pytest.fixture(scope="module", params=STYLES)
def each(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Pipeline:
    """A pipeline of each block style, which answers with raw latents."""
    return make_pipeline(tokenizer, STYLES[request.param])


@pytest.fixture(scope="module")
def pipe(tokenizer: Tokenizer) -> Pipeline:
    return make_pipeline(tokenizer)


@pytest.fixture(scope="module")
def shown(pipe: Pipeline) -> Pipeline:
    """The same model, answering with pictures."""
    return Pipeline(pipe.config, pipe.decoder, pipe.tokenizer)


class Call(NamedTuple):
    """A pass over a cache, and how many tokens its rows held before it."""

    batch: Batch
    reading: Reading
    used: np.ndarray

    @property
    def seat(self) -> Seat:
        (seat,) = self.reading.seats
        return seat

    @property
    def noisy(self) -> bool:
        return bool((self.batch.stream > 0).any())

    @property
    def rows(self) -> int:
        return len(self.seat.rows)


class Calls(list[Call]):
    """What a session called the decoder with; the judge's calls, without a cache, are left out."""

    def __call__(self, module: Decoder, args: tuple, output: Any) -> None:
        if isinstance(args[1], Reading):
            self.append(Call(*args, args[1].seats[0].cache.used.copy()))

    def of(self, noisy: bool) -> list[Call]:
        return [call for call in self if call.noisy == noisy]


@pytest.fixture
def calls(pipe: Pipeline) -> Iterator[Calls]:
    spy = Calls()
    handle = pipe.decoder.register_forward_hook(spy)
    yield spy
    handle.remove()


def split_of(sizes: list[int]) -> Split:
    return cut(np.array(ORDER), sizes)


@torch.no_grad()
def training_output(
    decoder: Decoder,
    prefix: Document,
    split: Split,
    clean: np.ndarray,
    noisy: np.ndarray,
    timestep: float,
) -> dict[int, torch.Tensor]:
    """What each grid cell's noisy token predicts in a training row, run whole."""
    noise = Noise(noisy[None], noisy[None], np.full((1, TOKENS), timestep), ONES, 2.0)
    output, _ = forward(decoder, batch_of(120, [[*prefix, Image(clean, COLUMNS, split, noise)]]))
    return dict(zip(np.concatenate(split).tolist(), output[-TOKENS:], strict=True))


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda noise, done: 1,
    "linear": lambda noise, done: 1 - noise,
    "cosine": lambda noise, done: np.cos(np.pi * noise / 2) ** 2,
    "tokens": lambda noise, done: done,
}


def plain(
    pipe: Pipeline,
    prefix: Document,
    options: dict[str, Any],
    seed: int = 0,
    kept: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """A picture by the definition: training rows, no cache, one AR step after another.

    What the row holds besides (other steps' noisy tokens, later steps' clean ones) is rubbish.
    """
    sampling = Sampling(**options)
    low, high = sampling.guidance_interval
    flow = pipe.config.diffusion.path == "flow"
    scheduler = sampling.scheduler or ("euler" if flow else "ddpm")
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(TOKENS, DIM, generator=generator)
    order, done, sizes = np.array(sampling.order), 0, sampling.ar_sizes or [TOKENS]
    split = []
    if kept is not None:
        given, keep = kept
        latents[keep] = torch.from_numpy(given)[keep]
        split, order, done = [np.flatnonzero(keep)], order[~keep[order]], 1
    split += cut(order, sizes)
    rubbish = np.random.default_rng(0)

    def predicted(before: Document, group: np.ndarray, x: torch.Tensor, t: float) -> torch.Tensor:
        noisy = rubbish.standard_normal((TOKENS, DIM), dtype=np.float32)
        noisy[group] = x
        made = training_output(pipe.decoder, before, split, latents.numpy(), noisy, t)
        return torch.stack([made[int(cell)] for cell in group])

    there = sum(len(group) for group in split[:done])
    for group in split[done:]:
        steps: Any = Diffusion(pipe.config.diffusion).scheduler(
            scheduler, sampling.num_inference_steps
        )
        x, there = latents[group], there + len(group)
        for number, own in enumerate(steps.timesteps.tolist()):
            t = float(steps.sigmas[number]) * 1000 if flow else own
            output = predicted(prefix, group, x, t)
            rise = SCHEDULES[sampling.guidance_schedule](t / 1000, there / TOKENS)
            inside = low <= t / 1000 and (t / 1000 < high or high == 1)
            if inside and sampling.guidance != 1:
                without = predicted(null_form(prefix), group, x, t)
                output = without + (1 + (sampling.guidance - 1) * rise) * (output - without)
            if flow and pipe.config.diffusion.prediction == "sample":
                output = (x - output) / (t / 1000)  # from noise to the clean latents, per time
            draws = {"generator": generator} if scheduler == "ddpm" else {}
            x = steps.step(output, own, x, **draws).prev_sample
        latents[group] = x
    return latents.numpy()


def close(a: Any, b: Any, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


# The cache


@torch.no_grad()
def test_cached_passes_equal_one_full_forward(each: Pipeline) -> None:
    """Clean pass by pass, then the noisy step over the cache: as the row as a whole.

    Two rows of different lengths stand side by side.
    """
    rng = np.random.default_rng(0)
    decoder = each.decoder
    texts = [Text([5, 6, 7, 8], loss=True), Text([9, 10], loss=True)]
    given = [[Label(3), Image(image(rng, False).latents, COLUMNS), text] for text in texts]
    targets = [image(rng, True, steps=3) for _ in texts]
    targets[1] = Image(targets[1].latents, COLUMNS, targets[0].split, targets[1].noise)
    split = targets[0].split
    rows = [[[*g, target]] for g, target in zip(given, targets, strict=True)]
    full, logits = forward(decoder, batch_of(80, *rows))
    full = full.unflatten(0, (2, TOKENS))

    cache = Cache(Pool(decoder.config), 2, 80)
    clocks = [(0, 0), (0, 0)]

    def open_rows() -> list[Row]:
        made = []
        for order, time in clocks:
            row = make_row(TOKENS)
            row.doc_id, row.order_now, row.time_now = 0, order, time
            made.append(row)
        return made

    def run(made: list[Row], keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
        batch = collate(made)
        reading = Reading(batch, Seat(cache, [0, 1]))
        output = decoder(batch, reading)
        if keep:
            cache.keep([0, 1], reading.sizes)
        return output

    for segments in zip(*given, strict=True):
        made = open_rows()
        for row, segment in zip(made, segments, strict=True):
            row.segment(segment)
        clocks = [(row.order_now, row.time_now) for row in made]
        _, spoken = run(made, keep=True)
    close(spoken, logits, 1e-5)
    start = 0
    for group in split:
        noisy, clean = open_rows(), open_rows()
        for row, target in zip(noisy, targets, strict=True):
            at = row.image(target.noise.latents[0, group], group, COLUMNS, stream=1)
            row.timestep[at] = target.noise.timesteps[0, group]
        output, _ = run(noisy, keep=False)
        close(output, full[:, start : start + len(group)].flatten(0, 1), 1e-5)
        for row, target in zip(clean, targets, strict=True):
            row.image(target.latents[group], group, COLUMNS)
        run(clean, keep=True)
        clocks = [(order + 1, time) for order, time in clocks]
        start += len(group)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_cache_never_keeps_a_noisy_token(pipe: Pipeline, calls: Calls, guidance: float) -> None:
    pipe.generate(
        ["a three", ImageSlot(), TextSlot(max_new_tokens=3), ImageSlot()],
        guidance=guidance,
        ar_steps=3,
        **FAST,
    )
    assert len(calls) > 20
    for call, following in pairwise(calls):
        kept = np.zeros_like(call.used)
        if not call.noisy:
            kept[call.seat.rows] = np.bincount(call.batch.doc)
        assert following.seat.cache is call.seat.cache
        assert (following.used - call.used).tolist() == kept.tolist()
        assert (following.used <= call.seat.cache.length).all()


# Pictures


def both(pipe: Pipeline, task: str, **given: Any) -> tuple[np.ndarray, np.ndarray]:
    """A picture of a task, and the same one by the definition."""
    options = {**FAST, "order": ORDER, "ar_sizes": [10, 6], **given}
    words = "a handwritten seven"
    if task == "label":
        return pipe.class_to_image(3, seed=11, **options), plain(pipe, [Label(3)], options, 11)
    if task == "text":
        prefix: Document = [pipe.read.text(words)]
        return pipe.text_to_image(words, **options), plain(pipe, prefix, options)
    context = pipe.read.picture(picture(0))
    if task == "edit":
        kept = context.latents, ~regenerated("right", pipe.config.image, (8, 8))
        made = pipe.edit(picture(0), "right", label=7, **options)
        return made, plain(pipe, [Label(7)], options, kept=kept)
    # After a picture and words, under guidance that keeps the picture and drops the words.
    made = pipe.generate([picture(0), words, ImageSlot(**options)], seed=2)[2]
    return made, plain(pipe, [context, pipe.read.text(words)], options, 2)


GUIDED: list[dict[str, Any]] = [
    *({"scheduler": s, "guidance": w} for s in SCHEDULERS for w in (1.5, 4.0)),
    {"guidance": 0.0},
]
RISING: list[tuple[str, dict[str, Any]]] = [
    *(("label", {"guidance": 3.0, "guidance_schedule": s}) for s in SCHEDULES),
    ("label", {"guidance": 3.0, "guidance_schedule": "tokens", "ar_sizes": None}),
    ("edit", {"guidance": 3.0, "guidance_schedule": "tokens", "ar_sizes": [5, 3]}),
]
INTERVALS = [(0.0, 0.5), (0.3, 1.0), (0.2, 0.7)]


@pytest.mark.parametrize("sizes", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_picture_of_a_class_equals_plain_sampling(
    each: Pipeline, scheduler: str, sizes: list[int]
) -> None:
    close(*both(each, "label", scheduler=scheduler, ar_sizes=sizes))


@pytest.mark.parametrize("options", GUIDED, ids=str)
def test_guidance_is_unconditional_plus_scaled_difference(
    each: Pipeline, options: dict[str, Any]
) -> None:
    made, expected = both(each, "text", **options)
    close(made, expected)
    assert np.abs(made - both(each, "text", **{**options, "guidance": 1.0})[0]).max() > 0.01


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize(("task", "sizes"), [("edit", [3, 5]), ("interleaved", [10, 6])])
def test_edits_and_interleaved_pictures_equal_plain_sampling(
    each: Pipeline, task: str, sizes: list[int], guidance: float
) -> None:
    close(*both(each, task, ar_sizes=sizes, guidance=guidance))


@pytest.mark.parametrize(("task", "options"), RISING, ids=str)
def test_guidance_rises_as_its_schedule_says(
    pipe: Pipeline, task: str, options: dict[str, Any]
) -> None:
    """By tokens, an edit's kept ones count as there."""
    close(*both(pipe, task, **options))


@pytest.mark.parametrize("interval", INTERVALS)
def test_guidance_interval_leaves_the_unconditional_pass_out(
    pipe: Pipeline, calls: Calls, interval: tuple[float, float]
) -> None:
    options = {"guidance": 3.0, "guidance_interval": list(interval), "num_inference_steps": 9}
    made, expected = both(pipe, "label", **options)
    close(made, expected)
    noisy = calls.of(noisy=True)
    timesteps = [float(call.batch.timestep[0]) / 1000 for call in noisy]
    rows = [call.rows for call in noisy]
    assert rows == [2 if interval[0] <= t < interval[1] else 1 for t in timesteps]
    assert (len(rows), set(rows)) == (18, {1, 2})


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_other_predictions_equal_plain_sampling(
    tokenizer: Tokenizer, scheduler: str, prediction: str
) -> None:
    pipe = make_pipeline(tokenizer, diffusion={"prediction": prediction})
    made, expected = both(pipe, "label", scheduler=scheduler)
    scale = np.abs(expected).max()  # an untrained model that predicts noise goes astray
    close(made / scale, expected / scale)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
@pytest.mark.parametrize("scheduler", [None, "euler", "dpmsolver++", "unipc"])
def test_a_flow_model_is_sampled_from_all_noise(
    tokenizer: Tokenizer, scheduler: str | None, prediction: str
) -> None:
    pipe = make_pipeline(tokenizer, diffusion={"path": "flow", "prediction": prediction})
    close(*both(pipe, "label", scheduler=scheduler, guidance=1.5), 1e-3)
    with pytest.raises(UserError, match=r"scheduler: ddim.*path flow.*euler, dpmsolver"):
        pipe.class_to_image(3, scheduler="ddim")


def test_ar_steps_are_even_and_raster_goes_row_by_row(pipe: Pipeline) -> None:
    three = pipe.text_to_image("a three", ar_steps=3, order="raster", **FAST)
    own = pipe.text_to_image("a three", ar_sizes=[6, 5, 5], order=list(range(16)), **FAST)
    assert np.array_equal(three, own)
    # Within one step the order of the tokens is of no account.
    one = [pipe.text_to_image("a three", order=order, **FAST) for order in (ORDER, "raster")]
    close(*one)


def test_guidance_one_has_no_twin(pipe: Pipeline, calls: Calls) -> None:
    alone = pipe.generate(["a three", ImageSlot(guidance=1)], ar_steps=2, **FAST)[1]
    assert {call.rows for call in calls} == {1}
    calls.clear()
    # In a prompt where another picture is guided there are twins, of no account for this one.
    first = pipe.generate(
        ["a three", ImageSlot(guidance=1), ImageSlot(guidance=3)], ar_steps=2, **FAST
    )[1]
    assert {call.rows for call in calls.of(noisy=False)} == {2}
    assert [call.rows for call in calls.of(noisy=True)] == [1] * 8 + [2] * 8
    close(first, alone)


def test_guided_answers_take_twice_the_rows(pipe: Pipeline, calls: Calls) -> None:
    pipe.class_to_image([1, 2, 3], guidance=2.0, ar_steps=2, **FAST)
    assert {call.rows for call in calls} == {6}
    # The label, two steps of four denoisings, and one clean pass between: nothing more.
    assert len(calls.of(noisy=True)) == 8
    assert len(calls.of(noisy=False)) == 2


# What the model reads is what it was trained on


def written(batch: Batch, document: int) -> list[tuple]:
    """(order, stream, time, row, column, kind, id) of each token of a document."""
    numbers = torch.stack([batch.order, batch.stream, *batch.position.unbind(1)], 1).tolist()
    tokens = zip(batch.doc.tolist(), numbers, contents(batch), strict=True)
    return [(*where, *what) for doc, where, what in tokens if doc == document]


@pytest.mark.parametrize("row", [0, 1, 2, 3])
def test_fed_tokens_are_a_training_row(
    pipe: Pipeline, tokenizer: Tokenizer, calls: Calls, row: int
) -> None:
    """Ids, orders and positions of an interleaved answer, and of its twin in the null form."""
    prompts = [
        [picture(0), "then comes", TextSlot(), ImageSlot(), "and", TextSlot()],
        [picture(1), "somebody wrote the digit", TextSlot(), ImageSlot(), "a", TextSlot()],
    ]
    session_ids: list[list[int]] = []
    original = Session.writing

    def spy(self: Session, *args: Any) -> Passes[list[list[int]]]:
        answers = yield from original(self, *args)
        session_ids.extend(answers)
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "writing", spy)
        pipe.generate(
            prompts, guidance=2.0, ar_sizes=[10, 6], order=ORDER, max_new_tokens=4, **FAST
        )
    first, last = session_ids[row % 2], session_ids[2 + row % 2]
    dummy = np.zeros((TOKENS, DIM), np.float32)
    noise = Noise(dummy[None], dummy[None], np.zeros((1, TOKENS)), ONES, 2.0)
    given = prompts[row % 2]
    document = [
        Image(dummy, COLUMNS),
        tokenizer.given(given[1]),
        Text([tokenizer.answer_id, *first, tokenizer.image_id]),
        Image(dummy, COLUMNS, split_of([10, 6]), noise),
        tokenizer.given(given[4]),
        Text([tokenizer.answer_id, *last]),
    ]
    if row >= 2:
        document = null_form(document)
    training = make_row(96, document)
    expected = [t for t in written(collate([training]), 0) if t[1] == 0]
    fed = []
    for call in calls.of(noisy=False):
        if row in call.seat.rows:
            fed += written(call.batch, call.seat.rows.index(row))
    if row < 2 and len(last) == 4:
        expected = expected[:-1]  # the last token of all is never fed: nothing follows
    assert fed == expected


# Independence of the batch


@pytest.mark.parametrize(
    ("scheduler", "guidance"), [*((name, 2.0) for name in SCHEDULERS), ("ddpm", 1.0)]
)
def test_a_picture_depends_on_its_prompt_and_seed_alone(
    each: Pipeline, scheduler: str, guidance: float
) -> None:
    prompts = ["a five", "this is the numeral 4", "somebody wrote the digit eight", "a five"]
    options = {**FAST, "scheduler": scheduler, "guidance": guidance, "ar_steps": 3}
    together = each.text_to_image(prompts, seed=3, **options)
    assert np.abs(together[0] - together[3]).max() > 0.1
    halves = each.text_to_image(prompts, seed=3, batch_size=3, **options)
    listed = each.text_to_image(prompts[::-1], seed=[6, 5, 4, 3], **options)[::-1]
    alone = [each.text_to_image(prompt, seed=3 + i, **options) for i, prompt in enumerate(prompts)]
    for same in (halves, listed, alone):
        close(same, together)
    assert np.array_equal(each.text_to_image(prompts, seed=3, **options), together)


def test_interleaved_answers_do_not_depend_on_their_batch(ending: Pipeline) -> None:
    """Sampled texts end at different places; the pictures after them are the same as alone."""
    prompts = [
        [picture(i), words, TextSlot(temperature=1.0, max_new_tokens=9), ImageSlot()]
        for i, words in enumerate(["then comes", "x", "somebody wrote the digit", "a", "the"])
    ]
    options = {**FAST, "guidance": 2.0, "ar_steps": 2}
    raw = Pipeline(ending.config, ending.decoder, ending.tokenizer, RawCodec(ending.config.image))
    together = raw.generate(prompts, seed=7, **options)
    assert len({len(filled[2]) for filled in together}) > 2, "all end alike: a useless test"
    for i, prompt in enumerate(prompts):
        alone = raw.generate(prompt, seed=7 + i, **options)
        assert together[i][2] == alone[2]
        close(together[i][3], alone[3])


@pytest.mark.parametrize("said", [{"temperature": 1.0}, {"beams": 4}], ids=str)
def test_rows_of_very_different_lengths_are_answered_as_alone(
    each: Pipeline, tokenizer: Tokenizer, said: dict[str, Any]
) -> None:
    prompts = [Text([tokenizer.text_id, *range(9, 9 + words)]) for words in (0, 70, 7)]
    answer = Text([tokenizer.answer_id, 9, 8], loss=True)

    def answers(rows: list[int]) -> tuple[list[list[int]], np.ndarray, torch.Tensor]:
        generators = [torch.Generator().manual_seed(row) for row in rows]
        session = Session(each.decoder, each.config, tokenizer, 110, generators, guided=True)
        run(each.decoder, session.reading([prompts[row] for row in rows]))
        writing = session.writing(Sampling(**said, max_new_tokens=6), True, True, None)
        drawing = session.drawing(Sampling(guidance=2.0, ar_steps=3, **FAST), True)
        ids, drawn = run(each.decoder, writing), run(each.decoder, drawing)
        return ids, drawn, run(each.decoder, session.weighing([answer] * len(rows)))

    texts, pictures, nats = answers([0, 1, 2])
    for row in range(3):
        (text,), (drawn,), (own,) = answers([row])
        assert texts[row] == text
        close(pictures[row], drawn)
        close(nats[row], own)
    assert np.abs(pictures[0] - pictures[1]).max() > 0.01


def test_a_row_whose_text_has_ended_draws_nothing_more(
    pipe: Pipeline, tokenizer: Tokenizer
) -> None:
    """While its neighbour goes on: else the noise of its next picture would be another."""

    def first_row_ends(module: Decoder, args: tuple, output: tuple) -> None:
        batch, reading = args
        first = torch.tensor(reading.seats[0].rows)[batch.doc[batch.predict_at]] == 0
        output[1][:, tokenizer.end_id] = torch.where(first, 1e4, -1e4)

    def answer(rows: int) -> tuple[list[list[int]], np.ndarray]:
        session = begun(pipe, range(rows))
        writing = session.writing(Sampling(temperature=1.0, max_new_tokens=6), True, True, None)
        ids = run(pipe.decoder, writing)
        return ids, run(pipe.decoder, session.drawing(Sampling(**FAST), False))

    handle = pipe.decoder.register_forward_hook(first_row_ends)
    (ids, pictures), (_, alone) = answer(2), answer(1)
    handle.remove()
    assert [len(i) for i in ids] == [0, 6]
    close(pictures[0], alone[0])


# Edits


@pytest.mark.parametrize("mask", REGIONS)
def test_edit_keeps_latents_bit_for_bit(pipe: Pipeline, mask: str) -> None:
    keep = ~regenerated(mask, pipe.config.image, (8, 8))
    pictures = [picture(i) for i in range(3)]
    options = {**FAST, "scheduler": "ddpm", "guidance": 2.0, "ar_steps": 2}
    made = pipe.edit(pictures, mask, prompt="a three", **options)
    for source, latents in zip(pictures, made, strict=True):
        given = pipe.read.picture(source).latents
        assert np.array_equal(latents[keep], given[keep])
        assert (latents[~keep] != given[~keep]).all()


def test_edit_keeps_pixels_bit_for_bit(shown: Pipeline) -> None:
    for grey in (np.arange(64), np.arange(64) + 64, np.arange(64) + 128, np.arange(64) + 192):
        source = PILImage.fromarray(grey.reshape(8, 8).astype(np.uint8))
        made = np.asarray(shown.edit(source, "left", label=1, **FAST))
        assert np.array_equal(made[:, 4:], np.asarray(source)[:, 4:])
        assert not np.array_equal(made[:, :4], np.asarray(source)[:, :4])


def test_edits_with_masks_of_their_own(pipe: Pipeline) -> None:
    """Masks of equal and of different sizes in one call; each edit as alone."""
    masks = ["top", "left", "center", np.eye(4, dtype=bool)]
    pictures = [picture(i) for i in range(4)]
    options = {**FAST, "ar_steps": 2, "guidance": 1.5}
    made = pipe.edit(pictures, masks, label=[1, 2, 3, 4], seed=9, **options)
    for i, (source, mask) in enumerate(zip(pictures, masks, strict=True)):
        close(made[i], pipe.edit(source, mask, label=1 + i, seed=9 + i, **options))


def as_grid(mask: Any, config: Any, size: tuple[int, int] = (8, 8)) -> list[str]:
    cells = regenerated(mask, config, size).reshape(4, 4)
    return ["".join("#" if cell else "." for cell in line) for line in cells]


def test_edit_masks(pipe: Pipeline) -> None:
    config = pipe.config.image
    regions = {
        "top": ["####", "####", "....", "...."],
        "bottom": ["....", "....", "####", "####"],
        "left": ["##..", "##..", "##..", "##.."],
        "right": ["..##", "..##", "..##", "..##"],
        "center": ["....", ".##.", ".##.", "...."],
        "outpaint": ["####", "#..#", "#..#", "####"],
    }
    assert set(regions) == set(REGIONS)
    for name, drawn in regions.items():
        assert as_grid(name, config) == drawn
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0, 0] = pixels[3, 7] = pixels[7, 4] = 255  # one white pixel touches its whole token
    touched = ["#...", "...#", "....", "..#."]
    painted = [PILImage.fromarray(pixels).convert(mode) for mode in ("L", "RGB", "1")]
    for mask in (pixels, pixels > 0, *painted):
        assert as_grid(mask, config) == touched
    grid = np.zeros((4, 4))
    grid[1, 2] = 1
    assert as_grid(grid, config) == ["....", "..#.", "....", "...."]


def test_a_mask_painted_on_the_own_picture_follows_its_crop(pipe: Pipeline) -> None:
    """Of a 64 x 32 picture the model sees the middle, columns 16 to 47; so also of its mask."""
    config = pipe.config.image
    mask = np.zeros((32, 64), bool)
    mask[0, 16] = mask[31, 47] = mask[8, 31] = True
    mask[:, :16] = mask[:, 48:] = True  # cut off
    assert as_grid(mask, config, (64, 32)) == ["#...", ".#..", "....", "...#"]
    half = mask.reshape(16, 2, 32, 2).any((1, 3))  # painted on a smaller copy
    assert as_grid(half, config, (64, 32)) == ["#...", ".#..", "....", "...#"]
    assert as_grid(np.eye(8), config, (64, 32)) == ["#...", ".#..", "..#.", "...#"]
    assert as_grid(np.eye(2), config) == ["##..", "##..", "..##", "..##"]  # coarser than the grid
    with pytest.raises(UserError, match=r"size 32x64.*64x32"):
        regenerated(mask.T, config, (64, 32))


@pytest.mark.parametrize(("width", "height"), [(64, 32), (32, 96), (32, 32)])
def test_a_mask_regenerates_the_token_that_shows_what_it_covers(
    pipe: Pipeline, width: int, height: int
) -> None:
    left, top = (width - 32) // 2, (height - 32) // 2
    for cell in range(TOKENS):
        y, x = top + cell // 4 * 8, left + cell % 4 * 8
        marked = np.zeros((height, width), np.uint8)
        marked[y : y + 8, x : x + 8] = 255
        shown = pipe.read.picture(PILImage.fromarray(marked)).latents.max(1) > 0
        assert shown.tolist() == [c == cell for c in range(TOKENS)]
        assert (regenerated(marked, pipe.config.image, (width, height)) == shown).all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("middle", "no such region.*top, bottom"),
        (np.ones((8, 8)), "regenerates everything"),
        (np.zeros((4, 4)), "regenerates nothing"),
        (PILImage.new("L", (8, 8)), "regenerates nothing"),
        (np.ones((5, 7)), "size 7x5.*8x8"),
        (PILImage.new("L", (16, 8)), "size 16x8.*8x8"),
        (np.ones((8, 8, 3)), "size 3x8x8"),
        (np.ones((0, 0)), "size 0x0"),
    ],
)
def test_masks_that_cannot_be_used(pipe: Pipeline, mask: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipe.edit(picture(0), mask, label=1, **FAST)


# Text


def test_sampled_text_depends_on_its_seed_alone(pipe: Pipeline) -> None:
    pictures = [picture(0), picture(1), picture(0)]
    options = {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 8}
    together = pipe.image_to_text(pictures, seed=4, **options)
    for i, given in enumerate(pictures):
        assert together[i] == pipe.image_to_text(given, seed=4 + i, **options)
    assert together[0] != together[2]
    greedy, certain = (
        pipe.image_to_text(pictures, **{**options, **changes})
        for changes in ({"temperature": 0.0}, {"top_p": 1e-6})
    )
    assert greedy == certain


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.0, 0.4), (0.5, 0.8)])
def test_sampling_follows_the_nucleus(pipe: Pipeline, temperature: float, top_p: float) -> None:
    """First tokens of many seeds against the model's own probabilities, cut at `top_p`."""
    assert pipe.tokenizer is not None
    rows = 1500
    prefix = pipe.read.picture(picture(0))
    generators = [torch.Generator().manual_seed(i) for i in range(rows)]
    session = Session(pipe.decoder, pipe.config, pipe.tokenizer, 20, generators, guided=False)
    run(pipe.decoder, session.reading([prefix] * rows))
    # Row by row the same: what is asked for is one token, which an end symbol leaves empty.
    sampling = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=1)
    answers = run(pipe.decoder, session.writing(sampling, False, False, None))
    drawn = [ids[0] if ids else -1 for ids in answers]

    batch = batch_of(30, [[prefix, Text([pipe.tokenizer.answer_id, 0], loss=True)]])
    with torch.no_grad():
        scores = forward(pipe.decoder, batch)[1][0].double() / temperature
    scores[pipe.tokenizer.unspeakable] = -torch.inf
    share = scores.softmax(-1).numpy()
    nucleus, covered = [], 0.0
    for token in np.argsort(-share):
        if covered >= top_p:
            break
        nucleus.append(int(token))
        covered += share[token]
    expected = {token: share[token] / covered for token in nucleus}
    ends = (pipe.tokenizer.end_id, pipe.tokenizer.image_id)
    expected[-1] = sum(expected.pop(end, 0.0) for end in ends)
    assert set(drawn) <= {token for token, p in expected.items() if p > 0}
    for token, p in expected.items():
        assert abs(drawn.count(token) - rows * p) < 4.5 * (rows * p * (1 - p)) ** 0.5 + 1, token


def test_control_symbols_are_never_in_answers(pipe: Pipeline, tokenizer: Tokenizer) -> None:
    """Also where the model shouts them."""
    loud = tokenizer.vocabulary.control | tokenizer.vocabulary.mute
    assert len(loud) >= 5
    ids: list[list[int]] = []
    with shouting(pipe, [*loud - {tokenizer.end_id, tokenizer.image_id}]):
        for temperature in (0.0, 1.5):
            sampling = Sampling(temperature=temperature, max_new_tokens=12)
            writing = begun(pipe, range(20)).writing(sampling, False, False, None)
            ids += run(pipe.decoder, writing)
    assert sum(map(len, ids)) > 100
    assert not {i for answer in ids for i in answer} & loud


def test_users_cannot_write_control_symbols(tokenizer: Tokenizer) -> None:
    control = tokenizer.vocabulary.control
    assert len(control) >= 4
    for words in ("<answer>", "</s> a <image> b", "<text><s>", "<pad>", "<unk>"):
        given = tokenizer.given(words)
        assert given.ids[0] == tokenizer.text_id
        assert not set(given.ids[1:]) & control
        assert tokenizer.decode(given.ids).strip() == words


@pytest.mark.parametrize("end", ["end_id", "image_id"])
def test_an_answer_ends_at_either_end_symbol(
    pipe: Pipeline, tokenizer: Tokenizer, end: str
) -> None:
    spoken: list[Any] = []
    with shouting(pipe, getattr(tokenizer, end)):
        answers = pipe.image_to_text(
            [picture(0), picture(1)], on_token=lambda *args: spoken.append(args)
        )
    assert answers == ["", ""]
    assert not spoken


# The public API


def test_answers_come_in_kind(shown: Pipeline) -> None:
    one, many = shown.class_to_image(3, **FAST), shown.class_to_image([3], **FAST)
    assert isinstance(one, PILImage.Image)
    assert isinstance(many, list)
    assert (one.size, one.mode) == ((8, 8), "L")
    ways = ["three", "3", np.int64(3), [3], (3,), np.array([3]), torch.tensor([3]), range(3, 4)]
    for same in ways:
        made = shown.class_to_image(same, **FAST)
        made = made[0] if isinstance(made, list) else made
        assert np.array_equal(np.asarray(made), np.asarray(one)), same
    assert isinstance(shown.text_to_image("a three", **FAST), PILImage.Image)
    assert len(shown.text_to_image(["a three", "a two"], **FAST)) == 2
    assert isinstance(shown.image_to_text(picture(0), max_new_tokens=3), str)
    answers = shown.image_to_text((picture(0), picture(1)), max_new_tokens=3)
    assert [type(a) for a in answers] == [str, str]
    assert isinstance(shown.edit(picture(0), "top", label=1, **FAST), PILImage.Image)
    assert isinstance(shown.edit([picture(0)], "top", label=1, **FAST), list)


def test_interleaved_prompts_come_back_filled(shown: Pipeline) -> None:
    given = picture(0)
    prompt = [given, "then comes", TextSlot(max_new_tokens=3), ImageSlot(), "x", ImageSlot()]
    filled = shown.generate(prompt, **FAST)
    assert filled[0] is given
    assert (filled[1], filled[4]) == ("then comes", "x")
    kinds = [str, PILImage.Image, str, PILImage.Image]
    assert [isinstance(f, k) for f, k in zip(filled[2:], kinds, strict=True)] == [True] * 4
    assert isinstance(prompt[2], TextSlot)
    listed = shown.generate([prompt, ["a", ImageSlot()]], **FAST)
    assert [len(p) for p in listed] == [6, 2]
    assert listed[0][2] == filled[2]
    assert np.array_equal(np.asarray(listed[0][3]), np.asarray(filled[3]))
    assert len(shown.generate([["a", ImageSlot()]], **FAST)) == 1
    assert shown.generate(("a", ImageSlot()), **FAST)[0] == "a"


def test_slots_of_prompts_side_by_side_keep_their_own_options(pipe: Pipeline) -> None:
    prompts = [
        ["a", TextSlot(max_new_tokens=2), ImageSlot()],
        ["a", TextSlot(max_new_tokens=6), ImageSlot()],
        ["a", TextSlot(max_new_tokens=2), ImageSlot(num_inference_steps=6)],
        ["a", TextSlot(max_new_tokens=2), ImageSlot(guidance=2.0)],
    ]
    together = pipe.generate(prompts, seed=[5] * 4, **FAST)
    for filled, prompt in zip(together, prompts, strict=True):
        alone = pipe.generate(prompt, seed=5, **FAST)
        assert filled[1] == alone[1]
        close(filled[2], alone[2])
    assert together[1][1].startswith(together[0][1])
    assert together[1][1] != together[0][1]
    for other in together[1:]:
        assert np.abs(together[0][2] - other[2]).max() > 1e-3


def test_a_picture_after_a_made_picture_sees_it(pipe: Pipeline) -> None:
    first = ImageSlot(order=ORDER, ar_sizes=[10, 6])
    filled = pipe.generate(["a", first, "then comes", ImageSlot(order=ORDER)], **FAST)
    # Given as one context picture, the made one reads differently only by its AR steps.
    dummy = np.zeros((1, TOKENS, DIM), np.float32)
    noise = Noise(dummy, dummy, np.zeros((1, TOKENS)), ONES, 2.0)
    made = Image(filled[1], COLUMNS, split_of([10, 6]), noise)
    prefix = [pipe.read.text("a"), made, pipe.read.text("then comes")]
    generator = torch.Generator().manual_seed(0)
    torch.randn(TOKENS, DIM, generator=generator)  # the first picture's noise
    x = torch.randn(TOKENS, DIM, generator=generator)
    steps: Any = Diffusion(pipe.config.diffusion).scheduler("ddim", 4)
    for t in steps.timesteps.tolist():
        output = training_output(pipe.decoder, prefix, [np.arange(16)], x.numpy(), x.numpy(), t)
        x = steps.step(torch.stack([output[c] for c in range(16)]), t, x).prev_sample
    close(filled[3], x)


def test_callbacks_are_told_everything_in_order(shown: Pipeline) -> None:
    told: list[tuple[int, float, Any]] = []
    made = shown.class_to_image(
        [1, 2], ar_steps=3, on_picture=lambda *args: told.append(args), **FAST
    )
    assert [item for item, _, _ in told] == [0, 1] * 12
    shares = [share for item, share, _ in told if item == 0]
    np.testing.assert_allclose(shares, np.arange(1, 13) / 12)
    for item in (0, 1):
        last = [p for i, _, p in told if i == item][-1]
        assert np.array_equal(np.asarray(last), np.asarray(made[item]))
    spoken: list[tuple[int, str]] = []
    pictures = [picture(0), picture(1)]
    answers = shown.image_to_text(
        pictures, max_new_tokens=5, on_token=lambda *args: spoken.append(args)
    )
    for item in (0, 1):
        texts = [text for i, text in spoken if i == item]
        assert texts[-1] == answers[item]
        assert len(texts) == 5
        assert [len(t) for t in texts] == sorted(len(t) for t in texts)


def test_callbacks_name_the_callers_items(shown: Pipeline) -> None:
    """Also where items of other shapes are answered apart, and in smaller batches."""
    told: list[int] = []
    prompts = [["a", ImageSlot()], [picture(0), ImageSlot()], ["b", ImageSlot()]]
    shown.generate(prompts, on_picture=lambda item, *_: told.append(item), batch_size=1, **FAST)
    assert told == [0] * 4 + [2] * 4 + [1] * 4
    texts = [[*given, TextSlot(max_new_tokens=2)] for *given, _ in prompts]
    shown.generate(texts, on_token=lambda item, _: told.append(item), batch_size=1)
    assert told[12:] == [0] * 2 + [2] * 2 + [1] * 2


def test_defaults_are_the_models_own_and_overridden_one_by_one(
    tokenizer: Tokenizer,
) -> None:
    fast = {"num_inference_steps": 3, "scheduler": "unipc", "ar_steps": 2}
    pipe = make_pipeline(tokenizer, generation={"class_to_image": fast})
    spy = Calls()
    pipe.decoder.register_forward_hook(spy)
    default = pipe.class_to_image(1)
    assert len(spy.of(noisy=True)) == 6
    spy.clear()
    more = pipe.class_to_image(1, num_inference_steps=5)
    assert len(spy.of(noisy=True)) == 10
    assert np.abs(default - more).max() > 1e-3


def test_bfloat16_models_answer(tokenizer: Tokenizer) -> None:
    for style in (PAPER, LLAMA):
        pipe = make_pipeline(tokenizer, style)
        pipe.decoder.to(torch.bfloat16)
        made = pipe.generate(["a", ImageSlot(guidance=2.0), TextSlot(max_new_tokens=3)], **FAST)
        assert made[1].dtype == np.float32
        assert np.isfinite(made[1]).all()
        assert isinstance(made[2], str)


def test_mistakes_with_other_models(tokenizer: Tokenizer) -> None:
    silent = make_pipeline(None, text=None)
    for call in (
        lambda: silent.text_to_image("a"),
        lambda: silent.image_to_text(picture(0)),
        lambda: silent.generate([TextSlot()]),
    ):
        with pytest.raises(UserError, match="reads and writes no text"):
            call()
    assert silent.class_to_image(1, **FAST).shape == (TOKENS, DIM)
    classless = make_pipeline(tokenizer, classes=[])
    unguided = make_pipeline(tokenizer, diffusion={"prediction": "sample", "dropout": 0.0})
    for call, named in (
        (lambda: classless.class_to_image(1), "no classes"),
        (lambda: unguided.class_to_image(1, guidance=2.0), r"guidance 2\.0.*without dropout"),
    ):
        with pytest.raises(UserError, match=named):
            call()
    assert unguided.class_to_image(1, guidance=1.0, **FAST).shape == (TOKENS, DIM)
