"""Documents as tokens: what a row holds, and what never changes it."""

import numpy as np
import pytest
from helpers import (
    COLUMNS,
    DIM,
    LABEL_TOKENS,
    TOKENS,
    image,
    make_row,
    model_config,
    random_document,
    task_documents,
    tokens_of,
)

from mmfusion.sequence import (
    IMAGE,
    LABEL,
    TEXT,
    Counts,
    Document,
    Image,
    Label,
    Noise,
    Row,
    Text,
    count,
    null_form,
)
from mmfusion.split import draw_split

SEEDS = range(25)


def documents(seed: int, number: int = 3) -> list[Document]:
    rng = np.random.default_rng(seed)
    return [random_document(rng) for _ in range(number)]


def test_random_documents_are_of_all_kinds() -> None:
    """The tests below are of use only if what they see is."""
    segments = [s for seed in SEEDS for d in documents(seed) for s in d]
    targets = [s for s in segments if isinstance(s, Image) and s.noise]
    assert any(isinstance(s, Image) and not s.noise for s in segments)
    assert {len(s.noise.latents) for s in targets} == {1, 2}
    assert any(len(s.split) == 1 for s in targets)
    assert any(s.split and len(s.split) > 1 for s in targets)
    ends = [d[-1] for seed in SEEDS for d in documents(seed)]
    assert any(isinstance(s, Image) and s.noise for s in ends)


@pytest.mark.parametrize("seed", SEEDS)
def test_counts_are_what_a_row_writes(seed: int) -> None:
    for document in documents(seed):
        row = make_row(400, document)
        used = slice(0, row.used)
        written = Counts(
            tokens=int((row.doc >= 0).sum()),
            text=int((row.kind[used] == TEXT).sum()),
            label=int((row.kind[used] == LABEL).sum()),
            image=int((row.kind[used] == IMAGE).sum()),
            noisy=int((row.weight > 0).sum()),
            predict=int((row.predict >= 0).sum()),
        )
        assert count(document, LABEL_TOKENS) == written
        assert written.tokens == row.used
        assert written.noisy == int((row.stream[used] > 0).sum())


def test_counts_add_up_and_fit() -> None:
    a, b = Counts(5, 4, 3, 2, 1, 0), Counts(1, 1, 1, 1, 1, 1)
    assert a.plus(b) == Counts(6, 5, 4, 3, 2, 1)
    assert a.fits(a)
    for place in range(6):
        assert not a.fits(Counts(*(v - (i == place) for i, v in enumerate(a))))


@pytest.mark.parametrize("seed", SEEDS)
def test_one_order_and_stream_never_mixes_segments(seed: int) -> None:
    inside = documents(seed)
    row = make_row(900, *inside)
    owners: dict[tuple, set] = {}
    for place, token in enumerate(tokens_of(*inside)):
        key = int(row.doc[place]), int(row.order[place]), int(row.stream[place])
        owners.setdefault(key, set()).add((token.doc, token.segment, token.step, token.copy))
    assert all(len(owner) == 1 for owner in owners.values())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_text_target_is_alone_in_its_order(seed: int) -> None:
    row = make_row(900, *documents(seed))
    at = np.flatnonzero(row.predict >= 0)
    for place in [*at, *(at + 1)]:  # what predicts, and what is predicted
        together = (row.doc == row.doc[place]) & (row.order == row.order[place])
        assert row.kind[place] == TEXT
        assert together.sum() == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_every_id_but_the_first_of_an_answer_is_a_target(seed: int) -> None:
    inside = documents(seed)
    row = make_row(900, *inside)
    expected = [-1] * row.length
    for place, token in enumerate(tokens_of(*inside)):
        segment = inside[token.doc][token.segment]
        if isinstance(segment, Text):
            assert row.content[place] == segment.ids[token.index]
            if segment.loss and token.index < len(segment.ids) - 1:
                expected[place] = segment.ids[token.index + 1]
    assert row.predict.tolist() == expected


def positions(row: Row, *inside: Document) -> dict[tuple, tuple]:
    """(segment, which token of it) to (time, row, column), for a document at the row's end."""
    start = row.used - len(tokens_of(*inside[-1:]))
    found: dict[tuple, tuple] = {}
    for place, token in enumerate(tokens_of(inside[-1]), start):
        at = tuple(row.position[place].tolist())
        assert found.setdefault((token.segment, token.index), at) == at, "copies differ"
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_position_never_depends_on_split_order_or_packing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    (document,) = documents(seed, 1)
    alone = positions(make_row(400, document), document)
    before = random_document(rng)
    assert positions(make_row(900, before, document), before, document) == alone
    resplit = [
        Image(s.latents, s.columns, draw_split(TOKENS, 0.9, "random", rng), s.noise)
        if isinstance(s, Image) and s.noise
        else s
        for s in document
    ]
    assert positions(make_row(400, resplit), resplit) == alone
    clean = [Image(s.latents, s.columns) if isinstance(s, Image) else s for s in document]
    assert positions(make_row(400, clean), clean) == alone


