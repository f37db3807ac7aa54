"""Rows of files by number: JSONL, what JSON and CSV hold, parquet. One dictionary is a row.

A file is read a stretch at a time: some hundred lines of a gzip, a row group of a parquet file; of
a plain JSONL each line is read by itself. Tables are held in memory as a whole. Rows are shuffled
as far as that costs nothing: all those of JSONLs among each other, others in a stretch.
"""

import gzip
import json
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby, islice
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

GZIP_LINES = 500  # of a stretch
HELD = 4  # stretches in memory: threads are in one and in the next
AT_ONCE = 1 << 14  # rows
JSONL = (".jsonl", ".ndjson")
BROKEN = (OSError, EOFError, zlib.error, pa.ArrowException)


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


def object_of(entry: Any, where: str) -> dict[str, Any]:
    """The object that a line of JSON, or an entry of a list, is."""
    if isinstance(entry, bytes):
        try:
            entry = json.loads(entry)
        except (ValueError, RecursionError) as error:
            raise CorruptSample("json", f"{where}: not valid JSON ({error})") from None
    if isinstance(entry, CorruptSample):
        raise entry
    if not isinstance(entry, dict):
        raise CorruptSample("json", f"{where}: expected a JSON object")
    return entry


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are wanted."""

    names: Mapping[str, Sequence[str]]  # what -> the columns that may hold it, first choice first
    needed: Mapping[str, str]  # what must be there -> the remedy where it is not

    def of(self, names: Iterable[str]) -> dict[str, str]:
        """What is there -> the column that holds it, in any case of letters."""
        there = {name.lower(): name for name in names} | {name: name for name in names}
        found = {w: next((c for c in some if c in there), None) for w, some in self.names.items()}
        return {what: there[name] for what, name in found.items() if name is not None}

    def all_of(self, path: Path, names: list[str]) -> dict[str, str]:
        """The same of a table, which must have those that are needed."""
        found = self.of(names)
        for what, remedy in self.needed.items():
            if what not in found:
                shown = ", ".join(filter(None, names))[:300] or "none"
                raise UserError(f"{path}: which column holds the {what}? It has {shown}; {remedy}")
        return found

    def row(self, entry: dict[str, Any]) -> dict[str, Any]:
        """What of an object is wanted."""
        return {what: entry[name] for what, name in self.of(entry).items()}


class Rows:
    """Rows of one file: of a list in memory, or what the classes below read."""

    plain = False  # whether any row is as near as any other, of this file and of its neighbours
    sizes: Sequence[int]  # how many rows each stretch has

    def __init__(self, path: Path, entries: Any = (), numbers: Any = None) -> None:
        """Take the entries, and the lines on which they begin."""
        self.path, self._entries, self._numbers = path, entries, numbers
        self.sizes = [len(entries)]

    def where(self, row: int) -> str:
        """File and row, for messages."""
        at = f" row {row + 1}" if self._numbers is None else str(self._numbers[row])
        return f"{self.path}:{at}"

    def read(self, stretch: int) -> Any:
        """The entries of a stretch, as `object_of` takes them."""
        return self._entries

    def close(self) -> None:
        """Nothing is read for now."""


class Lines(Rows):
    """A JSONL. Of a plain one only where the lines begin is in memory.

    A gzip can only be read onwards, so it stays open between stretches of `lines`; None makes all
    of it one stretch.
    """

    def __init__(self, path: Path, lines: int | None = None) -> None:
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
        self._starts = np.array(starts)
        super().__init__(path, self, np.array(numbers))
        self.plain = path.suffix.lower() != ".gz"
        self._lines = len(self) if self.plain or lines is None else lines
        firsts = range(0, len(self), self._lines)
        self.sizes = [min(self._lines, len(self) - first) for first in firsts]
        self._file: Any = None

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, row: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self._starts[row])
            return file.readline()

    def __iter__(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            yield from filter(bytes.strip, file)

    def read(self, stretch: int) -> Any:
        if self.plain:
            return self
        self._file = self._file or open_bytes(self.path)
        self._file.seek(int(self._starts[stretch * self._lines]))
        lines = list(islice(filter(bytes.strip, self._file), self.sizes[stretch]))
        if len(lines) < self.sizes[stretch]:
            raise EOFError("it has become shorter")
        return lines

    def close(self) -> None:
        if self._file:
            self._file.close()
        self._file = None


class TableRows:
    """The rows of a pyarrow table; what is null is left out."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, number: int) -> dict[str, Any]:
        (row,) = self._table.slice(number, 1).to_pylist()
        return {key: value for key, value in row.items() if value is not None}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._table.to_batches(max_chunksize=AT_ONCE):
            yield from batch.to_pylist()


