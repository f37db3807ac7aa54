"""Rows as tensors: neither capacity, nor padding, nor what else is in a row changes a result."""

import numpy as np
import pytest
import torch
from helpers import (
    LABEL_TOKENS,
    STYLES,
    batch_of,
    contents,
    forward,
    make_row,
    model_config,
    random_decoder,
    random_document,
    task_documents,
)

from mmfusion.decoder import Decoder
from mmfusion.losses import Sums, sums, total
from mmfusion.packing import collate
from mmfusion.sequence import IMAGE, LABEL, PAD, TEXT, Counts, Document, count

TASKS = list(task_documents(np.random.default_rng(0)))
LENGTH = 120


@pytest.fixture(scope="module", params=STYLES)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return random_decoder(model_config(STYLES[request.param]), 100)


def loss_sums(decoder: Decoder, length: int, *documents: Document) -> Sums:
    batch = batch_of(length, list(documents))
    with torch.no_grad():
        return sums(*forward(decoder, batch), batch)


def test_capacity_changes_no_output(decoder: Decoder) -> None:
    rows = [make_row(LENGTH, d) for d in task_documents(np.random.default_rng(0)).values()]
    tight, roomy = collate(rows, True), collate(rows, True, Counts(LENGTH, 40, 9, 80, 70, 33))
    sizes = {"text_id": 40, "label_id": 9, "latent": 70 + 80, "cell": 70 + 80}
    sizes |= dict.fromkeys(("timestep", "level", "target", "weight", "noisy_at"), 70)
    sizes |= {"predict_at": 33, "predict_id": 33}
    for name, size in sizes.items():
        assert len(getattr(roomy, name)) == len(rows) * size
    with torch.no_grad():
        a, b = forward(decoder, tight), forward(decoder, roomy)
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left, right[: len(left)], rtol=1e-5, atol=1e-5)
    for left, right in zip(sums(*a, tight), sums(*b, roomy), strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("capacity", [None, Counts(300, 60, 20, 250, 200, 40)])
@pytest.mark.parametrize("seed", range(4))
def test_every_token_finds_its_own_content(
    seed: int, capacity: Counts | None, padded: bool
) -> None:
    rng = np.random.default_rng(seed)
    inside = [[random_document(rng)], [], list(task_documents(rng).values())[seed : seed + 2]]
    rows = [make_row(300, *documents) for documents in inside]
    batch = collate(rows, padded, capacity)
    names = ("kind", "stream", "content", "latent", "timestep", "target", "weight", "predict")
    kind, stream, content, latent, timestep, target, weight, predict = (
        np.concatenate([getattr(r, name)[: r.length if padded else r.used] for r in rows])
        for name in names
    )
    kinds = {TEXT: "text", LABEL: "label", IMAGE: "image"}
    made = contents(batch)
    for at in np.flatnonzero(kind != PAD):
        assert made[at] == (kinds[kind[at]], content[at])
    before = len(batch.text_id) + len(batch.label_id)
    pictures = np.flatnonzero(kind == IMAGE)
    np.testing.assert_array_equal(batch.latent[batch.place[pictures] - before], latent[pictures])
    noisy, targets = np.flatnonzero((kind == IMAGE) & (stream > 0)), np.flatnonzero(predict >= 0)
    assert (batch.noisy, batch.targets) == (len(noisy), len(targets))
    np.testing.assert_array_equal(batch.place[noisy] - before, np.arange(len(noisy)))
    np.testing.assert_array_equal(batch.timestep[batch.level][: len(noisy)], timestep[noisy])
    lists = {"noisy_at": noisy, "target": target[noisy]}
    lists |= {"weight": weight[noisy], "predict_at": targets, "predict_id": predict[targets]}
    for name, expected in lists.items():
        np.testing.assert_array_equal(getattr(batch, name)[: len(expected)], expected, name)
    # What is left of a list is of no account: entry 0 of its table, or the first token.
    written = {"text_id": kind == TEXT, "label_id": kind == LABEL}
    written |= dict.fromkeys(("noisy_at", "weight"), stream[kind == IMAGE] > 0)
    for name, chosen in {**written, "predict_at": predict >= 0}.items():
        assert not getattr(batch, name)[chosen.sum() :].any(), name
    assert not batch.cell[: len(batch.noisy_at)][len(noisy) :].any()
    assert not batch.cell[len(batch.noisy_at) :][len(pictures) - len(noisy) :].any()
    assert (batch.predict_id[len(targets) :] == -1).all()


def test_no_two_rows_share_a_documents_number() -> None:
    tasks = list(task_documents(np.random.default_rng(1)).values())
    rows = [make_row(LENGTH, *d) for d in (tasks[:2], [], tasks[2:3], tasks[3:4])]
    expected = [*rows[0].doc[: rows[0].used], *[2] * rows[2].used, *[3] * rows[3].used]
    assert collate(rows).doc.tolist() == expected
    padded = collate(rows, padded=True)
    assert padded.rows == 4
    assert padded.doc.view(4, -1)[1].tolist() == [-1] * LENGTH
    assert padded.doc[padded.doc >= 0].tolist() == expected


def test_every_list_has_an_entry() -> None:
    for batch, size in ((collate([make_row(8)]), 1), (collate([make_row(8)], padded=True), 8)):
        assert batch.doc.tolist() == [-1] * size
        for name in ("text_id", "label_id", "noisy_at", "predict_at"):
            assert getattr(batch, name).tolist() == [0]
        assert (len(batch.level), len(batch.latent)) == (1, 2)  # a noisy one and a clean one


def test_too_small_a_capacity_is_refused() -> None:
    document = task_documents(np.random.default_rng(0))["interleaved"]
    limit = count(document, LABEL_TOKENS)
    limit = limit._replace(image=limit.image - limit.noisy)  # of a list without the noisy ones
    collate([make_row(LENGTH, document)], True, limit)
    for kind in ("text", "image", "noisy", "predict"):
        smaller = limit._replace(**{kind: getattr(limit, kind) - 1})
        with pytest.raises(ValueError, match="do not fit a list of"):
            collate([make_row(LENGTH, document)], True, smaller)


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
        torch.testing.assert_close(left, sum(right), rtol=1e-5, atol=1e-5)


def test_losses_by_hand(decoder: Decoder) -> None:
    """Σ weight · mean squared error / noisy tokens + λ Σ cross-entropy / targets, in loops."""
    documents = task_documents(np.random.default_rng(5))
    rows = [make_row(LENGTH, documents["interleaved"]), make_row(LENGTH, documents["image_first"])]
    batch = collate(rows, padded=True)
    with torch.no_grad():
        latents, logits = forward(decoder, batch)
    image, text, noisy, targets = 0.0, 0.0, 0, 0
    for row in rows:
        for place in np.flatnonzero(row.weight > 0):
            error = latents[noisy].double() - torch.from_numpy(row.target[place])
            image += row.weight[place] * float((error**2).mean())
            noisy += 1
        for place in np.flatnonzero(row.predict >= 0):
            text -= float(logits[targets].double().log_softmax(-1)[row.predict[place]])
            targets += 1
    part = sums(latents, logits, batch)
    assert (part.noisy, part.targets) == (noisy, targets)
    made = total(part, part.noisy, part.targets, text_weight=0.3)
    assert float(made) == pytest.approx(image / noisy + 0.3 * text / targets, rel=1e-5)
    # Counts over more than this part: its share of the whole step's loss.
    share = total(part, part.noisy * 4, part.targets * 2, text_weight=0.3)
    assert float(share) == pytest.approx(image / noisy / 4 + 0.15 * text / targets, rel=1e-5)
