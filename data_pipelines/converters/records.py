"""Rows of files by number: JSONL, what JSON and CSV hold, parquet. One dictionary is a row.

A file is read a stretch at a time: a line of a JSONL, some hundred lines of a gzip, a row group of
a parquet file; tables whose rows are asked for in any order are held in memory as a whole. Rows are
shuffled as far as that costs nothing: all those of JSONLs among each other, others in a stretch.
"""

import gzip
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from mmfusion.errors import CorruptSample, UserError, first_line
from mmfusion.rng import generator
from mmfusion.texts import begin

from .. import storage
from ..shard_writer import facts

GZIP_LINES = 500  # of a stretch
HELD = 4  # stretches in memory: threads are in one and in the next
AT_ONCE = 1 << 14  # rows
JSONL = (".jsonl", ".ndjson")
BROKEN = (OSError, EOFError, zlib.error, pa.ArrowException)
AS_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """One line for a file that cannot be read."""
    try:
        yield
    except BROKEN as error:
        kind = {".gz": " as gzip", ".parquet": " as parquet"}.get(path.suffix.lower(), "")
        raise UserError(
            f"{path}: cannot be read{kind} ({first_line(error)}); copy it anew"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error}); save it as UTF-8") from None


def open_bytes(path: Path) -> Any:
    """A file of bytes, decompressed."""
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


class Rows:
    """Rows of one file: objects in memory, or what the classes below read.

    Attributes:
        path: of the file.
        sizes: how many rows each stretch has.
    """

    def __init__(self, path: Path, entries: Any, unit: str = "row") -> None:
        self.path, self.unit, self._entries = path, unit, entries
        self.sizes: Sequence[int] = [len(entries)]

    def where(self, row: int) -> str:
        """File and row, for messages."""
        return f"{self.path}: {self.unit} {row + 1}"

    def read(self, stretch: int) -> Any:
        """What is held in memory of a stretch."""
        return self._entries

    def row(self, held: Any, inner: int, where: str) -> dict[str, Any]:
        """A row of what `read` gave."""
        entry = held[inner]
        if isinstance(entry, CorruptSample):
            raise entry
        if not isinstance(entry, dict):
            raise CorruptSample("json", f"{where}: expected a JSON object")
        return entry

    def scan(self) -> Iterator[dict[str, Any] | None]:
        """All rows in order; None where there is none to be read."""
        for stretch, size in enumerate(self.sizes):
            held = self.read(stretch)
            for inner in range(size):
                try:
                    yield self.row(held, inner, "")
                except CorruptSample:
                    yield None

    def close(self) -> None:
        """Nothing is read for now."""