class RowGroups(Rows):
    """A parquet file, of which a row group at a time is in memory."""

    def __init__(self, path: Path, columns: dict[str, str]) -> None:
        """Open it; `columns` are those that are read, by what they are called in a row."""
        super().__init__(path)
        self.columns = columns
        with reading(path):
            about = parquet.read_metadata(path)
        self.sizes = [about.row_group(n).num_rows for n in range(about.num_row_groups)]

    def read(self, stretch: int) -> TableRows:
        with parquet.ParquetFile(self.path) as file:
            table = file.read_row_group(stretch, columns=list(self.columns.values()))
        return TableRows(pa.table({what: table[name] for what, name in self.columns.items()}))


def schema(path: Path) -> pa.Schema:
    """The columns of a parquet file."""
    with reading(path):
        return parquet.read_schema(path)


class Records:
    """The rows of files, numbered from 0."""

    def __init__(
        self, files: Sequence[Rows], map: Callable[[dict], dict] = lambda row: row
    ) -> None:
        """Join the files; `map` makes of each row what is asked for."""
        self.files, self._map = files, map
        self._stretches = [(file, n) for file in files for n in range(len(file.sizes))]
        self._ends = list(accumulate(size for file in files for size in file.sizes))
        self._starts = list(accumulate((sum(file.sizes) for file in files), initial=0))
        self._lock, self._last = Lock(), files[0]
        self._held = lru_cache(maxsize=HELD)(self._read)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, number: int) -> dict[str, Any]:
        stretch = bisect_right(self._ends, number)
        inner = number - (self._ends[stretch - 1] if stretch else 0)
        where = self.where(number)
        try:
            with self._lock:
                held = self._held(stretch)
            return self._map(object_of(held[inner], where))
        except (*BROKEN, UnicodeDecodeError) as error:
            reason = "member" if isinstance(error, UnicodeDecodeError) else "shard"
            raise CorruptSample(reason, f"{where}: cannot be read ({first_line(error)})") from None

    def scan(self) -> Iterator[dict[str, Any] | None]:
        """All rows in order; None where there is none to be read."""
        for file, stretch in self._stretches:
            for entry in file.read(stretch):
                try:
                    yield self._map(object_of(entry, ""))
                except CorruptSample:
                    yield None

    def where(self, number: int) -> str:
        """File and line or row, for messages."""
        file = bisect_right(self._starts, number) - 1
        return self.files[file].where(number - self._starts[file])

    def folder(self, number: int) -> Path:
        """Where the file of a row lies."""
        return self.files[bisect_right(self._starts, number) - 1].path.parent

    def _read(self, stretch: int) -> Any:
        file, inner = self._stretches[stretch]
        if file is not self._last:
            self._last.close()
        self._last = file
        return file.read(inner)

    def order(self, seed: int | None) -> np.ndarray:
        """All numbers, shuffled as far as is cheap; None keeps their order."""
        if seed is None:
            return np.arange(len(self))
        sizes: list[int] = []
        for plain, some in groupby(self.files, lambda file: file.plain):
            found = [size for file in some for size in file.sizes]
            sizes += [sum(found)] if plain else found
        starts = accumulate(sizes, initial=0)
        shuffled = (generator("shards", seed, n).permutation(size) for n, size in enumerate(sizes))
        return np.concatenate([start + some for start, some in zip(starts, shuffled, strict=False)])


def files_of(pattern: str | Path, images: Path | None = None) -> list[str]:
    """The files that a pattern names; `images` is the folder of their pictures, if one is given."""
    files = storage.expand(str(pattern))
    if not files:
        raise UserError(f"{pattern}: no such file; {storage.beside(str(pattern))}")
    if any(Path(file).is_dir() for file in files):
        raise UserError(f"{pattern}: is a folder; give its files, as '{pattern}/*.tar'")
    if images is not None and not images.is_dir():
        raise UserError(f"--images {images}: no such folder")
    return files


def open_all(files: list[str], columns: tuple[str, ...]) -> Records:
    """The documents of files: JSONL, also in a gzip, or parquet."""
    records = Records([_open(Path(path), columns) for path in files])
    if not len(records):
        raise UserError(f"{files[0]}: holds no records")
    return records


def _open(path: Path, columns: tuple[str, ...]) -> Rows:
    kind = path.suffix.lower()
    if kind == ".parquet":
        there = {name: name for name in schema(path).names if name in columns}
        if not there:
            raise UserError(f"{path}: has none of the columns {', '.join(columns)}")
        return RowGroups(path, there)
    if kind not in (*JSONL, ".json", ".gz") or path.name.lower().endswith(".tar.gz"):
        raise UserError(
            f"{path}: expected records (.jsonl, .json, .ndjson, .gz or .parquet); unpack it first "
            "(`unzip`, `tar -x`), or rename it if it is one"
        )
    return Lines(path, GZIP_LINES)
