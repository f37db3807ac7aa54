"""What the preparation jobs share: shards made side by side by any number of processes and hosts.

A job is a list of parts, and each part becomes one shard. The same command may run many times at
once (`torchrun --nproc-per-node 8 -m mmfusion data ...`) and over again: a process claims a shard
by a lock, which goes when the process goes, makes it, and renames it into place. What is there is
left alone. Items that cannot be used are left out, counted by reason and listed in `lost/`.
"""

import hashlib
import json
import logging
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from tqdm import tqdm

from mmfusion import files, jsonl, launcher, locks
from mmfusion.errors import CorruptSample, UserError, printable, resumable
from mmfusion.rng import generator

from . import storage
from .images import ImageReader
from .shards import Members, write_shard
from .storage import LOST

A = TypeVar("A")
T = TypeVar("T")
Sample = tuple[str, Members]

log = logging.getLogger("mmfusion")
THREADS = min(8, os.cpu_count() or 1)  # decoding and resizing run outside Python's lock
MOST_WARNINGS = 10  # bad items named one by one; all are listed
TOLERATED = 10  # losses that are too few to say anything about a rate
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} shards, {remaining} left{postfix}"


@dataclass
class Made:
    """What a job did."""

    shards: int = 0  # that are there now
    new: int = 0  # of them, by this process
    missing: int = 0  # other processes are still at work on them
    items: int = 0  # that this process looked at
    lost: Counter = field(default_factory=Counter)  # of all items, by reason


class ShardJob(Generic[T]):
    """What becomes one shard: items by number, each made when it is asked for, by any thread."""

    def __init__(self, items: "Sequence[int] | np.ndarray", make: Callable[[int], T]) -> None:
        self.items, self.make = items, make

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> T:
        return self.make(int(self.items[place]))


Parts = dict[Path, Callable[[], ShardJob[T]]]  # shard to be made -> what opens its part


@dataclass(frozen=True)
class Output:
    """Where a corpus goes, and how its pictures and samples become shards."""

    folder: Path
    name: str = "train"  # how the shards' names begin
    reader: ImageReader = ImageReader()  # noqa: RUF009 (frozen)
    seed: int | None = 0  # of the shuffle; None keeps the order
    per_shard: int = 2000
    most_lost: float = 0.1  # share of the items that may be unusable

    def parts(self, jobs: Iterable[Callable[[], ShardJob[T]]]) -> Parts[T]:
        """A shard for each job, `name-00000.tar` and so on."""
        return {self.folder / f"{self.name}-{n:05d}.tar": job for n, job in enumerate(jobs)}

    def cut(self, order: np.ndarray, make: Callable[[int], T]) -> Parts[T]:
        """Items in an order, as parts of `per_shard`."""
        starts = range(0, len(order), self.per_shard)
        pieces = (order[start : start + self.per_shard] for start in starts)
        return self.parts(partial(ShardJob, piece, make) for piece in pieces)

    def write(
        self, parts: Parts[list[Sample]], source: str | Path, inputs: str, **settings: Any
    ) -> Made:
        """Make the shards of a source; `inputs` is the digest of its files."""
        given = {"from": printable(str(source)), "seed": self.seed, "per_shard": self.per_shard}
        given |= {**asdict(self.reader), "input_files": inputs}
        given |= {key: str(v) if isinstance(v, Path) else v for key, v in settings.items()}
        return write_parts(parts, self.name, str(source), given, most_lost=self.most_lost)


def shuffled(count: int, seed: int | None) -> np.ndarray:
    """The numbers from 0, shuffled by `seed`; None keeps their order.

    Training takes neighbours in a shard near each other in time.
    """
    return np.arange(count) if seed is None else generator("shards", seed).permutation(count)


@resumable("shards that are whole")
def write_parts(
    parts: Parts[T],
    name: str,
    what: str,
    settings: dict[str, Any],
    finish: Callable[[Iterator[T]], Iterable[Sample]] | None = None,
    header: dict[str, Any] | None = None,
    most_lost: float = 0.1,
) -> Made:
    """Make those of the shards that are not there yet and that nobody else is making.

    An item is made into a list of samples (key, members), or into something else that `finish`
    makes samples of, all those of a shard at once.

    Args:
        parts: of which shards are made.
        name: of the file beside them that keeps their settings.
        what: shown beside the bar, and in messages.
        settings: JSON of all that the shards depend on. None are made beside those of others.
        finish: items to samples.
        header: kept in each shard.
        most_lost: share of the items that may be unusable.
    """
    if not parts:
        raise UserError(f"{what}: there is nothing to read")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"--name {name!r}: letters, digits, `_`, `-` and `.` alone")
    _same_settings(list(parts), name, settings)
    made = Made()
    rank, world, *_ = launcher.place()
    paths = list(parts)
    first = rank * len(paths) // world
    bar = tqdm(total=len(paths), desc=what, unit="shard", disable=rank > 0, bar_format=BAR)
    with bar, ThreadPoolExecutor(THREADS) as pool:
        for number in [*range(first, len(paths)), *range(first)]:
            path = paths[number]
            with claim(path, static=number % world == rank) as mine:
                if not mine:
                    bar.update(path.exists())
                    continue
                lost: list[dict[str, Any]] = []
                items = _each(parts[path](), pool, bar, made, lost, most_lost, what)
                samples = finish(items) if finish else (s for found in items for s in found)  # type: ignore[attr-defined]
                write_shard(path, _listing(samples, path, lost), header)
                made.new += 1
    made.shards = sum(path.exists() for path in paths)
    made.missing = len(paths) - made.shards
    made.lost = Counter(entry["reason"] for path in paths for entry in lost_items(path))
    return made


