"""Attention by document against whole rows under the dense mask: results, gradients, work."""

from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    STYLES,
    forward,
    image,
    make_row,
    model_config,
    random_decoder,
    random_document,
    task_documents,
    text,
)
from torch import Tensor

from mmfusion import attention
from mmfusion.attention import NARROWER, SHORT, ByDocument
from mmfusion.decoder import Decoder
from mmfusion.packing import Batch, collate
from mmfusion.sequence import Document, Label, Row, Text

LENGTH = 500


def random_rows(seed: int) -> list[list[Document]]:
    rng = np.random.default_rng(seed)
    return [[random_document(rng) for _ in range(rng.integers(1, 5))] for _ in range(3)]


def special_rows() -> dict[str, list[list[Document]]]:
    rng = np.random.default_rng(9)
    tasks = list(task_documents(rng).values())
    copies = [[Label(n), image(rng, True, copies=2)] for n in range(3)]
    middle = [[text(rng), image(rng, True), text(rng, True)] for _ in range(4)]
    lengths = [[Text([7] * n, loss=n > 1)] for n in (1, 2, 3, 9, 10, 11, 30, 1, 60)]
    return {
        "every task": [tasks[:3], tasks[3:]],
        "one document": [tasks[4:5]],
        "one token": [[[Text([5])]]],
        "no document": [[]],
        "no document first, and between": [[], tasks[:1], [], tasks[3:4]],
        "text only": [lengths[:4], lengths[4:]],
        "two noisy copies": [copies[:1], copies[1:]],
        "a target in the middle": [middle[:1], middle[1:]],
        "a picture that nothing follows": [[[image(rng, False)], [image(rng, False), Label(3)]]],
        "documents all alike": [[[Label(n), image(rng, True, steps=1)] for n in range(5)]],
    }


ROWS = {**{f"random {seed}": random_rows(seed) for seed in range(8)}, **special_rows()}


def passed(decoder: Decoder, rows: list[Row], padded: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Latents and logits, and the gradient of random sums of them for each parameter."""
    batch = collate(rows, padded)
    made = forward(decoder, batch) if padded else decoder(batch, ByDocument(batch))
    generator = torch.Generator().manual_seed(0)
    loss = sum((x * torch.randn(x.shape, generator=generator)).sum() for x in made)
    return list(made), list(torch.autograd.grad(loss, list(decoder.parameters())))


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("style", STYLES)
def test_by_document_is_by_row(style: str, name: str) -> None:
    decoder = random_decoder(model_config({**STYLES[style], "depth": 3}), 100)
    rows = [make_row(LENGTH, *documents) for documents in ROWS[name]]
    (made, slopes), (expected, others) = (passed(decoder, rows, padded) for padded in (False, True))
    for a, b in zip(made, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    largest = max(float(slope.abs().max()) for slope in others)
    assert largest > 0
    for (parameter, _), a, b in zip(decoder.named_parameters(), slopes, others, strict=True):
        assert float((a - b).abs().max()) <= 1e-5 * largest, parameter


def multiplied(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, int, int]]]:
    """(documents, queries, keys) of each call of SDPA, in a first layer and in the last."""
    found: list[tuple[int, int, int]] = []

    def spy(query: Tensor, key: Tensor, *rest: Any) -> Tensor:
        found.append((len(query), query.shape[1], key.shape[1]))
        return query

    monkeypatch.setattr(attention, "attention", spy)
    attend, x, layers = ByDocument(batch), torch.randn(len(batch.doc), 1, 4), []
    for last in (False, True):
        attend(0, x[attend.asks] if last else x, x, x, last)
        layers.append([*found])
        found.clear()
    return layers


@pytest.mark.parametrize("name", ROWS)
def test_fewer_pairs_are_multiplied_than_a_square_has(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clean tokens meet clean ones; a document is filled up by a fourth, or by eight tokens."""
    batch = collate([make_row(LENGTH, *documents) for documents in ROWS[name]])
    first, last = (sum(map(prod, calls)) for calls in multiplied(batch, monkeypatch))
    allowed = 0
    for document in batch.doc.unique():
        streams = batch.stream[batch.doc == document]
        clean, noisy = int((streams == 0).sum()), int((streams > 0).sum())
        filled = max(clean / NARROWER, clean + SHORT)
        allowed += filled * filled + noisy * (filled + noisy)
    assert first <= allowed
    if len(batch.doc) > 50:
        assert last <= first <= len(batch.doc) ** 2


def test_documents_lie_side_by_side_and_are_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above are of use only if they see such."""
    together = filled = 0
    for rows in ROWS.values():
        batch = collate([make_row(LENGTH, *documents) for documents in rows])
        first, _ = multiplied(batch, monkeypatch)
        together += any(documents > 1 for documents, _, _ in first)
        filled += sum(documents * queries for documents, queries, _ in first) > len(batch.doc)
    assert min(together, filled) > 3
