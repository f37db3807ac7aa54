"""Bad data neither crash a run nor run code: a table of kinds, and random mutations.

    python -m pytest -m slow tests/test_bad_data.py     # 10,000 mutations

All kinds lie among good samples. All of these come; what is odd is used, or lost with its reason
and listed with its shard and key.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_pictures import FINE, LOST, noise
from bad_samples import CLASS, JSON_KINDS, LABEL, LATENT_KINDS, Kind, odd
from bad_shards import SHARDS
from helpers import contents
from material import encoded, jsonl, make_vae, npy, save, saved
from mutations import RUNS
from ranks import CHECKOUT, environment
from test_loader import config, labels, totals

from mmfusion.codecs.image import open_image, prepare
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import ImageConfig
from mmfusion.data_pipelines.converters.captions import write_captions
from mmfusion.data_pipelines.converters.interleaved import write_interleaved
from mmfusion.data_pipelines.images import ImageReader
from mmfusion.data_pipelines.latents import write_latents
from mmfusion.data_pipelines.loader import Loader
from mmfusion.data_pipelines.shard_writer import Output
from mmfusion.data_pipelines.shards import Shards, write_shard
from mmfusion.errors import REASONS, CorruptSample

GOOD = range(6)
VAE = {
    "codec": "vae", "vae": "unused", "size": 16, "channels": 3, "patch": 2, "latent_channels": 4,
    "downsampling": 2,
}  # fmt: skip

# What Python itself says it does: the only way to notice code that leaves no trace.
watched: list[str] | None = None


def _watch(event: str, arguments: tuple) -> None:
    if watched is None:
        return
    if event in RUNS:
        watched.append(f"{event} {arguments!r}")
    elif event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        if writes and "__pycache__" not in str(path):
            watched.append(f"write {path}")


sys.addaudithook(_watch)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; nothing is run in it, and nothing but indexes written."""
    global watched
    place = tmp_path / "data"
    place.mkdir()
    monkeypatch.chdir(place)
    yield place
    seen, watched = watched or [], None
    assert not [what for what in seen if not (what.startswith("write ") and ".index" in what)]
    assert not (place / "ran").exists()


def good(number: int) -> tuple[str, dict[str, Any]]:
    facts = {
        "label": number,
        "captions": [f"good {number}"],
        "content": [{"image": "png"}, {"text": f"good {number}"}, {"answer": "yes"}],
    }
    return f"good{number}", {"json": facts, "png": encoded(number), "moments.npy": npy(odd())}


def pictured(data: bytes, reason: str | None = None, said: str = "") -> Kind:
    return Kind(CLASS, {"json": {"label": LABEL}, "png": data}, reason, said)


GROUPS: dict[str, dict[str, Kind]] = {"latents": LATENT_KINDS}
GROUPS["pictures"] = {name: pictured(data()) for name, (data, _) in FINE.items()}
for name, (data, said) in LOST.items():
    GROUPS["pictures"][name] = pictured(data(), "picture", said)
for name, kind in JSON_KINDS.items():
    GROUPS.setdefault(kind.task, {})[name] = kind


@pytest.mark.parametrize("group", GROUPS)
def test_samples(folder: Path, tokenizer: Tokenizer, group: str) -> None:
    """All good samples come, and each odd one is used or lost as it should."""
    global watched
    kinds = GROUPS[group]
    task = next(kind.task for kind in kinds.values())
    write_shard(folder / "a-good.tar", map(good, GOOD))
    odd = [(f"odd{n}", kind.members) for n, kind in enumerate(kinds.values())]
    write_shard(folder / "a-odd.tar", odd)
    source = {"name": "a", "task": task, "shards": f"{folder}/a-*.tar"}
    loading = {"most_lost": 1.0, "rows": 2, "sources": [source]}
    changes = {"image": VAE} if group == "latents" else {}
    settings = config(folder, tokenizer, task, loading, **changes)
    watched = []
    loader = Loader(settings)
    came, text = set[int](), ""
    rows = iter(loader)
    while totals(loader)["a"] < 3 * (len(GOOD) + len(odd)):  # all of some epochs
        for batch in next(rows):
            for name in ("latent", "target", "weight", "timestep"):
                assert torch.isfinite(getattr(batch, name)).all()
            came.update(labels(batch))
            text += tokenizer.decode([number for kind, number in contents(batch) if kind == "text"])
    assert (came if task == CLASS else {n for n in GOOD if f"good {n}" in text}) >= set(GOOD)
    assert LABEL in came if task == CLASS else "odd" in text
    lost = loader.lost()
    assert len(lost) == sum(totals(loader)[reason] for reason in REASONS)
    for number, (name, kind) in enumerate(kinds.items()):
        start = re.compile(rf"{re.escape(str(folder))}/a-odd\.tar:odd{number}(?!\d)")
        listed = [entry for entry in lost if start.match(entry["what"])]
        assert bool(listed) == (kind.reason is not None), (name, listed)
        for entry in listed:
            assert entry["what"].isprintable(), name
            assert len(entry["what"]) <= 1000, name
            assert entry["reason"] == kind.reason, name
            assert kind.said in entry["what"], name


