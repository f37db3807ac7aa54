"""The CPU's layout wastes next to nothing in linear layers: docs/performance.md."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from benchmarks.attention import LABEL_TOKENS, image, packed_rows, random_document, xl_document
from benchmarks.layout import Unread, block_pairs, linear_waste, multiplied_pairs, visible_pairs
from mmfusion.attention import ByDocument
from mmfusion.config import load
from mmfusion.decoder import Decoder
from mmfusion.packing import Batch, collate
from mmfusion.sequence import Document, Label, Row


def waste(config_name: str, length: int, draw: Callable[..., Document], padded: bool) -> float:
    """Linear layers, executed over needed, at true width on the meta device."""
    config = load(config_name)
    batch = collate(packed_rows(2, length, draw), padded)
    dim = config.image.latent_dim
    latent, target = (x.expand(-1, dim) for x in (batch.latent, batch.target))
    batch = replace(batch, latent=latent, target=target)
    with torch.device("meta"):
        decoder = Decoder(config, vocabulary=1000)
    return linear_waste(decoder, config, batch, Unread(batch))


def test_linear_layers_see_what_there_is() -> None:
    assert 1 <= waste("mm_l", 4096, xl_document, padded=False) <= 1.02
    assert 1 <= waste("digits", 128, random_document, padded=False) <= 1.02
    assert waste("digits", 128, random_document, padded=True) > 1.1  # as rows they are not full


def pairs_by_hand(batch: Batch, depth: int) -> int:
    """Visible pairs from the rule in words, one by one."""
    doc, order, stream = (x.tolist() for x in (batch.doc, batch.order, batch.stream))
    asks = {*batch.noisy_at[: batch.noisy].tolist(), *batch.predict_at[: batch.targets].tolist()}
    found = 0
    for q in range(len(doc)):
        for k in range(len(doc)):
            earlier = stream[k] == 0 and order[k] < order[q]
            own = order[k] == order[q] and stream[k] == stream[q]
            if doc[q] >= 0 and doc[q] == doc[k] and (earlier or own):
                found += depth - 1 + (q in asks)
    return found


def test_pairs_are_counted() -> None:
    rows = packed_rows(2, 160, random_document)
    batch = collate(rows)
    visible = visible_pairs(batch, 3)
    assert visible == pairs_by_hand(batch, 3) == visible_pairs(collate(rows, padded=True), 3)
    assert visible < multiplied_pairs(ByDocument(batch), 3)
    # 160 tokens are two blocks of 128 a side: all four are multiplied, or fewer.
    assert visible < block_pairs(collate(rows, padded=True), 3) <= 3 * 2 * 4 * 128**2


def test_a_document_alone_is_multiplied_in_two_parts() -> None:
    rng = np.random.default_rng(0)
    row = Row(200, 1, LABEL_TOKENS, null_label=0)
    row.document([Label(0), image(16, 1, rng)])
    batch = collate([row])
    noisy = batch.noisy
    clean = len(batch.doc) - noisy
    pairs = multiplied_pairs(ByDocument(batch), 3)
    alone = clean  # a list of text targets has an entry where there are none: one query
    assert pairs == 2 * clean**2 + alone + 3 * noisy * (clean + noisy)
