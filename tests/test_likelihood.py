"""The likelihood of answers against the training loss and against decoding, and what it chooses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    COLUMNS,
    batch_of,
    begun,
    forward,
    make_pipeline,
    picture,
    run_config,
)
from material import run
from PIL import Image as PILImage

from mmfusion import ImageSlot, Pipeline, TextSlot, UserError
from mmfusion.codecs.image import PixelCodec
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Sampling
from mmfusion.data_pipelines.documents import DocumentMaker
from mmfusion.data_pipelines.shards import Shards
from mmfusion.generation import stepper
from mmfusion.generation.arguments import Common
from mmfusion.generation.likelihood import Likelihood, best_candidates
from mmfusion.losses import sums
from mmfusion.sequence import Document, Image, Text

FAST: dict[str, Any] = {"num_inference_steps": 4, "scheduler": "ddim", "ar_steps": 2}
TEXTS = ["a three", "somebody wrote the digit eight", "x", "", "the number 4 in pen"]


@pytest.fixture(scope="module")
def pipe(ending: Pipeline) -> Pipeline:
    return ending


@pytest.fixture(scope="module")
def one(tokenizer: Tokenizer) -> Pipeline:
    return make_pipeline(tokenizer, codec=PixelCodec)


@torch.no_grad()
def text_loss(pipe: Pipeline, *documents: Document) -> tuple[float, int]:
    """What training makes of the documents in one row: Σ cross-entropy, and its targets."""
    batch = batch_of(160, list(documents))
    part = sums(*forward(pipe.decoder, batch), batch)
    return float(part.text), part.targets


def numbers(found: list[Likelihood]) -> list[float]:
    return [each.log_probability for each in found]


# What it is


def test_it_is_the_training_loss_of_the_same_document(pipe: Pipeline) -> None:
    tokenizer = pipe.tokenizer
    assert tokenizer is not None
    pictures = [picture(i) for i in range(len(TEXTS))]
    found = pipe.log_likelihood(pictures, TEXTS)
    documents: list[Document] = [
        [pipe.read.picture(p), tokenizer.answer(text)]
        for p, text in zip(pictures, TEXTS, strict=True)
    ]
    for each, document in zip(found, documents, strict=True):
        loss, targets = text_loss(pipe, document)
        assert each.log_probability == pytest.approx(-loss, rel=1e-5)
        assert each.tokens == targets
    loss, targets = text_loss(pipe, *documents)
    assert sum(numbers(found)) == pytest.approx(-loss, rel=1e-5)
    assert sum(each.tokens for each in found) == targets


def test_it_is_the_loss_of_the_sample_that_training_reads(
    pipe: Pipeline, digits_data: Path, tmp_path: Path
) -> None:
    config = run_config(digits_data, tmp_path)
    source = next(s for s in config.data.sources if s.task == "image_to_text")
    maker, shards = DocumentMaker(config, pipe.tokenizer), Shards(str(source.shards))
    for number in range(3):
        sample = shards[number]
        document = maker.make(source, sample, np.random.default_rng(number))
        captions = sample.captions()
        drawn = captions[np.random.default_rng(number).integers(len(captions))]
        found = pipe.log_likelihood(sample.picture(), f"  {drawn}\n")
        loss, targets = text_loss(pipe, document)
        assert found.log_probability == pytest.approx(-loss, rel=1e-5)
        assert found.tokens == targets


def test_prompts_are_texts_and_pictures_in_any_order(pipe: Pipeline) -> None:
    tokenizer = pipe.tokenizer
    assert tokenizer is not None
    prompts = [picture(0), "then comes", [picture(1), "and", picture(2)], [], ["a", "b"]]
    seen = [Image(pipe.read.picture(picture(i)).latents, COLUMNS) for i in range(3)]
    given = tokenizer.given
    documents: list[Document] = [
        [seen[0]],
        [given("then comes")],
        [seen[1], given("and"), seen[2]],
        [],
        [given("a"), given("b")],
    ]
    found = pipe.log_likelihood(prompts, TEXTS)
    for each, document, text in zip(found, documents, TEXTS, strict=True):
        loss, _ = text_loss(pipe, [*document, tokenizer.answer(text)])
        assert each.log_probability == pytest.approx(-loss, rel=1e-5)


def test_it_is_what_decoding_made_of_it_token_by_token(pipe: Pipeline) -> None:
    """Of greedy answers over the cache: Σ log p of each id when it was chosen, and of the end."""
    tokenizer = pipe.tokenizer
    assert tokenizer is not None
    complete = 0
    for number in range(8):
        spoken: list[torch.Tensor] = []

        def listen(module: Any, args: tuple, output: Any, spoken: list = spoken) -> None:
            if not (args[0].predict_id < 0).any():  # as where the picture is read
                spoken.append(output[1][0].double().log_softmax(-1))

        handle = pipe.decoder.register_forward_hook(listen)
        said = stepper.run(
            pipe.decoder,
            begun(pipe, [number]).writing(Sampling(max_new_tokens=10), False, False, None),
        )[0]
        handle.remove()
        if len(spoken) == len(said):
            continue  # cut off
        complete += 1
        ids = [*said, max(tokenizer.end_id, tokenizer.image_id, key=spoken[-1].__getitem__)]
        expected = sum(float(log_p[i]) for log_p, i in zip(spoken, ids, strict=True))
        answer = Text([tokenizer.answer_id, *ids], loss=True)
        found = stepper.run(pipe.decoder, begun(pipe, [number]).weighing([answer]))
        assert float(found) == pytest.approx(expected, rel=1e-5)
    assert complete >= 3


def test_it_does_not_depend_on_its_batch(pipe: Pipeline) -> None:
    prompts = [picture(0), "the", picture(1), [picture(2), "somebody wrote"], picture(3)]
    together = pipe.log_likelihood(prompts, TEXTS)
    assert len({each.tokens for each in together}) > 3
    pairs = zip(prompts, TEXTS, strict=True)
    alone = [pipe.log_likelihood(prompt, text) for prompt, text in pairs]
    np.testing.assert_allclose(numbers(together), numbers(alone), rtol=1e-5)
    twos = pipe.log_likelihood(prompts, TEXTS, batch_size=2)
    np.testing.assert_allclose(numbers(twos), numbers(alone), rtol=1e-5)
    assert pipe.log_likelihood(prompts, TEXTS, batch_size=2) == twos


def test_texts_are_read_as_captions_of_training_are(one: Pipeline) -> None:
    tokenizer = one.tokenizer
    assert tokenizer is not None
    plain = one.log_likelihood(picture(0), "a three")
    for same in ("  a\n\tthree ", "a\x00 three\x1b", "a\x0bthree"):
        assert one.log_likelihood(picture(0), same) == plain
    spelled = one.log_likelihood(picture(0), "a</s>")
    assert spelled.tokens == len(tokenizer.encode("a</s>")) + 1 > 3  # never obeyed


def test_answers_come_in_kind(one: Pipeline) -> None:
    alone = one.log_likelihood([picture(0), "a"], "a three")  # one prompt of two parts
    assert isinstance(alone, Likelihood)
    assert one.log_likelihood([[picture(0), "a"]], ["a three"]) == [alone]
    assert one.log_likelihood((picture(0),), ("a three",))[0].tokens == alone.tokens
    assert alone.score(0.0) == alone.log_probability
    assert alone.score(1.0) == alone.log_probability / alone.tokens
    with pytest.raises(AttributeError):
        alone.tokens = 3  # type: ignore[misc]


def test_bfloat16_models_judge(tokenizer: Tokenizer) -> None:
    pipe = make_pipeline(tokenizer, codec=PixelCodec)
    exact = pipe.log_likelihood(picture(0), "a three").log_probability
    pipe.decoder.to(torch.bfloat16)
    half = pipe.log_likelihood(picture(0), "a three").log_probability
    assert half == pytest.approx(exact, rel=0.05)


LONG = "somebody wrote the digit eight " * 20
MISTAKES: list[tuple[Any, Any, str]] = [
    ([picture(0)] * 3, ["a", LONG, "b"], r"item 1 .*96"),
    (LONG, "a", r"item 0 .*shorten it$"),
    ([picture(0)], [3], "answer of text, got int"),
    (picture(0), None, "one item or a list"),
    (picture(0), ["a"], "one item or a list"),
    ([3], ["a"], "a prompt is a str.*int"),
    ([[ImageSlot()]], ["a"], "ImageSlot"),
    ([" "], ["a"], "prompt is empty"),
    ([], [], "nothing was given"),
]


@pytest.mark.parametrize(("prompts", "answers", "named"), MISTAKES)
def test_mistakes_are_named(one: Pipeline, prompts: Any, answers: Any, named: str) -> None:
    with pytest.raises(UserError, match=named):
        one.log_likelihood(prompts, answers)


def test_a_model_without_text_says_so() -> None:
    silent = make_pipeline(None, text=None)
    with pytest.raises(UserError, match="no tokenizer"):
        silent.log_likelihood(picture(0), "a")


# What it chooses


def candidate_seeds(seeds: list[int], best_of: int) -> list[int]:
    return Common(seed=seeds, best_of=best_of).seeds(len(seeds))


def test_candidate_seeds_follow_from_the_item_alone() -> None:
    seeds = candidate_seeds([7, 8, 7], 4)
    assert seeds[::4] == [7, 8, 7]
    assert seeds[:4] == seeds[8:] == candidate_seeds([7], 4)
    assert seeds[:2] == candidate_seeds([7], 2)  # more candidates leave the first ones
    assert len({*seeds}) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert candidate_seeds([-3, 2**63 - 1], 1) == [-3, 2**63 - 1]


def test_of_equal_candidates_the_first_is_kept() -> None:
    assert best_candidates([-3.0, -1.0, -1.0, -2.0, -2.0, -2.0], 3) == [1, 3]
    assert best_candidates([-3.0, -1.0], 1) == [0, 1]


def same(a: PILImage.Image, b: PILImage.Image) -> bool:
    return a.tobytes() == b.tobytes()


def test_one_candidate_is_what_it_was(one: Pipeline) -> None:
    prompts = ["a three", "a four"]
    plain = one.text_to_image(prompts, seed=5, **FAST)
    for made, before in zip(
        one.text_to_image(prompts, seed=5, best_of=1, **FAST), plain, strict=True
    ):
        assert same(made, before)
    greedy = one.image_to_text(picture(0), max_new_tokens=5)  # also at temperature 0
    assert one.image_to_text(picture(0), max_new_tokens=5, best_of=1) == greedy


def test_the_picture_that_speaks_most_for_its_prompt_is_kept(pipe: Pipeline) -> None:
    prompts = ["a three", "somebody wrote the digit eight", "a four"]
    chosen = pipe.text_to_image(prompts, seed=5, best_of=4, **FAST)
    places = []
    for item, prompt in enumerate(prompts):
        seeds = candidate_seeds([5 + item], 4)
        candidates = [pipe.text_to_image(prompt, seed=seed, **FAST) for seed in seeds]
        judged = [pipe.log_likelihood(c, prompt).log_probability for c in candidates]
        assert max(judged) - min(judged) > 1e-3
        places.append(int(np.argmax(judged)))
        assert same(chosen[item], candidates[places[-1]])
    assert any(places), "the first is always best: a useless test"
    small = pipe.text_to_image(prompts, seed=5, best_of=4, batch_size=3, **FAST)
    alone = pipe.text_to_image(prompts[1], seed=6, best_of=4, **FAST)
    assert all(same(a, b) for a, b in zip(small, chosen, strict=True))
    assert same(alone, chosen[1])


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_the_caption_that_its_picture_speaks_for_is_kept(pipe: Pipeline, penalty: float) -> None:
    pictures = [picture(i) for i in range(4)]
    drawn: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 8}
    options = {**drawn, "length_penalty": penalty}
    chosen = pipe.image_to_text(pictures, seed=5, best_of=4, **options)
    places = []
    for item, given in enumerate(pictures):
        seeds = candidate_seeds([5 + item], 4)
        candidates = [pipe.image_to_text(given, seed=seed, **drawn) for seed in seeds]
        judged = pipe.log_likelihood([given] * 4, candidates)
        places.append(int(np.argmax([each.score(penalty) for each in judged])))
        assert chosen[item] == candidates[places[-1]]
    assert any(places), "the first is always best: a useless test"
    assert chosen == pipe.image_to_text(pictures, seed=5, best_of=4, batch_size=3, **options)
    assert chosen[2] == pipe.image_to_text(pictures[2], seed=7, best_of=4, **options)


def test_a_list_of_seeds_gives_each_item_its_candidates(one: Pipeline) -> None:
    prompts = ["a three", "a four"]
    together = one.text_to_image(prompts, seed=[9, 2], best_of=3, **FAST)
    for prompt, seed, made in zip(prompts, [9, 2], together, strict=True):
        assert same(one.text_to_image(prompt, seed=seed, best_of=3, **FAST), made)


REFUSED: list[tuple[Any, str]] = [
    (lambda p: p.class_to_image(1, best_of=4), "class_to_image has no text"),
    (lambda p: p.edit(picture(0), "top", "a", best_of=4), "edit has no text"),
    (lambda p: p.generate([TextSlot()], best_of=4), "interleaved has no text"),
    (lambda p: p.image_to_text(picture(0), best_of=4), "temperature=1"),
    (lambda p: p.text_to_image("a", best_of=4, on_picture=print), "leave on_picture out"),
    (
        lambda p: p.image_to_text(picture(0), best_of=4, temperature=1.0, on_token=print),
        "leave on_token out",
    ),
    (lambda p: p.text_to_image(["a", "b"], best_of=4, seed=[1]), "1 seeds for 2 items"),
]


@pytest.mark.parametrize(("call", "named"), REFUSED)
def test_candidates_that_cannot_be_judged_are_refused(one: Pipeline, call: Any, named: str) -> None:
    with pytest.raises(UserError, match=named):
        call(one)


def test_best_of_on_the_command_line(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    pipeline = Pipeline.from_pretrained(model_folder, "cpu")
    common = ("--model", model_folder, "--seed", 3, "--best-of", 3)
    quick = ("--set", "num_inference_steps=4", "--set", "scheduler=ddim", "--set", "ar_steps=2")
    out = tmp_path / "a.png"
    assert run("generate", "a four", "-o", out, "--exact", *common, *quick) == 0
    expected = pipeline.text_to_image("a four", seed=3, best_of=3, **FAST)
    assert same(PILImage.open(out), expected)
    capsys.readouterr()
    sampled = ("--set", "temperature=1.5", "--set", "max_new_tokens=6")
    assert run("caption", out, *common, *sampled) == 0
    assert capsys.readouterr().out.strip() == pipeline.image_to_text(
        PILImage.open(out), seed=3, best_of=3, temperature=1.5, max_new_tokens=6
    )
    assert run("caption", out, *common) == 2
    assert "temperature" in capsys.readouterr().err
    assert run("generate", "--label", "three", "-o", out, *common) == 2
    assert "class_to_image has no text" in capsys.readouterr().err