class Lines(Rows):
    """A JSONL: one stretch, of which only where the lines begin is held in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        starts, numbers, at = [], [], 0
        with reading(path), open_bytes(path) as file:
            for number, line in enumerate(file, 1):
                if not at:
                    begin(line, path)
                if line.strip():
                    starts.append(at)
                    numbers.append(number)
                at += len(line)
        if not starts:
            raise UserError(f"{path}: holds no lines; expected one JSON object a line")
        self._starts, self._numbers = np.array(starts), np.array(numbers)
        self.sizes = [len(starts)]

    def where(self, row: int) -> str:
        return f"{self.path}:{self._numbers[row]}"

    def read(self, stretch: int) -> Any:
        return None

    def row(self, held: Any, inner: int, where: str) -> dict[str, Any]:
        with self.path.open("rb") as file:
            file.seek(self._starts[inner])
            return facts(file.readline(), where)

    def scan(self) -> Iterator[dict[str, Any] | None]:
        with open_bytes(self.path) as file:
            for line in filter(bytes.strip, file):
                try:
                    yield facts(line, "")
                except CorruptSample:
                    yield None


class GzipLines(Lines):
    """A JSONL in a gzip. It can only be read onwards, so it stays open between stretches."""

    def __init__(self, path: Path, lines: int | None = None) -> None:
        """Find the lines; None takes them all for one stretch."""
        super().__init__(path)
        self._lines = lines or len(self._starts)
        firsts = range(0, len(self._starts), self._lines)
        self.sizes = [min(self._lines, len(self._starts) - first) for first in firsts]
        self._file: gzip.GzipFile | None = None

    def read(self, stretch: int) -> list[bytes]:
        lines: list[bytes] = []
        self._file = self._file or gzip.open(self.path)  # noqa: SIM115
        self._file.seek(int(self._starts[stretch * self._lines]))
        while len(lines) < self.sizes[stretch]:
            line = self._file.readline()
            if not line:
                raise EOFError("it has become shorter")
            if line.strip():
                lines.append(line)
        return lines

    def row(self, held: Any, inner: int, where: str) -> dict[str, Any]:
        return facts(held[inner], where)

    def close(self) -> None:
        if self._file:
            self._file.close()
        self._file = None


class Columns(Rows):
    """A table in memory; texts are given as bytes, for they may be no UTF-8."""

    def __init__(self, path: Path, table: pa.Table, numbers: Sequence[int] | None = None) -> None:
        """Take a table, and the lines on which its rows begin."""
        columns = {name: table[name] for name in table.column_names}
        table = pa.table({n: c.cast(AS_BYTES.get(c.type, c.type)) for n, c in columns.items()})
        super().__init__(path, table)
        self._numbers = numbers

    def where(self, row: int) -> str:
        return super().where(row) if self._numbers is None else f"{self.path}:{self._numbers[row]}"

    def row(self, held: Any, inner: int, where: str) -> dict[str, Any]:
        return {name: held[name][inner].as_py() for name in held.column_names}

    def scan(self) -> Iterator[dict[str, Any] | None]:
        for batch in self._entries.to_batches(max_chunksize=AT_ONCE):
            yield from batch.to_pylist()


class RowGroups(Rows):
    """A parquet file, of which a row group at a time is in memory."""

    def __init__(self, path: Path, columns: dict[str, str]) -> None:
        """Open it; `columns` are those that are read, by what they are called in a row."""
        self.path, self.unit, self.columns = path, "row", columns
        with reading(path):
            about = parquet.read_metadata(path)
        self.sizes = [about.row_group(n).num_rows for n in range(about.num_row_groups)]

    def read(self, stretch: int) -> pa.Table:
        with parquet.ParquetFile(self.path) as file:
            table = file.read_row_group(stretch, columns=list(self.columns.values()))
        return _named(table, self.columns)

    def row(self, held: Any, inner: int, where: str) -> dict[str, Any]:
        (row,) = held.slice(inner, 1).to_pylist()
        return {key: value for key, value in row.items() if value is not None}


def schema(path: Path) -> pa.Schema:
    """The columns of a parquet file."""
    with reading(path):
        return parquet.read_schema(path)


def parquet_table(path: Path, columns: dict[str, str]) -> Columns:
    """Some columns of a parquet file in memory, by what they are called in a row."""
    with reading(path):
        table = parquet.read_table(path, columns=list(columns.values()), partitioning=None)
    return Columns(path, _named(table, columns))


def _named(table: pa.Table, columns: dict[str, str]) -> pa.Table:
    return pa.table({what: table[name] for what, name in columns.items()})


def open_records(path: Path, columns: tuple[str, ...]) -> Rows:
    """A file of documents by its name: a JSONL, also in a gzip, or parquet with some `columns`."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        there = {name: name for name in schema(path).names if name in columns}
        if not there:
            raise UserError(f"{path}: has none of the columns {', '.join(columns)}")
        return RowGroups(path, there)
    packed = kind in (".zip", ".tar", ".tgz") or path.name.lower().endswith(".tar.gz")
    if packed or kind not in (*JSONL, ".json", ".gz"):
        remedy = "unpack it first (`unzip`, `tar -x`)" if packed else "rename it if it is one"
        raise UserError(
            f"{path}: expected records (.jsonl, .json, .ndjson, .gz or .parquet); {remedy}"
        )
    return GzipLines(path, GZIP_LINES) if kind == ".gz" else Lines(path)


class Records:
    """The rows of files, numbered from 0."""

    def __init__(
        self, files: Sequence[Rows], map: Callable[[dict], dict] = lambda row: row
    ) -> None:
        """Join the files; `map` makes of each row what is asked for."""
        self.files, self._map = files, map
        self._stretches = [(f, n) for f, file in enumerate(files) for n in range(len(file.sizes))]
        self._sizes = [size for file in files for size in file.sizes]
        self._ends = list(accumulate(self._sizes))
        self._starts = list(accumulate((sum(file.sizes) for file in files), initial=0))
        self._lock, self._last = Lock(), files[0]
        self._held = lru_cache(maxsize=HELD)(self._read)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, number: int) -> dict[str, Any]:
        stretch = bisect_right(self._ends, number)
        inner = number - (self._ends[stretch] - self._sizes[stretch])
        where = self.where(number)
        try:
            with self._lock:
                held = self._held(stretch)
            return self._map(self.file(number).row(held, inner, where))
        except BROKEN as error:
            raise CorruptSample("shard", f"{where}: cannot be read ({first_line(error)})") from None
        except UnicodeDecodeError as error:
            raise CorruptSample(
                "member", f"{where}: cannot be read ({first_line(error)})"
            ) from None

    def scan(self) -> Iterator[dict[str, Any] | None]:
        """All rows in order; None where there is none to be read."""
        for file in self.files:
            yield from (None if row is None else self._map(row) for row in file.scan())

    def where(self, number: int) -> str:
        """File and line or row, for messages."""
        file = bisect_right(self._starts, number) - 1
        return self.files[file].where(number - self._starts[file])

    def file(self, number: int) -> Rows:
        """The file of a row."""
        return self.files[bisect_right(self._starts, number) - 1]

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
            plain = type(file) is Lines
            if plain and near:
                sizes[-1] += file.sizes[0]
            else:
                sizes += file.sizes
            near = plain
        starts = accumulate(sizes, initial=0)
        shuffled = (generator("shards", seed, n).permutation(size) for n, size in enumerate(sizes))
        return np.concatenate([start + some for start, some in zip(starts, shuffled, strict=False)])


def open_all(pattern: str, columns: tuple[str, ...]) -> Records:
    """The documents of all files that a pattern names."""
    found = storage.expand(pattern)
    if not found:
        raise UserError(f"{pattern}: no such file; {storage.beside(pattern)}")
    records = Records([open_records(Path(path), columns) for path in found])
    if not len(records):
        raise UserError(f"{pattern}: holds no records")
    return records
