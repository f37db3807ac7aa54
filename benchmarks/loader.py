"""Our loader beside webdataset's own pipeline, on the same shards.

    python -m benchmarks.loader                        # on pictures made for it
    python -m benchmarks.loader --shards "data/*.tar"  # on one's own

Compared are samples a second (decode on and off, in this process and with workers), the time to
the first sample when a run resumes in the middle of an epoch, and the memory of an open data set of
1,000 shards. Both sides give the same: members as bytes, or pictures as the square pixels that
`prepare` makes, shuffled, with our checksums checked and theirs not there. Rounds alternate; a
figure is the median of its rounds, a ratio the median of the rounds' ratios.
"""

import io
import json
import os
import re
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image as PILImage
from PIL import ImageFilter
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks import options
from mmfusion.codecs.image import encoded, prepare
from mmfusion.config import Config
from mmfusion.data_pipelines import storage
from mmfusion.data_pipelines.loader import Loader
from mmfusion.data_pipelines.sampler import Order
from mmfusion.data_pipelines.shards import Shards, write_shards

SLOTS, BLOCK, SIZE = 64, 16, 256  # a rank of 4 on mm_xl has 64 row slots


def make_pictures(folder: Path, count: int) -> str:
    """Shards of smooth coloured noise, 500 x 375 pixels, about 60 kB each: like photos."""

    def samples() -> Iterator[tuple[str, dict[str, Any]]]:
        rng = np.random.default_rng(0)
        for n in range(count):
            noise = PILImage.fromarray(rng.integers(0, 256, (375, 500, 3), np.uint8))
            file = io.BytesIO()
            noise.filter(ImageFilter.GaussianBlur(1)).save(file, "jpeg", quality=90)
            yield f"{n:06d}", {"json": {"label": n}, "jpg": file.getvalue()}

    write_shards(folder, "a", samples(), per_shard=250)
    return f"{folder}/a-*.tar"


