"""The visibility rule against its statement, the paper's mask, and its words; its two forms."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import (
    STYLES,
    expected_mask,
    image,
    make_row,
    model_config,
    random_decoder,
    random_document,
    task_documents,
)

from mmfusion import attention
from mmfusion.attention import ByRow
from mmfusion.mask import block_mask, dense_mask, flex_attention
from mmfusion.packing import collate
from mmfusion.sequence import Label, Row
from mmfusion.split import draw_split

LENGTH = 160


def random_rows(seed: int, rows: int = 3) -> tuple[list[Row], list[list]]:
    """Rows packed with random documents of all kinds, and the documents in them."""
    rng = np.random.default_rng(seed)
    packed, inside = [], []
    for _ in range(rows):
        row, documents = make_row(LENGTH), []
        while True:
            document = random_document(rng)
            try:
                make_row(LENGTH, *documents, document)
            except ValueError:
                break
            documents.append(document)
            row = make_row(LENGTH, *documents)
        assert row.used, "no document fits: a useless test"
        packed.append(row)
        inside.append(documents)
    return packed, inside


def parts(rows: list[Row]) -> list[torch.Tensor]:
    """(R, L) doc, order and stream, with numbers of documents that rows do not share."""
    batch = collate(rows, padded=True)
    return [part.view(len(rows), -1) for part in (batch.doc, batch.order, batch.stream)]


def mask_of(*rows: Row) -> np.ndarray:
    return dense_mask(*parts(list(rows))).numpy()


@pytest.mark.parametrize("seed", range(4))
def test_mask_is_the_stated_rule(seed: int) -> None:
    rows, _ = random_rows(seed)
    made = mask_of(*rows)
    for b, row in enumerate(rows):
        doc, order, stream = row.doc.tolist(), row.order.tolist(), row.stream.tolist()
        for q in range(LENGTH):
            for k in range(LENGTH):
                rule = False
                if doc[q] == doc[k]:
                    if stream[k] == 0 and order[k] < order[q]:
                        rule = True
                    if order[k] == order[q] and stream[k] == stream[q]:
                        rule = True
                assert made[b, q, k] == rule, (b, q, k)


@pytest.mark.parametrize("seed", range(8))
def test_mask_is_the_rule_in_words(seed: int) -> None:
    """From segments, AR steps and copies alone: this holds `Row`'s integers and the rule."""
    rows, documents = random_rows(seed)
    for inside, made in zip(documents, mask_of(*rows), strict=True):
        np.testing.assert_array_equal(made, expected_mask(LENGTH, *inside))


@pytest.mark.parametrize("seed", range(10))
def test_one_image_has_the_papers_generalised_causal_mask(seed: int) -> None:
    """Context | clean groups 1..S-1 | noisy groups 1..S, block by block."""
    rng = np.random.default_rng(seed)
    target = image(rng, True)
    sizes = [len(group) for group in target.split]
    starts = np.cumsum([0, *sizes])
    context, clean, noisy = 2, int(starts[-2]), int(starts[-1])
    paper = np.zeros((context + clean + noisy,) * 2, bool)
    paper[:, :context] = True  # everything sees the context
    for start, end in pairwise(starts):
        if end <= clean:  # a clean group sees the clean groups up to itself
            paper[context + start : context + end, context : context + end] = True
        own = slice(context + clean + start, context + clean + end)
        paper[own, context : context + start] = True  # a noisy one the clean groups before it
        paper[own, own] = True  # and its own noisy tokens
    row = make_row(len(paper), [Label(3), target])
    assert row.used == len(paper)
    np.testing.assert_array_equal(mask_of(row)[0], paper)


@pytest.mark.parametrize("seed", range(4))
def test_mask_is_transitive(seed: int) -> None:
    """What is seen through a seen token is seen: depth leaks nothing."""
    rows, _ = random_rows(seed)
    for made in mask_of(*rows):
        twice = made.astype(np.float32) @ made.astype(np.float32) > 0
        assert not (twice & ~made).any()
        assert made.diagonal().all()


def test_padding_sees_only_itself_and_is_not_seen() -> None:
    row = make_row(LENGTH, *list(task_documents(np.random.default_rng(0)).values())[:2])
    made = mask_of(row)[0]
    assert 0 < row.used < LENGTH - 1
    np.testing.assert_array_equal(made[row.used :], np.eye(LENGTH, dtype=bool)[row.used :])
    assert not made[: row.used, row.used :].any()


def test_documents_of_a_row_do_not_see_each_other() -> None:
    rows, documents = random_rows(1)
    made, doc = mask_of(*rows), np.stack([row.doc for row in rows])
    assert max(map(len, documents)) > 1
    assert not made[doc[:, :, None] != doc[:, None, :]].any()
    # Nor do those of other rows, where all lie one after another without their padding.
    flat = collate(rows)
    used = [torch.from_numpy(m[: r.used, : r.used]) for m, r in zip(made, rows, strict=True)]
    assert torch.equal(dense_mask(flat.doc, flat.order, flat.stream), torch.block_diag(*used) > 0)


def test_flex_blocks_hold_all_that_is_visible() -> None:
    """A block is skipped only where nothing is visible, unmasked only where all is."""
    rows, _ = random_rows(3)
    places, side = parts(rows), 8
    coarse = dense_mask(*places)
    coarse = coarse.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)
    some, every = coarse.flatten(3).any(-1), coarse.flatten(3).all(-1)
    mask = block_mask(*places, side)
    assert (some & ~every).any()
    assert every.any()
    np.testing.assert_array_equal(mask.to_dense()[:, 0].bool(), some)
    full = torch.zeros_like(every)
    for b, row in enumerate(mask.full_kv_num_blocks[:, 0]):
        for q, number in enumerate(row):
            full[b, q, mask.full_kv_indices[b, 0, q, :number]] = True
    np.testing.assert_array_equal(full, every)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (4, 1)])
def test_flex_attention_equals_dense(heads: int, groups: int) -> None:
    places = parts(random_rows(4)[0])
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(3, LENGTH, heads, 16, generator=generator)
    k, v = (torch.randn(3, LENGTH, groups, 16, generator=generator) for _ in range(2))
    dense = dense_mask(*places)[:, None]
    # An explicit softmax is the judge of both.
    key, value = (x.repeat_interleave(heads // groups, 2) for x in (k, v))
    weights = torch.einsum("bqhd,bkhd->bhqk", q, key) / 4
    weights = weights.masked_fill(~dense, -torch.inf).softmax(-1)
    expected = torch.einsum("bhqk,bkhd->bqhd", weights, value)
    flex = flex_attention(q, k, v, block_mask(*places, 32))
    for made in (attention.attention(q, k, v, dense), flex):
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("style", STYLES)
def test_decoder_is_the_same_under_both_forms(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "block_mask", partial(block_mask, block=32))
    batch = collate(random_rows(5)[0], padded=True)
    decoder = random_decoder(model_config(STYLES[style]), 100)
    with torch.no_grad():
        flex, dense = (decoder(batch, ByRow(batch, form)) for form in (True, False))
    for a, b in zip(flex, dense, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_random_splits_reach_both_ends() -> None:
    """The tests above are of use only if the splits they see are of many kinds."""
    rng = np.random.default_rng(0)
    counts = {len(draw_split(16, 0.9, "random", rng)) for _ in range(300)}
    assert {1, 2, 15, 16} <= counts
