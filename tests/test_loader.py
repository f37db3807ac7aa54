"""Rows depend on the seed alone: not on ranks, workers, or where a run was interrupted."""

import io
import json
from collections import Counter
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmfusion.data_pipelines import loader
from mmfusion.data_pipelines.loader import Loader
from mmfusion.data_pipelines.shards import Shards, write_shards
from PIL import Image as Picture

from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Config, load
from mmfusion.errors import UserError
from mmfusion.packing import Batch

SAMPLES, LABEL_TOKENS, ROW = 30, 2, 128


def png(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)
    Picture.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures; each has a label of its own, so that a document says which sample it is."""
    folder = tmp_path_factory.mktemp("rows")
    samples = (
        (f"s{i}", {"json": {"label": i, "captions": [f"a {i}", f"the number {i}"]}, "png": png(i)})
        for i in range(SAMPLES)
    )
    write_shards(folder, "a", samples, per_shard=7)
    return folder


def config(
    data: Path,
    tokenizer: Tokenizer,
    tasks: Any = "class_to_image",
    loading: dict | None = None,
    **changes: Any,
) -> Config:
    """Four row slots and the given tasks: a name, or {name: weight}."""
    weights = tasks if isinstance(tasks, dict) else {tasks: 1.0}
    sources = [
        {"name": task, "task": task, "weight": weight, "shards": f"{data}/a-*.tar", "flip": True}
        for task, weight in weights.items()
    ]
    base = {
        "row_length": ROW,
        "image": {"size": 8, "channels": 1, "patch": 2},
        "text": {"tokenizer": str(tokenizer.path)},
        "classes": [str(i) for i in range(SAMPLES)],
        "decoder": {"width": 32, "depth": 1, "heads": 2, "label_tokens": LABEL_TOKENS},
        "diffusion": {"dropout": 0.0},
        "train": {"output": "unused", "steps": 1, "lr": 1e-3},
    }
    rows = {"rows": 4, "micro_rows": 1, "sources": sources, **(loading or {})}
    return Config.model_validate({**base, "data": rows, **changes})


ALL = {"class_to_image": 0.5, "text_to_image": 0.3, "image_to_text": 0.2}


def steps(loader: Loader, count: int) -> list[list[Batch]]:
    return list(islice(loader, count))


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Batch))


def labels(batch: Batch) -> list[int]:
    """The labels of a row's documents, in order."""
    here = batch.label_at[0] < ROW
    return (batch.label_id[0][here][::LABEL_TOKENS] // LABEL_TOKENS).tolist()


# Order


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_out_the_rows_of_one_rank(data: Path, tokenizer: Tokenizer, world: int):
    whole = config(data, tokenizer, ALL)
    ranks = [steps(Loader(whole, rank, world), 3) for rank in range(world)]
    for step, rows in enumerate(steps(Loader(whole), 3)):
        for slot, row in enumerate(rows):
            assert same(row, ranks[slot % world][step][slot // world])


def test_workers_change_nothing(data: Path, tokenizer: Tokenizer):
    alone = steps(Loader(config(data, tokenizer, ALL)), 4)
    helped = Loader(config(data, tokenizer, ALL, loading={"workers": 2}))
    for rows, others in zip(alone, steps(helped, 4), strict=True):
        assert all(map(same, rows, others))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_exactly_also_on_other_ranks(data: Path, tokenizer: Tokenizer, workers: int):
    """Workers have prefetched rows by then; the state is of what was consumed."""
    settings = config(data, tokenizer, ALL, loading={"workers": workers})
    whole = steps(Loader(settings), 5)
    ranks = [Loader(settings, rank, 2) for rank in range(2)]
    for rank in ranks:
        steps(rank, 2)
    state = {slot: counts for rank in ranks for slot, counts in rank.state().items()}
    state = {int(slot): counts for slot, counts in json.loads(json.dumps(state)).items()}
    alone = Loader(settings)
    alone.resume(state)
    assert alone.state() == state
    for rows, others in zip(whole[2:], steps(alone, 3), strict=True):
        assert all(map(same, rows, others))


def test_each_sample_comes_once_an_epoch(data: Path, tokenizer: Tokenizer):
    settings = config(data, tokenizer)
    slots: list[list[int]] = [[] for _ in range(4)]
    for rows in steps(Loader(settings), 15):
        for slot, row in enumerate(rows):
            slots[slot] += labels(row)
    draws = {4 * n + slot: label for slot, seen in enumerate(slots) for n, label in enumerate(seen)}
    epochs = [[draws[e * SAMPLES + i] for i in range(SAMPLES)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(SAMPLES))
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])


def test_the_mixture_has_the_shares_of_its_weights(data: Path, tokenizer: Tokenizer):
    loader = Loader(config(data, tokenizer, ALL))
    rows = steps(loader, 40)
    state = Counter[str]()
    for counts in loader.state().values():
        state.update(counts)
    total = state["documents"]
    assert total == sum(state[task] for task in ALL)
    assert total == sum(len(set(r.doc[r.doc >= 0].tolist())) for step in rows for r in step)
    for task, share in ALL.items():
        assert abs(state[task] / total - share) < 4 * (share * (1 - share) / total) ** 0.5


def test_draws_depend_on_seed_epoch_and_sample_alone(data: Path, tokenizer: Tokenizer):
    """Another number of slots packs the same documents; another seed draws others."""

    def first_epoch(seed: int, rows: int) -> dict[int, bytes]:
        settings = config(data, tokenizer, seed=seed, loading={"rows": rows})
        found: dict[int, bytes] = {}
        for step in steps(Loader(settings), 5):
            for row in step:
                for n, label in enumerate(labels(row)):
                    image = (row.doc[0] == n) & (row.stream[0] > 0)
                    at = torch.isin(row.noisy_at[0], image.nonzero()[:, 0])
                    found.setdefault(label, row.target[0][at].numpy().tobytes())
        return found

    one, other, seeded = first_epoch(0, 4), first_epoch(0, 6), first_epoch(1, 4)
    common = [label for label in one if label in other and label in seeded]
    assert len(common) > SAMPLES // 2
    assert sum(one[label] == other[label] for label in common) > len(common) // 2
    assert not any(one[label] == seeded[label] for label in common)


# Packing


def test_rows_stay_within_the_capacity_and_shapes_do_not_change(data: Path, tokenizer: Tokenizer):
    limits = {"text": 20, "label": 4, "image": 100, "noisy": 48, "predict": 12}
    settings = config(data, tokenizer, ALL, loading={"capacity": limits, "micro_rows": 2})
    for batch, _ in steps(Loader(settings), 8):
        assert batch.doc.shape == (2, ROW)
        for kind, size in limits.items():
            at = getattr(batch, f"{kind}_at")
            assert at.shape == (2, size)
        assert int((batch.label_at < ROW).sum(1).max()) <= 4


def test_documents_that_no_row_holds_are_refused_and_counted(tmp_path: Path, tokenizer: Tokenizer):
    samples = (
        (f"s{i}", {"json": {"captions": ["one " * (200 if i % 3 == 0 else 2)]}, "png": png(i)})
        for i in range(12)
    )
    write_shards(tmp_path, "a", samples)
    loader = Loader(config(tmp_path, tokenizer, "image_to_text"))
    rows = [row for step in steps(loader, 12) for row in step]
    refused = sum(counts["refused"] for counts in loader.state().values())
    drawn = sum(counts["documents"] for counts in loader.state().values())
    packed = sum(int(row.doc.max()) + 1 for row in rows)
    assert packed == drawn - refused
    assert 0.2 < refused / drawn < 0.5
    # A refused document closes no row: each holds as many of the others as fit.
    short = 16 + len(tokenizer.answer("one one").ids)
    assert {int(row.doc.max()) + 1 for row in rows} == {ROW // short}


def test_data_of_which_nothing_fits_are_an_error(
    data: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loader, "MOST_REFUSED", 20)
    with pytest.raises(UserError, match=r"row_length: 20 documents one after another do not fit"):
        steps(Loader(config(data, tokenizer, row_length=17)), 1)


# Errors


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_sample_is_one_line_also_from_a_worker(
    tmp_path: Path, tokenizer: Tokenizer, workers: int
):
    write_shards(tmp_path, "a", [("s0", {"json": {"label": 0}, "png": b"no picture"})])
    broken = Loader(config(tmp_path, tokenizer, loading={"workers": workers}))
    with pytest.raises(UserError) as caught:
        steps(broken, 1)
    assert str(caught.value).startswith(f"{tmp_path}/a-00000.tar:s0.png: not a readable picture")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("facts", "task", "said"),
    [
        ({"label": SAMPLES}, "class_to_image", "`label` is 30; expected 0 to 29"),
        ({}, "class_to_image", "`label` is None"),
        ({"captions": "one"}, "text_to_image", "`captions` must be a list of strings"),
        ({"captions": [" "]}, "image_to_text", "`captions` holds no text"),
        ({}, "interleaved", "needs a `content` list"),
        ({"content": [{"image": "0.png"}]}, "interleaved", "no picture 0.png"),
        ({"content": [{"answer": "a"}, "b"]}, "interleaved", "content 1 is 'b'"),
    ],
)
def test_a_sample_that_lacks_what_its_task_needs_is_named(
    tmp_path: Path, tokenizer: Tokenizer, facts: dict, task: str, said: str
):
    write_shards(tmp_path, "a", [("s0", {"json": facts, "png": png(0)})])
    with pytest.raises(UserError, match=r"a-00000\.tar:s0") as caught:
        steps(Loader(config(tmp_path, tokenizer, task)), 1)
    assert said in str(caught.value)


def test_rows_ranks_and_workers_must_divide(data: Path, tokenizer: Tokenizer):
    with pytest.raises(UserError, match=r"data\.rows: 4 .* 3 ranks x 1 micro_rows"):
        Loader(config(data, tokenizer), 0, 3)
    with pytest.raises(UserError, match=r"data\.workers: 2 rows a rank .* 4 workers"):
        Loader(config(data, tokenizer, loading={"workers": 4}), 0, 2)


def test_resuming_with_other_data_is_refused(data: Path, tokenizer: Tokenizer):
    state = Loader(config(data, tokenizer)).state()
    with pytest.raises(UserError, match=r"data\.rows: the checkpoint has 4 row slots"):
        Loader(config(data, tokenizer, loading={"rows": 8})).resume(state)
    with pytest.raises(UserError, match=r"data\.sources: the checkpoint was trained on"):
        Loader(config(data, tokenizer, "text_to_image")).resume(state)


@pytest.mark.parametrize("name", ["documents", "refused"])
def test_a_source_may_not_be_called_as_the_counters_are(name: str):
    with pytest.raises(UserError, match="not documents or refused"):
        load("tiny", [f"data.sources.0.name={name}"])


def test_missing_shards_name_the_source(data: Path, tokenizer: Tokenizer):
    settings = config(data / "nowhere", tokenizer, "text_to_image")
    with pytest.raises(UserError, match=r"no shards match .*nowhere.*; data source text_to_image"):
        Loader(settings)


def test_shards_are_shared_by_forked_workers_as_one_block(data: Path):
    """No object per sample: an index of millions costs a few hundred bytes each, once."""
    shards = Shards(f"{data}/a-*.tar")
    assert len(shards._block) < 400 * len(shards)
