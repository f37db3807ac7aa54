"""Rows depend on the seed alone: not on ranks, workers, or where a run was interrupted."""

import errno
import gc
import json
import logging
import os
import pickle
import re
import resource
import shutil
from collections import Counter
from dataclasses import fields
from functools import partial
from itertools import islice, pairwise
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import contents, picture
from material import limited
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from mmfusion.codecs.image import encoded
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Config
from mmfusion.data_pipelines import loader as loading_module
from mmfusion.data_pipelines import shards as reading
from mmfusion.data_pipelines.loader import Loader
from mmfusion.data_pipelines.sampler import MIXTURE, Order, mixture
from mmfusion.data_pipelines.shards import Shards, write_shards
from mmfusion.data_pipelines.workers import MicroBatch
from mmfusion.errors import CorruptSample, UserError
from mmfusion.packing import Batch, collate
from mmfusion.sequence import Counts

SAMPLES, LABEL_TOKENS, ROW = 30, 2, 128


def png(seed: int) -> bytes:
    return encoded(picture(seed))


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
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Batch))


def labels(batch: Batch) -> list[int]:
    """The labels of a row's documents, in order."""
    ids = [number for kind, number in contents(batch) if kind == "label"]
    return [number // LABEL_TOKENS for number in ids[::LABEL_TOKENS]]


def task_of(row: Batch, document: int) -> str:
    """The task that a document of the row is of: only pictures to draw have noisy tokens."""
    mine = row.doc == document
    if "label" in {kind for (kind, _), own in zip(contents(row), mine, strict=True) if own}:
        return "class_to_image"
    return "text_to_image" if bool((row.stream[mine] > 0).any()) else "image_to_text"


def saved(ranks: list[Loader]) -> tuple[dict, dict[int, list[int]]]:
    """The state of all slots, as a checkpoint brings it back."""
    state = {slot: counts for rank in ranks for slot, counts in rank.state().items()}
    layout, state = json.loads(json.dumps([ranks[0].layout(), state]))
    return layout, {int(slot): counts for slot, counts in state.items()}


def totals(loader: Loader) -> Counter[str]:
    """The state's columns, summed over the slots of this rank."""
    sums = np.sum(list(loader.state().values()), 0).tolist()
    return Counter(dict(zip(loader.layout()["columns"], sums, strict=True)))


# Order


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_share_out_the_rows_of_one_rank(data: Path, tokenizer: Tokenizer, world: int):
    whole = config(data, tokenizer, ALL, loading={"rows": 8})
    ranks = [steps(Loader(whole, rank, world), 3) for rank in range(world)]
    for step, rows in enumerate(steps(Loader(whole), 3)):
        for slot, row in enumerate(rows):
            assert same(row, ranks[slot % world][step][slot // world])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than there are cores
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_nothing(data: Path, tokenizer: Tokenizer, workers: int):
    """Nor do more workers than row slots, or a number that does not divide them."""
    alone = steps(Loader(config(data, tokenizer, ALL, loading={"rows": 3})), 4)
    helped = Loader(config(data, tokenizer, ALL, loading={"rows": 3, "workers": workers}))
    for rows, others in zip(alone, steps(helped, 4), strict=True):
        assert all(map(same, rows, others))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than there are cores
def test_on_a_gpu_workers_share_a_micro_batch(
    data: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    """One micro-batch a step, three workers: one row and twice two, joined in their order."""
    loading = {"rows": 5, "micro_rows": 5}
    alone = Loader(config(data, tokenizer, ALL, loading=loading))
    whole = [collate([slot.row().row for slot in alone.slots], padded=True) for _ in range(4)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    unpinned = partial(DataLoader, pin_memory=False)  # without a GPU nothing can be pinned
    monkeypatch.setattr(
        loading_module, "DataLoader", lambda made, pin_memory, **o: unpinned(made, **o)
    )
    helped = Loader(config(data, tokenizer, ALL, loading={**loading, "workers": 3}))
    for batch, (parts,) in zip(whole, steps(helped, 4), strict=True):
        other = parts.to("cpu")
        assert (parts.noisy, parts.targets) == (batch.noisy, batch.targets)
        written = batch.doc >= 0
        assert [c for c, w in zip(contents(batch), written, strict=True) if w] == [
            c for c, w in zip(contents(other), written, strict=True) if w
        ]
        for name in ("order", "stream", "position", "rows", "noisy", "targets"):
            assert np.array_equal(getattr(batch, name), getattr(other, name))
        for one, two in zip(batch.doc.view(5, -1), other.doc.view(5, -1), strict=True):
            assert torch.equal(one[:, None] == one, two[:, None] == two)
            assert torch.equal(one < 0, two < 0)
        for name in ("target", "noisy_at"):  # a part without has one entry, of weight 0
            one, two = (getattr(b, name)[b.weight > 0] for b in (batch, other))
            assert torch.equal(one, two)


def test_what_a_worker_sends_takes_no_file_and_is_pinned_where_it_comes(
    data: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    """A step of many micro-batches has more tensors than a process may have files."""
    loader = Loader(config(data, tokenizer, ALL))
    (batch, *_) = steps(loader, 1)[0]
    gc.collect()  # the files of loaders before this one
    held = len(os.listdir("/proc/self/fd"))
    sent = ForkingPickler.dumps([MicroBatch(batch, {0: [1]}, [])])
    assert len(os.listdir("/proc/self/fd")) == held
    (came,) = pickle.loads(sent)
    assert same(came.batch, batch)
    pinned = []
    monkeypatch.setattr(Batch, "pin", lambda batch: pinned.append(batch) or batch)
    pin_memory([came])  # as torch's loader does where there is a GPU
    assert pinned == [came.batch]


def test_shared_memory_that_is_full_is_named(
    data: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(DataLoader, "__iter__", full)
    with pytest.raises(UserError, match=r"/dev/shm: .*data\.workers=0"):
        next(iter(Loader(config(data, tokenizer, ALL, loading={"workers": 1}))))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_whoever_iterates_again_goes_on(data: Path, tokenizer: Tokenizer, workers: int):
    """After any number of steps, none too, and after a loader went on itself."""
    whole = steps(Loader(config(data, tokenizer, ALL)), 7)
    loader = Loader(config(data, tokenizer, ALL, loading={"workers": workers}))
    again = Loader(config(data, tokenizer, ALL, loading={"workers": workers}))
    found = steps(loader, 1) + steps(loader, 2)
    iter(loader)  # nothing is asked of it
    found += steps(loader, 1)
    layout, state = saved([loader])  # of what was consumed: workers have read ahead
    again.resume(layout, state)
    assert again.state() == state
    found += steps(again, 1) + steps(again, 2)
    assert len(found) == 7
    for rows, others in zip(whole, found, strict=True):
        assert all(map(same, rows, others))


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(("before", "after"), [(1, 8), (8, 1), (2, 4), (4, 2)])
def test_a_run_may_stop_at_any_step_and_go_on_with_any_ranks(
    data: Path, tokenizer: Tokenizer, stop: int, before: int, after: int
):
    """Twice, and with damaged samples among the others."""
    settings = config(data, tokenizer, ALL, loading={"rows": 8, "most_lost": 1.0}, row_length=48)
    whole = steps(Loader(settings), stop + 2)
    ranks = [Loader(settings, rank, before) for rank in range(before)]
    for rank in ranks:
        steps(rank, stop)
    for world in (after, before):
        layout, state = saved(ranks)
        assert sum(counts[0] for counts in state.values()) > 8 * (stop - 1)
        ranks = [Loader(settings, rank, world) for rank in range(world)]
        for number, rank in enumerate(ranks):
            rank.resume(layout, state)
            (found,) = steps(rank, 1)
            mine = whole[stop][number::world]
            assert all(map(same, found, mine))
        stop += 1


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("rows", [4, 7])
def test_each_sample_comes_once_an_epoch(data: Path, tokenizer: Tokenizer, rows: int, block: int):
    """A slot's n-th sample is number n * rows + slot of all; an epoch is 30 in a row of these."""
    settings = config(data, tokenizer, loading={"rows": rows, "block": block})
    slots: list[list[int]] = [[] for _ in range(rows)]
    for batches in steps(Loader(settings), 15):
        for slot, row in enumerate(batches):
            slots[slot] += labels(row)
    draws = {
        rows * n + slot: label for slot, seen in enumerate(slots) for n, label in enumerate(seen)
    }
    epochs = [[draws[e * SAMPLES + i] for i in range(SAMPLES)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(SAMPLES))
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])


def test_the_mixture_holds_its_weights_within_one_document_a_block(
    data: Path, tokenizer: Tokenizer
):
    """In rows as they are packed, and in the order that they are made from."""
    loader = Loader(config(data, tokenizer, ALL, loading={"rows": 1}))
    rows, tasks = steps(loader, 140), list(ALL)
    seen: list[str] = []
    for (row,) in rows:
        for n in range(int(row.doc.max()) + 1):
            seen.append(task_of(row, n))
    assert len(seen) == totals(loader)["documents"] == sum(totals(loader)[t] for t in tasks)
    blocks = [seen[at : at + MIXTURE] for at in range(0, len(seen) - MIXTURE, MIXTURE)]
    assert len(blocks) >= 3
    for found in blocks:
        for task, share in ALL.items():
            assert abs(found.count(task) - share * MIXTURE) < 1 + 1e-9
    assert len({tuple(found) for found in blocks}) == len(blocks)  # not the same order each time


@pytest.mark.parametrize(
    "weights", [(1.0,), (0.5, 0.3, 0.2), (1, 1, 1), (0.97, 0.02, 0.004, 0.006)]
)
def test_what_a_block_rounds_evens_out(weights: tuple[float, ...]):
    shares, total = np.array(weights) / sum(weights), np.zeros(len(weights))
    for block in range(40):
        for slot in range(8):
            found = np.bincount(mixture(3, 8, slot, block, weights), minlength=len(weights))
            assert np.all(np.abs(found - shares * MIXTURE) < 1 + 1e-9)
            total += found
    # 320 blocks; independent roundings would be off by some ten documents.
    assert np.all(np.abs(total - shares * 320 * MIXTURE) < 3)


@pytest.mark.parametrize("slots", [1, 5, 64, 1000])
@pytest.mark.parametrize("block", [1, 7, 64])
def test_streams_share_out_each_epoch_whatever_the_sizes(slots: int, block: int):
    sizes = np.array([5, 0, 130, 1, 64, 7])
    order = Order(sizes, slots, block, 0, "a")
    total, epochs = int(sizes.sum()), 3
    found: dict[int, list[tuple[int, int]]] = {e: [] for e in range(epochs)}
    for number in range(total * epochs):
        draw, slot = divmod(number, slots)
        epoch, shard, inner, (start, end) = order.place(slot, draw)
        found[epoch].append((shard, inner))
        assert start <= inner < end <= start + block
    everything = sorted((s, i) for s, size in enumerate(sizes) for i in range(size))
    for places in found.values():
        assert sorted(places) == everything
    assert found[0] != found[1]


def test_a_stream_stays_in_a_block_until_it_is_through():
    """What makes reads from afar few: 1,000 samples in blocks of 20, shared out to 5 streams."""
    order = Order(np.array([600, 400]), 5, 20, 0, "a")
    for slot in range(5):
        places = [order.place(slot, draw) for draw in range(200)]
        blocks = [(place.shard, place.block) for place in places]
        changes = sum(a != b for a, b in pairwise(blocks))
        assert changes == 9


def test_sources_of_other_names_have_other_orders():
    """Also with blocks of one sample, in which there is nothing to shuffle."""
    orders = [Order(np.array([60, 40]), 1, 1, 0, name) for name in ("a", "b")]
    a, b = ([order.place(0, draw)[:3] for draw in range(100)] for order in orders)
    assert a != b
    assert sorted(a) == sorted(b)


def test_draws_depend_on_seed_epoch_and_sample_alone(data: Path, tokenizer: Tokenizer):
    """Another number of slots packs the same documents; another seed draws others."""

    def first_epoch(seed: int, rows: int) -> dict[int, bytes]:
        settings = config(data, tokenizer, seed=seed, loading={"rows": rows})
        found: dict[int, bytes] = {}
        for step in steps(Loader(settings), 5):
            for row in step:
                for n, label in enumerate(labels(row)):
                    at = row.doc[row.noisy_at] == n
                    found.setdefault(label, row.target[at].numpy().tobytes())
        return found

    one, other, seeded = first_epoch(0, 4), first_epoch(0, 6), first_epoch(1, 4)
    common = [label for label in one if label in other and label in seeded]
    assert len(common) > SAMPLES // 2
    assert sum(one[label] == other[label] for label in common) > len(common) // 2
    assert not any(one[label] == seeded[label] for label in common)


def test_shards_from_afar_give_the_same_rows(
    data: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Read a block at a time, and once: each block of an epoch is fetched by one slot or two."""
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setenv("MMFUSION_CACHE", str(tmp_path))
    for shard in data.glob("a-*.tar*"):
        MemoryFileSystem().pipe(f"/loader/{shard.name}", shard.read_bytes())
    here = config(data, tokenizer, loading={"block": 4})
    source = here.data.sources[0].model_copy(update={"shards": "memory://loader/a-*.tar"})
    away = here.model_copy(update={"data": here.data.model_copy(update={"sources": [source]})})
    loader = Loader(away)
    reads: list[str] = []
    whole = MemoryFileSystem.cat_file

    def cat_file(self: Any, path: str, *arguments: Any, **options: Any) -> bytes:
        reads.append(path)
        return whole(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    for step, other in zip(steps(Loader(here), 6), steps(loader, 6), strict=True):
        assert all(map(same, step, other))
    drawn = totals(loader)["class_to_image"]
    assert len(reads) < 0.6 * drawn


def test_a_source_of_which_nothing_is_usable_ends_also_if_all_may_be_lost(
    tmp_path: Path, tokenizer: Tokenizer
):
    write_shards(tmp_path, "a", [("s0", {"json": {"label": 0}, "png": b"no picture"})])
    loader = Loader(config(tmp_path, tokenizer, loading={"most_lost": 1.0}))
    with pytest.raises(UserError, match="1000 samples one after another cannot be used"):
        steps(loader, 1)


def test_members_that_training_does_not_need_are_not_read(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reading, "MOST_BYTES", 100_000)
    samples = (
        (f"s{i}", {"json": {"label": i}, "png": png(i), "mp4": bytes(200_000)}) for i in range(4)
    )
    write_shards(tmp_path, "a", samples)
    loader = Loader(config(tmp_path, tokenizer))
    steps(loader, 2)
    assert not loader.lost()


# Packing


def test_rows_stay_within_the_capacity_and_shapes_do_not_change(
    data: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    """Where there is a GPU; elsewhere a batch is as long as what it holds."""
    limits = {"text": 20, "label": 4, "image": 100, "noisy": 48, "predict": 12}
    settings = config(data, tokenizer, ALL, loading={"capacity": limits, "micro_rows": 2})
    flat = [batch for batch, _ in steps(Loader(settings), 8)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Batch, "pin", lambda batch: batch)
    names = ("text_id", "label_id", "cell", "noisy_at", "predict_at")
    sizes = {**dict(zip(names, limits.values(), strict=True)), "cell": 100 + 48}
    for batch, short in zip([batch for batch, _ in steps(Loader(settings), 8)], flat, strict=True):
        assert (batch.rows, len(batch.doc), short.rows) == (2, 2 * ROW, 0)
        assert [len(getattr(batch, name)) for name in names] == [2 * sizes[n] for n in names]
        found = []
        for here in (slice(0, ROW), slice(ROW, 2 * ROW)):
            written = batch.doc[here] >= 0
            pairs = zip(contents(batch)[here], written, strict=True)
            found += (inside := [what for what, real in pairs if real])
            kinds = Counter(kind for kind, _ in inside)
            kinds["noisy"] = int((batch.stream[here][written] > 0).sum())
            assert all(number <= limits[kind] for kind, number in kinds.items())
        assert found == contents(short)


def test_documents_that_no_row_holds_are_refused_and_counted(tmp_path: Path, tokenizer: Tokenizer):
    samples = (
        (f"s{i}", {"json": {"captions": ["one " * (200 if i % 3 == 0 else 2)]}, "png": png(i)})
        for i in range(12)
    )
    write_shards(tmp_path, "a", samples)
    loader = Loader(config(tmp_path, tokenizer, "image_to_text", loading={"most_lost": 0.5}))
    rows = [row for step in steps(loader, 12) for row in step]
    sums = totals(loader)
    packed = sum(int(row.doc.max()) + 1 for row in rows)
    assert packed == sums["documents"] == sums["image_to_text"] - sums["length"]
    assert 0.2 < sums["length"] / sums["image_to_text"] < 0.5
    listed = loader.lost()
    assert len(listed) == sums["length"]
    assert all(e["source"] == "image_to_text" and e["reason"] == "length" for e in listed)
    assert not loader.lost()
    # A refused document closes no row: each holds as many of the others as fit.
    short = 16 + len(tokenizer.answer("one one").ids)
    assert {int(row.doc.max()) + 1 for row in rows} == {ROW // short}


def test_data_of_which_nothing_fits_are_an_error(data: Path, tokenizer: Tokenizer):
    with pytest.raises(UserError, match=r"11 of 11 samples cannot be used \(11 length\)") as told:
        steps(Loader(config(data, tokenizer, row_length=17)), 1)
    assert re.search(
        r"a document of \d+ tokens; a row holds 17: raise row_length$", str(told.value)
    )


def test_a_document_beyond_a_capacity_names_its_key() -> None:
    limit = Counts(100, text=100, label=100, image=64, noisy=64, predict=100)
    told = Counts(90, text=8, image=82, noisy=64).beyond(limit)
    assert told == "82 image tokens; a row holds 64: raise data.capacity.image"


# Errors


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_sample_is_one_line_also_from_a_worker(
    tmp_path: Path, tokenizer: Tokenizer, workers: int
):
    write_shards(tmp_path, "a", [("s0", {"json": {"label": 0}, "png": b"no picture"})])
    broken = Loader(config(tmp_path, tokenizer, loading={"workers": workers}))
    with pytest.raises(UserError) as caught:
        steps(broken, 1)
    assert f"the last: {tmp_path}/a-00000.tar:s0.png: not a readable picture" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_ranks_and_workers_must_divide(data: Path, tokenizer: Tokenizer):
    with pytest.raises(UserError, match=r"data\.rows: 4 .* 3 ranks x 1 micro_rows"):
        Loader(config(data, tokenizer), 0, 3)


def test_resuming_with_other_data_is_refused(
    data: Path, tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    layout, state = saved([Loader(config(data, tokenizer))])

    def resume(*arguments: Any, **options: Any) -> None:
        Loader(config(*arguments, **options)).resume(layout, state)

    source = config(data, tokenizer).data.sources[0].model_dump()
    for changes, said in (
        ({"loading": {"rows": 8}}, r"data\.rows: the checkpoint has 4 row slots"),
        ({"tasks": "text_to_image"}, r"data\.sources: "),
        ({"loading": {"block": 4}}, r"data\.block: .* 16, the config has 4"),
        ({"seed": 1}, "seed: .* 0, the config has 1"),
        ({"loading": {"sources": [{**source, "flip": False}]}}, "class_to_image: .* flip True, "),
        (
            {"loading": {"sources": [{**source, "task": "text_to_image"}]}},
            "class_to_image: .* task class_to_image, ",
        ),
    ):
        with pytest.raises(UserError, match=said):
            resume(data, tokenizer, **changes)
    with caplog.at_level(logging.WARNING):
        resume(data, tokenizer, loading={"sources": [{**source, "weight": 3.0}]})
    assert "class_to_image: goes on with weight 3, not 1" in caplog.text
    with pytest.raises(UserError) as caught:
        resume(data, tokenizer, seed=1, loading={"rows": 8, "block": 4})
    assert {line.split(":")[0] for line in str(caught.value).splitlines()} == {
        "seed", "data.rows", "data.block",
    }  # fmt: skip
    copied = Tokenizer(shutil.copy(tokenizer.path, tmp_path / "elsewhere.model"))
    resume(data, copied)
    changed = tmp_path / "changed.model"
    changed.write_bytes(tokenizer.path.read_bytes() + b"\x2a\x00")  # an empty part more
    with pytest.raises(UserError, match=r"text\.tokenizer: .* other contents"):
        resume(data, Tokenizer(changed))
    old = {key: value for key, value in layout.items() if key != "tokenizer"}
    Loader(config(data, Tokenizer(changed))).resume(old, state)  # an older one does not say
    other = tmp_path / "other"
    write_shards(
        other,
        "a",
        ((f"s{i}", {"json": {"label": i}, "png": png(99)}) for i in range(SAMPLES)),
        per_shard=7,
    )
    with pytest.raises(UserError, match="its shards have other names or contents"):
        resume(other, tokenizer)
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for shard in list(data.glob("a-*.tar"))[1:]:
        shutil.copy(shard, fewer)
    with pytest.raises(UserError, match=r"class_to_image: has \d+ samples, but had 30"):
        resume(fewer, tokenizer)


def test_missing_shards_name_the_source(data: Path, tokenizer: Tokenizer):
    settings = config(data / "nowhere", tokenizer, "text_to_image")
    with pytest.raises(UserError, match=r"no shards match .*nowhere.*; data source text_to_image"):
        Loader(settings)


def test_one_bad_sample_among_many_is_left_out_and_another_takes_its_place(
    data: Path, tmp_path: Path, tokenizer: Tokenizer
):
    """Whichever sample it is, ranks and workers agree, and the documents stay those of the rest."""
    samples = (
        (f"s{i}", {"json": {"label": i}, "png": png(i) if i != 3 else b"no picture"})
        for i in range(SAMPLES)
    )
    write_shards(tmp_path, "a", samples, per_shard=7)
    loading = {"most_lost": 0.1, "workers": 2}
    loader = Loader(config(tmp_path, tokenizer, loading=loading))
    rows = steps(loader, 12)
    seen = Counter(label for step in rows for row in step for label in labels(row))
    assert 3 not in seen
    assert set(seen) == set(range(SAMPLES)) - {3}
    sums = totals(loader)
    assert sums["picture"] == len(loader.lost()) >= 1
    assert sums["documents"] == sum(seen.values()) == sums["class_to_image"] - sums["picture"]
    for step, others in zip(rows, steps(Loader(config(tmp_path, tokenizer)), 12), strict=True):
        assert all(map(same, step, others))


def test_many_shards_hold_neither_files_nor_memory(tmp_path: Path):
    """300 shards in a process that may open 20 files more; at most 64 indexes are held."""
    samples = ((f"s{i}", {"json": {"label": i}, "png": png(i)}) for i in range(3))
    (shard,) = write_shards(tmp_path, "one", samples)
    for n in range(300):
        os.link(shard, tmp_path / f"a-{n:05d}.tar")
        shutil.copyfile(f"{shard}.index", tmp_path / f"a-{n:05d}.tar.index")
    with limited(resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd")) + 20):
        shards = Shards(f"{tmp_path}/a-*.tar")
        blocks = [shards.block(n, 0, 3) for n in range(300)]
        read = [shards.read(n, 1, block=block).json()["label"] for n, block in enumerate(blocks)]
    assert read == [1] * 300
    assert len(shards._open) <= 64


def test_a_process_that_can_open_no_more_files_does_not_take_data_for_damaged(data: Path):
    shards = Shards(f"{data}/a-*.tar")
    refused = pytest.raises(UserError, match="Too many open files: raise the limit")
    with limited(resource.RLIMIT_NOFILE, 3), refused as caught:
        shards[0]
    assert not isinstance(caught.value, CorruptSample)