@pytest.mark.parametrize("name", FINE)
def test_pictures_that_are_used(name: str) -> None:
    data, wanted = FINE[name]
    for channels in (1, 3):
        corner = prepare(open_image(data(), "here"), 8, channels)[0, 0]
        grey = np.dot(wanted, (0.299, 0.587, 0.114))
        assert np.abs(corner - (wanted if channels == 3 else grey)).max() < 3


@pytest.mark.parametrize("name", SHARDS)
def test_shards(folder: Path, name: str) -> None:
    global watched
    kind = SHARDS[name]
    write_shard(folder / "a-good.tar", map(good, GOOD))
    kind.make(folder / "a-odd.tar")
    watched = []
    shards = Shards(f"{folder}/a-*.tar")
    came = {s.json().get("label") for s in shards if {"png", "jpg"} & {*s}}
    assert came >= set(GOOD)
    assert (LABEL in came) == kind.used
    lost = [part.at(path) for path, part in shards.lost]
    assert all(str(e).isprintable() and f"{folder}/a-odd.tar" in str(e) for e in lost)
    assert {e.reason for e in lost} == {kind.reason} - {None}
    assert any(kind.said in str(e) for e in lost) == bool(lost)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "gif", "bmp", "ppm"])
def test_pictures_cut_anywhere_are_refused(format: str) -> None:
    data = saved(noise, format)
    for end in range(0, len(data) - 12, max(1, len(data) // 60)):
        with pytest.raises(CorruptSample, match="here: not a readable picture"):
            open_image(data[:end], "here")


# The same in preparation


@pytest.fixture
def listed(folder: Path) -> Path:
    """A JSONL of 120 plain pictures, and of all odd ones."""
    for number, (data, _) in enumerate({**FINE, **LOST}.values()):
        save(folder / f"p/{number}.jpg", data())
    for n in range(120):
        save(folder / f"p/plain{n}.png", encoded(0))
    lines = [{"image": f"p/plain{n}.png", "caption": "plain"} for n in range(120)]
    lines += [{"image": f"p/{n}.jpg", "caption": "odd"} for n in range(len(FINE) + len(LOST))]
    return jsonl(folder / "list.jsonl", *lines)


@pytest.mark.parametrize("size", [None, 8])
def test_captions_of_bad_pictures(listed: Path, size: int | None) -> None:
    made = write_captions(
        listed, Output(listed.parent / "out", reader=ImageReader(size), seed=None)
    )
    shards = Shards(f"{listed.parent}/out/*.tar")
    assert made.lost == {"picture": len(LOST)}
    assert len(shards) == 120 + len(FINE)
    for sample, (_, wanted) in zip(list(shards)[120:], FINE.values(), strict=False):
        corner = prepare(sample.picture(), 8, 3)[0, 0]
        assert np.abs(corner - np.array(wanted)).max() < 6


def test_documents_of_bad_pictures(folder: Path) -> None:
    for number, (data, _) in enumerate(LOST.values()):
        save(folder / f"p/{number}.jpg", data())
    save(folder / "p/good.jpg", encoded(0))
    odd = [f"p/{n}.jpg" for n in range(9)]
    odd += ["../../etc/passwd", "/dev/zero", "\ud800", "\0", "pipe:touch ran", "p", "", "a" * 5000]
    good = [{"content": [{"image": "p/good.jpg"}, {"answer": "a"}]}] * 100
    bad = [{"content": [{"image": path}, {"answer": "a"}]} for path in odd]
    made = write_interleaved(
        jsonl(folder / "l.jsonl", *good, *bad), Output(folder / "out", seed=None)
    )
    assert made.lost == {"picture": len(odd)}
    assert len(Shards(f"{folder}/out/*.tar")) == 100


def test_latents_of_bad_pictures(folder: Path, tmp_path: Path) -> None:
    kinds = {**FINE, **LOST}
    samples = (
        (f"a:{n}", {"json": {"label": n}, "png": data()})
        for n, (data, _) in enumerate(kinds.values())
    )
    write_shard(folder / "a-odd.tar", samples)
    make_vae(tmp_path / "vae")
    image = ImageConfig.model_validate({**VAE, "vae": str(tmp_path / "vae"), "latent_scale": 0.5})
    made = write_latents(f"{folder}/a-odd.tar", folder / "out", image, most_lost=1.0)
    assert made.lost == {"picture": len(LOST)}
    found = list(Shards(f"{folder}/out/*.tar"))
    assert [sample.key for sample in found] == [f"a:{n}" for n in range(len(FINE))]
    assert all(np.isfinite(sample.array("moments.npy")).all() for sample in found)


# Mutations


def mutate(count: int, seed: int, folder: Path) -> dict[str, Any]:
    ended = subprocess.run(
        [sys.executable, str(CHECKOUT / "tests/mutations.py"), str(count), str(seed), str(folder)],
        cwd=CHECKOUT, env=environment(PYTHONPATH=str(CHECKOUT)), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "Warning" not in ended.stderr
    assert "control" not in ended.stdout
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["ran"] == []
    assert sum(found["cases"].values()) == count
    assert found["megabytes"] < 1000
    return found


def test_mutations(tmp_path: Path) -> None:
    outcomes = mutate(300, 0, tmp_path)["outcomes"]
    assert outcomes["document made"] > 500  # or this would test nothing but refusals
    assert {"shard refused", "listed: shard", "lost: member"} <= set(outcomes)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_mutations(tmp_path: Path) -> None:
    print(json.dumps(mutate(10_000, 1, tmp_path)))
