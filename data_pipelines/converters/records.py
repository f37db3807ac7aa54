"""Files of records: JSONL, JSONL.gz and parquet, one dictionary a record, read by number.

Only the stretch that a record lies in is read with it: some hundred lines of a gzip, a row group of
a parquet file. Of a JSONL any line can be read alone. Records are shuffled as far as that costs
nothing: all those of JSONLs among each other, the others within their stretch.
"""

import gzip
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from mmfusion.errors import CorruptSample, UserError, first_line
from mmfusion.rng import generator
from mmfusion.texts import begin

from .. import storage
from ..shard_writer import JsonLines, facts

T = TypeVar("T")
GZIP_LINES = 500  # of a stretch
HELD = 4  # stretches in memory: threads are in one and in the next
LINES = (".jsonl", ".json", ".ndjson", ".gz")  # endings of files of lines
BROKEN_GZIP = (OSError, EOFError, zlib.error)
BROKEN_PARQUET = (pa.ArrowException, OSError)


class LineFile:
    """A JSONL: one stretch, of which nothing is held in memory."""

    def __init__(self, path: Path) -> None:
        self.lines = JsonLines(path)
        self.sizes: Sequence[int] = [len(self.lines)]

    def where(self, place: int) -> str:
        """File and line number, for messages."""
        return self.lines.where(place)

    def read(self, stretch: int) -> Any:
        """What is held in memory of a stretch."""
        return self.lines

    def record(self, held: Any, inner: int, where: str) -> dict[str, Any]:
        """A record of what `read` gave."""
        return held[inner]

    def close(self) -> None:
        """Nothing is read for now."""


class GzipFile(LineFile):
    """A JSONL in a gzip. It can only be read onwards, so it stays open between stretches."""

    def __init__(self, path: Path) -> None:
        self.path = path
        starts, numbers, at = [], [], 0
        try:
            with gzip.open(path) as file:
                for number, line in enumerate(file, 1):
                    if not at:
                        begin(line, path)
                    if line.strip():
                        starts.append(at)
                        numbers.append(number)
                    at += len(line)
        except BROKEN_GZIP as error:
            raise UserError(
                f"{path}: cannot be read as gzip ({first_line(error)}); copy it anew"
            ) from None
        if not starts:
            raise UserError(f"{path}: holds no lines; expected one JSON object a line")
        self._starts, self._numbers = np.array(starts), np.array(numbers)
        firsts = range(0, len(starts), GZIP_LINES)
        self.sizes = [min(GZIP_LINES, len(starts) - first) for first in firsts]
        self._file: gzip.GzipFile | None = None

    def where(self, place: int) -> str:
        return f"{self.path}:{self._numbers[place]}"

    def read(self, stretch: int) -> list[bytes]:
        lines: list[bytes] = []
        try:
            self._file = self._file or gzip.open(self.path)  # noqa: SIM115
            self._file.seek(int(self._starts[stretch * GZIP_LINES]))
            while len(lines) < self.sizes[stretch]:
                line = self._file.readline()
                if not line:
                    raise EOFError("it has become shorter")
                if line.strip():
                    lines.append(line)
        except BROKEN_GZIP as error:
            raise CorruptSample(
                "shard", f"{self.path}: cannot be read ({first_line(error)})"
            ) from None
        return lines

    def record(self, held: Any, inner: int, where: str) -> dict[str, Any]:
        return facts(held[inner], where)

    def close(self) -> None:
        if self._file:
            self._file.close()
        self._file = None