def ahead(pool: ThreadPoolExecutor, work: Callable[[A], T], items: Iterable[A]) -> Iterator[T]:
    """What threads make of the items, in order, no more than a few of them ahead."""
    waiting: deque[Future[T]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > 2 * THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _each(
    part: ShardJob[T],
    pool: ThreadPoolExecutor,
    bar: tqdm,
    made: Made,
    lost: list[dict[str, Any]],
    most_lost: float,
    what: str,
) -> Iterator[T]:
    """The items of a part in order, made by threads a little ahead; what is damaged, to `lost`."""

    def make(number: int) -> T | CorruptSample:
        try:
            return part[number]
        except CorruptSample as error:
            return error

    before, finished = made.items, bar.n
    for number, found in enumerate(ahead(pool, make, range(len(part)))):
        made.items += 1
        if not isinstance(found, CorruptSample):
            yield found
        else:
            entry = {"item": int(part.items[number]), "reason": found.reason}
            lost.append({**entry, "what": str(found)})
            made.lost[found.reason] += 1
            total = made.lost.total()
            if total <= MOST_WARNINGS:
                log.warning("left out: %s", found)
            most = TOLERATED + most_lost * (before + len(part))  # of the items up to its end
            if total > most or total == len(part) == made.items:
                raise UserError(
                    f"{what}: {total} of {made.items} items cannot be used ({reasons(made.lost)}); "
                    f"the last: {found}"
                )
        bar.n = finished + (number + 1) / len(part)
        bar.update(0)


def _listing(samples: Iterable[Sample], path: Path, lost: list[dict[str, Any]]) -> Iterator[Sample]:
    """The samples; after the last one, what was left out is written down."""
    yield from samples
    listed = path.parent / LOST / f"{path.stem}.jsonl"
    if lost:
        files.write(listed, "".join(json.dumps(entry) + "\n" for entry in lost).encode())
    else:
        files.remove(listed)


def lost_items(shard: Path) -> list[dict[str, Any]]:
    """What was left out of a shard when it was made: `item`, `reason` and `what` of each."""
    try:
        return list(jsonl.objects(shard.parent / LOST / f"{shard.stem}.jsonl"))
    except OSError:
        return []


def reasons(counts: Counter) -> str:
    """Losses by reason: "3 picture, 1 caption"."""
    return ", ".join(f"{n} {reason}" for reason, n in counts.most_common())


@contextmanager
def claim(path: Path, static: bool = True) -> Iterator[bool]:
    """Whether this process is the one to make a file: it is not there, and nobody else is at it.

    The claim is a lock, and goes with its process. Where the file system has no locks, `static`
    says whose it is.
    """
    if path.exists():
        yield False
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.locked(path, wait=False) as held:
        mine = static if held is None else held
        if held:
            files.remove_leftovers(path)
        yield mine and not path.exists()


def _same_settings(paths: list[Path], name: str, settings: dict[str, Any]) -> None:
    """Write the settings beside the shards, or make sure that they are those."""
    folder = paths[0].parent
    path = folder / f"{name}.settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(settings, indent=1, ensure_ascii=False)
    data = text.encode(errors="backslashreplace")  # of names that are not UTF-8; JSON reads it so
    numbered = re.compile(re.escape(name) + r"-\d{5,}\.tar")
    there = any(p in paths or numbered.fullmatch(p.name) for p in folder.glob("*.tar"))
    if not path.exists():
        if there:
            raise UserError(
                f"{folder}: already has shards {name}-*.tar of which nothing says how they were "
                "made; delete them, or give another --output or --name"
            )
        files.create(path, data)
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise ValueError("no settings")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it and its shards") from None
    after = json.loads(text)
    alike = not before or before.keys() == after.keys()  # or it is another program's
    if before != after and alike and not there and not any(map(_under_way, paths)):
        files.write(path, data)  # those of a run that came to nothing
    elif before != after:
        changed = [k for k in {**before, **after} if before.get(k) != after.get(k)]
        raise UserError(
            f"{folder}: its shards {name}-*.tar were made with other settings ("
            + ", ".join(f"{k}: {before.get(k)!r}, now {after.get(k)!r}" for k in changed[:3])
            + f"); delete them and {path.name}, or give another --output or --name"
        )


def _under_way(path: Path) -> bool:
    """Whether a process is making a shard; a killed one leaves a lock that is free."""
    if not path.with_name(f".{path.name}.lock").exists():
        return False
    with locks.locked(path, wait=False) as held:
        return held is False


def digest(files: Iterable[str | Path | None], listing: Iterable[bytes] = ()) -> str:
    """What shards are made of, as 16 hex digits for their settings.

    They change when a file's name, size or time, or what is listed, changes. Nothing is read of the
    files. Of a folder, all files in it count; of a URL, only its size.
    """
    found = hashlib.sha256()
    for given in files:
        for path in _files(str(given)) if given is not None else ("",):
            found.update(f"{path}\0{_state(path)}\0".encode("utf-8", "surrogateescape"))
    for entry in listing:
        found.update(b"%d\0%b" % (len(entry), entry))
    return found.hexdigest()[:16]


def _files(path: str) -> list[str]:
    if storage.is_remote(path) or not os.path.isdir(path):
        return [path]
    return sorted(os.path.join(place, name) for place, _, names in os.walk(path) for name in names)


def _state(path: str) -> str:
    if not path or storage.is_remote(path):
        return path and str(storage.size(path))
    found = os.stat(path)
    return f"{found.st_size} {found.st_mtime_ns}"