@pytest.mark.parametrize("seed", SEEDS)
def test_time_advances_once_per_text_token_label_and_image(seed: int) -> None:
    (document,) = documents(seed, 1)
    time, expected = 0, {}
    for number, segment in enumerate(document):
        if isinstance(segment, Text):
            for index in range(len(segment.ids)):
                expected[number, index] = (time, 0, 0)
                time += 1
        else:
            picture = isinstance(segment, Image)
            for index in range(TOKENS if picture else LABEL_TOKENS):
                row, column = divmod(index, COLUMNS) if picture else (0, 0)
                expected[number, index] = (time, row, column)
            time += 1
    found = positions(make_row(400, document), document)
    assert found == expected


def test_clean_copy_of_the_last_step_is_left_out_only_at_the_end() -> None:
    rng = np.random.default_rng(0)
    target = image(rng, True, steps=4)
    clean_last = make_row(100, [target])
    clean_then_text = make_row(100, [target, Text([5, 6])])
    written = [
        int(((r.kind == IMAGE) & (r.stream == 0)).sum()) for r in (clean_last, clean_then_text)
    ]
    assert written == [TOKENS - len(target.split[-1]), TOKENS]
    context = make_row(100, [Text([5]), image(rng, False)])
    assert int((context.kind == IMAGE).sum()) == TOKENS


@pytest.mark.parametrize("last", [True, False])
def test_image_tokens_carry_their_own_latents_noise_and_weight(last: bool) -> None:
    rng = np.random.default_rng(3)
    latents = rng.standard_normal((TOKENS, DIM), dtype=np.float32)
    split = draw_split(TOKENS, 0.9, "random", rng, steps=3)
    noise = Noise(
        latents=rng.standard_normal((2, TOKENS, DIM), dtype=np.float32),
        target=rng.standard_normal((2, TOKENS, DIM), dtype=np.float32),
        timesteps=rng.integers(0, 1000, (2, TOKENS)).astype(np.float32),
        weight=rng.random((2, TOKENS)),
        start_weight=2.0,
    )
    document = [Label(1), Image(latents, COLUMNS, split, noise), *([] if last else [Text([9])])]
    row = make_row(100, document)
    start = 0
    weights = []
    for group in split:
        weights.append(2 - start / TOKENS)
        start += len(group)
    for place, token in enumerate(tokens_of(document)):
        if token.kind != "image":
            assert row.weight[place] == 0
            continue
        assert row.content[place] == token.index
        if not token.copy:
            np.testing.assert_array_equal(row.latent[place], latents[token.index])
            assert row.weight[place] == 0
            assert row.timestep[place] == 0
            continue
        copy = token.copy - 1
        np.testing.assert_array_equal(row.latent[place], noise.latents[copy, token.index])
        np.testing.assert_array_equal(row.target[place], noise.target[copy, token.index])
        assert row.timestep[place] == noise.timesteps[copy, token.index]
        assert row.weight[place] == pytest.approx(
            weights[token.step] * noise.weight[copy, token.index]
        )


def test_labels_take_a_row_of_the_table_each_and_null_the_one_after_the_last() -> None:
    row = Row.of(model_config(), 20)  # of ten classes
    row.document([Label(0), Label(7), Label(None)])
    assert row.content[:6].tolist() == [0, 1, 14, 15, 20, 21]
    assert row.latent.shape == (20, DIM)


def test_null_form_empties_labels_and_texts_and_keeps_pictures() -> None:
    picture = image(np.random.default_rng(0), True)
    document = [Label(3), Text([7, 8, 9]), picture, Text([4, 5], loss=True)]
    assert null_form(document) == [Label(None), Text([7]), picture, Text([4])]
    assert document[0] == Label(3)


def test_a_document_that_does_not_fit_is_refused() -> None:
    document = task_documents(np.random.default_rng(0))["interleaved"]
    size = count(document, LABEL_TOKENS).tokens
    make_row(size, document)
    with pytest.raises(ValueError, match=f"do not fit a row of {size - 1}"):
        make_row(size - 1, document)