class ParquetFile(LineFile):
    """A parquet file; of its columns, only those in `columns` are read."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self.path = path
        try:
            with parquet.ParquetFile(path) as file:
                groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
                self.sizes = [group.num_rows for group in groups]
                self.columns = [c for c in file.schema_arrow.names if c in columns]
        except BROKEN_PARQUET as error:
            raise UserError(
                f"{path}: cannot be read as parquet ({first_line(error)}); copy it anew"
            ) from None
        if not self.columns:
            raise UserError(f"{path}: has none of the columns {', '.join(columns)}")

    def where(self, place: int) -> str:
        return f"{self.path}: row {place}"

    def read(self, stretch: int) -> pa.Table:
        try:
            with parquet.ParquetFile(self.path) as file:
                return file.read_row_group(stretch, columns=self.columns)
        except BROKEN_PARQUET as error:
            raise CorruptSample(
                "shard", f"{self.path}: row group {stretch} cannot be read ({first_line(error)})"
            ) from None

    def record(self, held: Any, inner: int, where: str) -> dict[str, Any]:
        try:
            row = held.slice(inner, 1).to_pylist()[0]
        except (pa.ArrowException, ValueError) as error:  # text that is not UTF-8
            raise CorruptSample(
                "member", f"{where}: cannot be read ({first_line(error)})"
            ) from None
        return {key: value for key, value in row.items() if value is not None}


def open_records(path: Path, columns: tuple[str, ...]) -> LineFile:
    """A file by its name: parquet, a JSONL, or a JSONL in a gzip.

    Raises:
        UserError: it has another ending, cannot be read, or is parquet with none of `columns`.
    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        return ParquetFile(path, columns)
    packed = kind in (".zip", ".tar", ".tgz") or path.name.lower().endswith(".tar.gz")
    if packed or kind not in LINES:
        remedy = "unpack it first (`unzip`, `tar -x`)" if packed else "rename it if it is one"
        raise UserError(
            f"{path}: expected records (.jsonl, .json, .ndjson, .gz or .parquet); {remedy}"
        )
    return GzipFile(path) if kind == ".gz" else LineFile(path)


class Records:
    """The records of all files that a pattern names, numbered from 0."""

    def __init__(self, pattern: str, columns: tuple[str, ...]) -> None:
        """Open the files.

        Raises:
            UserError: there are none, one cannot be read, or they hold no records.
        """
        found = storage.expand(pattern)
        if not found:
            raise UserError(f"{pattern}: no such file; {storage.beside(pattern)}")
        self.paths = [Path(path) for path in found]
        self.files = [open_records(path, columns) for path in self.paths]
        self.folders = [path.parent for path in self.paths]
        self._stretches = [
            (f, n) for f, file in enumerate(self.files) for n in range(len(file.sizes))
        ]
        self._sizes = [size for file in self.files for size in file.sizes]
        self._ends = list(accumulate(self._sizes))
        if not len(self):
            raise UserError(f"{pattern}: holds no records")
        self._starts = list(accumulate((sum(file.sizes) for file in self.files), initial=0))
        self._lock, self._last = Lock(), self.files[0]
        self._held = lru_cache(maxsize=HELD)(self._read)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> dict[str, Any]:
        """A record; of a parquet file, without what is null.

        Raises:
            Damage: it is not one, or cannot be read.
        """
        stretch = bisect_right(self._ends, number)
        inner = number - (self._ends[stretch] - self._sizes[stretch])
        with self._lock:
            held = self._held(stretch)
        return self._file(number).record(held, inner, self.where(number))

    def where(self, number: int) -> str:
        """File and line or row, for messages."""
        return self._file(number).where(number - self._starts[self._number(number)])

    def folder(self, number: int) -> Path:
        """The folder of a record's file."""
        return self.folders[self._number(number)]

    def _number(self, number: int) -> int:
        return self._stretches[bisect_right(self._ends, number)][0]

    def _file(self, number: int) -> LineFile:
        return self.files[self._number(number)]

    def _read(self, stretch: int) -> Any:
        number, inner = self._stretches[stretch]
        file = self.files[number]
        if file is not self._last:
            self._last.close()
        self._last = file
        return file.read(inner)

    def order(self, seed: int | None) -> np.ndarray:
        """All numbers, shuffled as far as is cheap; None keeps their order."""
        if seed is None:
            return np.arange(len(self))
        sizes: list[int] = []
        near = False  # whether the last file was a plain JSONL
        for file in self.files:
            plain = type(file) is LineFile
            if plain and near:
                sizes[-1] += file.sizes[0]
            else:
                sizes += file.sizes
            near = plain
        order, start = [], 0
        for n, size in enumerate(sizes):
            order.append(start + generator("shards", seed, n).permutation(size))
            start += size
        return np.concatenate(order)
