"""Rows as tensors: neither capacity, nor padding, nor what else is in a row changes a result."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from helpers import (
    LABEL_TOKENS,
    STYLES,
    make_row,
    model_config,
    random_decoder,
    random_document,
    task_documents,
)

from mmfusion.decoder import Decoder
from mmfusion.losses import Sums, sums, total
from mmfusion.mask import dense_mask
from mmfusion.packing import Batch, collate
from mmfusion.sequence import Counts, Document, count

TASKS = list(task_documents(np.random.default_rng(0)))
LENGTH = 120


@pytest.fixture(scope="module", params=STYLES)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return random_decoder(model_config(STYLES[request.param]), 100)


@torch.no_grad()
def run(decoder: Decoder, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    return decoder(batch, dense_mask(batch.doc, batch.order, batch.stream))


def loss_sums(decoder: Decoder, length: int, *documents: Document) -> Sums:
    batch = collate([make_row(length, *documents)])
    return sums(*run(decoder, batch), batch)


def test_capacity_changes_no_output(decoder: Decoder) -> None:
    rng = np.random.default_rng(0)
    rows = [make_row(LENGTH, d) for d in task_documents(rng).values()]
    tight, roomy = collate(rows), collate(rows, Counts(LENGTH, 40, 9, 80, 70, 33))
    assert roomy.text_at.shape[1] == 40
    assert roomy.label_at.shape[1] == 9
    assert roomy.image_at.shape[1] == roomy.latent.shape[1] == 80
    assert roomy.noisy_at.shape[1] == roomy.target.shape[1] == 70
    assert roomy.predict_at.shape[1] == roomy.predict_id.shape[1] == 33
    a, b = run(decoder, tight), run(decoder, roomy)
    for at, left, right in zip(("noisy_at", "predict_at"), a, b, strict=True):
        width = left.shape[1]
        real = (getattr(tight, at) < LENGTH)[..., None]
        torch.testing.assert_close(left * real, right[:, :width] * real, rtol=1e-5, atol=1e-5)
    for left, right in zip(sums(*a, tight), sums(*b, roomy), strict=True):
        torch.testing.assert_close(left, right)


def test_lists_shorter_than_others_are_padded_past_the_row() -> None:
    rng = np.random.default_rng(1)
    documents = task_documents(rng)
    batch = collate(
        [make_row(LENGTH, documents[name]) for name in ("class_to_image", "image_to_text")]
    )
    assert (batch.text_at[0] == LENGTH).all()
    assert (batch.noisy_at[1] == LENGTH).all()
    assert (batch.weight[1] == 0).all()
    assert (batch.predict_id[0] == -1).all()
    assert (batch.text_at[1] < LENGTH).all()


def test_every_list_has_an_entry() -> None:
    batch = collate([make_row(8)])
    for name in ("text_at", "label_at", "image_at", "noisy_at", "predict_at"):
        assert getattr(batch, name).tolist() == [[8]]


def test_too_small_a_capacity_is_refused() -> None:
    document = task_documents(np.random.default_rng(0))["interleaved"]
    limit = count(document, LABEL_TOKENS)
    collate([make_row(LENGTH, document)], limit)
    for kind in ("text", "image", "noisy", "predict"):
        smaller = limit._replace(**{kind: getattr(limit, kind) - 1})
        with pytest.raises((IndexError, ValueError)):
            collate([make_row(LENGTH, document)], smaller)


@pytest.mark.parametrize("first", TASKS)
@pytest.mark.parametrize("second", TASKS)
def test_two_documents_in_a_row_have_the_losses_of_the_two_apart(
    decoder: Decoder, first: str, second: str
) -> None:
    rng = np.random.default_rng(4)
    a, b = task_documents(rng)[first], task_documents(rng)[second]
    together = loss_sums(decoder, LENGTH, a, b)
    apart = [loss_sums(decoder, 70, document) for document in (a, b)]
    for name, left, *right in zip(Sums._fields, together, *apart, strict=True):
        torch.testing.assert_close(left, right[0] + right[1], rtol=1e-5, atol=1e-5, msg=name)
    assert together.image > 0 or together.text > 0


@pytest.mark.parametrize("seed", range(6))
def test_packed_random_documents_have_the_losses_of_each_apart(decoder: Decoder, seed: int) -> None:
    rng = np.random.default_rng(seed)
    documents = [random_document(rng) for _ in range(3)]
    together = loss_sums(decoder, 600, *documents)
    apart = [loss_sums(decoder, 220, document) for document in documents]
    for left, *right in zip(together, *apart, strict=True):
        torch.testing.assert_close(left, torch.stack(right).sum(0), rtol=1e-5, atol=1e-5)


def test_losses_by_hand(decoder: Decoder) -> None:
    """Σ weight · mean squared error / noisy tokens + λ Σ cross-entropy / targets, in loops."""
    documents = task_documents(np.random.default_rng(5))
    rows = [make_row(LENGTH, documents["interleaved"]), make_row(LENGTH, documents["image_first"])]
    batch = collate(rows)
    latents, logits = run(decoder, batch)
    image = text = noisy = targets = 0.0
    for b, row in enumerate(rows):
        for c, place in enumerate(np.flatnonzero(row.weight > 0)):
            error = latents[b, c].double() - torch.from_numpy(row.target[place])
            image += row.weight[place] * float((error**2).mean())
            noisy += 1
        for c, place in enumerate(np.flatnonzero(row.predict >= 0)):
            text -= float(logits[b, c].double().log_softmax(-1)[row.predict[place]])
            targets += 1
    part = sums(latents, logits, batch)
    assert (part.noisy, part.targets) == (noisy, targets)
    made = total(part, part.noisy, part.targets, text_weight=0.3)
    assert float(made) == pytest.approx(image / noisy + 0.3 * text / targets, rel=1e-5)
    # Counts over more than this part: its share of the whole step's loss.
    share = total(part, part.noisy * 4, part.targets * 2, text_weight=0.3)
    assert float(share) == pytest.approx(image / noisy / 4 + 0.15 * text / targets, rel=1e-5)


def test_rows_repeat_and_with_noisy() -> None:
    documents = task_documents(np.random.default_rng(6))
    batch = collate([make_row(LENGTH, d) for d in documents.values()])
    part, twice = batch.rows(slice(1, 3)), batch.repeat(2)
    for field in fields(Batch):
        whole = getattr(batch, field.name)
        assert torch.equal(getattr(part, field.name), whole[1:3])
        assert torch.equal(getattr(twice, field.name), torch.cat([whole, whole]))
    other = batch.with_noisy(batch.latent + 1, batch.timestep + 2)
    assert torch.equal(other.latent, batch.latent + 1)
    assert torch.equal(other.timestep, batch.timestep + 2)
    assert torch.equal(other.noisy_at, batch.noisy_at)