class Ours(IterableDataset):
    """Samples as training takes them: row slots in turn, blocks, checksums."""

    def __init__(self, pattern: str, decode: bool) -> None:
        self.shards, self.decode = Shards(pattern), decode
        self.order = Order(self.shards.sizes, SLOTS, BLOCK, 0, "a")

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        slots = range(SLOTS)[worker.id :: worker.num_workers] if worker else range(SLOTS)
        held: dict[int, tuple[tuple, Any]] = {}
        for draw in range(len(self.shards) // SLOTS):
            for slot in slots:
                _, shard, number, block = self.order.place(slot, draw)
                if slot not in held or held[slot][0] != (shard, *block):
                    held[slot] = (shard, *block), self.shards.block(shard, *block)
                sample = self.shards.read(shard, number, block=held[slot][1])
                yield prepare(sample.picture(), SIZE, 3) if self.decode else dict(sample)


def theirs(pattern: str, decode: bool) -> IterableDataset:
    """The pipeline of webdataset as its README has it."""
    files = storage.expand(pattern)
    data = webdataset.WebDataset(files, shardshuffle=len(files), seed=0).shuffle(1000)
    if not decode:
        return data
    return data.decode("pil").to_tuple("jpg;jpeg;png").map(square)


def square(sample: tuple[PILImage.Image]) -> np.ndarray:
    """What webdataset decoded, as the square that our side makes."""
    return prepare(sample[0], SIZE, 3)


def first(rows: list) -> Any:
    """A batch of one."""
    return rows[0]


def rate(
    make: Callable[[str, bool], Any], pattern: str, decode: bool, workers: int, count: int
) -> float:
    """Samples a second over `count` samples, start-up included."""
    start = time.perf_counter()
    data = DataLoader(make(pattern, decode), batch_size=1, num_workers=workers, collate_fn=first)
    return sum(1 for _ in islice(data, count)) / (time.perf_counter() - start)


def throughput(pattern: str, rounds: int, count: int) -> None:
    """Samples a second, side by side; sides take turns at being the first."""
    sides: dict[str, Callable[[str, bool], Any]] = {"ours": Ours, "webdataset": theirs}
    many = len(storage.expand(pattern)) > 1  # webdataset's workers share shards
    for decode, workers in product((True, False), (0, 2) if many else (0,)):
        found: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(-1, rounds):
            for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                samples = count if turn >= 0 else min(count, 200)  # files read, modules loaded
                figure = rate(sides[name], pattern, decode, workers, samples)
                found[name] += [figure] * (turn >= 0)
        ratios = [a / b for a, b in zip(*found.values(), strict=True)]
        told: dict[str, Any] = {name: round(median(values)) for name, values in found.items()}
        told |= {"ratio": round(median(ratios), 2), "ratios": [round(r, 2) for r in ratios]}
        print(json.dumps({"decode": decode, "workers": workers, **told}), flush=True)


# Resume and memory, at 1,000 shards


def many_shards(folder: Path, shards: int, samples: int) -> str:
    """One shard of small samples under many names: hard links, each with an index."""
    png = encoded(PILImage.new("L", (8, 8)))
    members = ({"cls": str(n % 1000).encode(), "png": png} for n in range(samples))
    tiny = ((f"{n:06d}", member) for n, member in enumerate(members))
    (shard,) = write_shards(folder / "one", "a", tiny, per_shard=samples)
    (folder / "many").mkdir()
    for n in range(shards):
        path = folder / "many" / f"a-{n:05d}.tar"
        os.link(shard, path)
        shutil.copyfile(f"{shard}.index", f"{path}.index")
    return f"{folder}/many/a-*.tar"


def resident() -> float:
    """MiB of memory of this process; the pages of mapped files, which all share, left out."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(n) for n in re.findall(r"^Anonymous: *(\d+)", text, re.M)) / 1024


def measure(name: str, work: Callable[[str], Any], pattern: str) -> None:
    """Print the seconds and private MiB that some work takes, in a process of its own."""
    child = os.fork()
    if child == 0:
        before, start = resident(), time.perf_counter()
        kept = work(pattern)
        seconds, more = time.perf_counter() - start, resident() - before
        print(name, json.dumps({"seconds": round(seconds, 3), "MiB": round(more, 3)}), flush=True)
        del kept
        os._exit(0)
    os.waitpid(child, 0)


def resume_ours(pattern: str) -> Any:
    """Open the shards, go on in the middle of an epoch, and pack the first step's rows."""
    source = {"name": "a", "task": "class_to_image", "shards": pattern}
    config = {
        "row_length": 128,
        "image": {"size": 8, "channels": 1, "patch": 2},
        "classes": [str(n) for n in range(1000)],
        "decoder": {"width": 32, "depth": 1, "heads": 2},
        "data": {"rows": SLOTS, "micro_rows": SLOTS, "sources": [source]},
        "train": {"output": "unused", "steps": 1, "lr": 1e-3},
    }
    loader = Loader(Config.model_validate(config))
    middle = len(loader.sources[0].shards) // SLOTS // 2
    state = [middle, *[0] * (len(loader.layout()["columns"]) - 2), middle]
    loader.resume(loader.layout(), {slot: list(state) for slot in range(SLOTS)})
    next(iter(loader))
    return loader


def walk_ours(pattern: str) -> Any:
    """50,000 samples, from all over the shards."""
    data = Ours(pattern, decode=False)
    deque(islice(data, 50_000), maxlen=0)
    return data


def resume_theirs(pattern: str) -> Any:
    """It saves no place: a run that goes on reads half the epoch again."""
    files = storage.expand(pattern)
    data = webdataset.WebDataset(files, shardshuffle=len(files), seed=0)
    deque(islice(data, len(Shards(files[0])) * len(files) // 2), maxlen=0)
    return data


def main() -> None:
    """Run it all; each figure is a line."""
    parser = options("loader", __doc__)
    parser.add_argument("--shards", help="glob of shards with pictures; default: made for it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=1000, help="of each round")
    parser.add_argument("--many", type=int, default=1000, help="shards for resume and memory")
    parser.add_argument("--each", type=int, default=1000, help="samples in each of these")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pattern = given.shards or make_pictures(folder / "pictures", given.samples)
        throughput(pattern, given.rounds, given.samples)
        many = many_shards(folder, given.many, given.each)
        measure("resume, ours", resume_ours, many)
        measure("50,000 samples, ours", walk_ours, many)
        measure("resume, webdataset", resume_theirs, many)


if __name__ == "__main__":
    main()
