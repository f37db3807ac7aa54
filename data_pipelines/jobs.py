"""What the preparation jobs share: a bar, threads, and bad items that do not stop the good ones."""

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from mmfusion.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger("mmfusion")
THREADS = min(8, os.cpu_count() or 1)  # decoding and resizing run outside Python's lock
MOST_WARNINGS = 10  # bad items named one by one; all are counted


def each(items: Sequence[T], make: Callable[[T], R], what: str) -> Iterator[R]:
    """`make(item)` of each item, in order, made by threads a little ahead, with a bar.

    An item for which `make` raises UserError is skipped: a warning says why, the last one how many.

    Raises:
        UserError: there are no items, or none could be read.
    """
    if not items:
        raise UserError(f"{what}: there is nothing to read")
    reasons: list[str] = []
    ahead: deque[Future[R]] = deque()
    rest = iter(items)
    with ThreadPoolExecutor(THREADS) as pool, tqdm(total=len(items), desc=what) as bar:
        while True:
            for item in rest:
                ahead.append(pool.submit(make, item))
                if len(ahead) >= 4 * THREADS:
                    break
            if not ahead:
                break
            try:
                made = ahead.popleft().result()
            except UserError as error:
                reasons.append(str(error))
                if len(reasons) <= MOST_WARNINGS:
                    log.warning("skipped: %s", error)
            else:
                yield made
            bar.update()
    if len(reasons) == len(items):
        raise UserError(f"{what}: not one of {len(items)} can be read; the first: {reasons[0]}")
    if reasons:
        log.warning("%s: skipped %d of %d items", what, len(reasons), len(items))


def json_lines(path: Path) -> list[tuple[int, bytes]]:
    """The lines of a JSONL that hold something, with their numbers from 1.

    Raises:
        UserError: the file cannot be read or is empty.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    found = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f"{path}: holds no lines; expected one JSON object a line")
    return found


def facts(line: bytes, where: str) -> dict[str, Any]:
    """The object on a line of a JSONL.

    Raises:
        UserError: it is not one.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: expected a JSON object")
    return found


def new_shards(folder: Path, name: str) -> None:
    """Make sure that shards of a name would not mix with older ones.

    Raises:
        UserError: the folder has shards of that name.
    """
    if next(folder.glob(f"{name}-*.tar"), None):
        raise UserError(
            f"{folder}: already has shards {name}-*.tar; delete them, or give another --output or "
            "--name"
        )
