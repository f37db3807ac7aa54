"""Tables that name pictures and their captions, in the forms in which people have them.

| file | rows |
|---|---|
| .jsonl, .ndjson | objects, one a line |
| .json | a list of objects, COCO's captions, or Karpathy's splits |
| .csv, .tsv, .txt, .token | columns by name; path and caption; Flickr's `name.jpg#0<tab>caption` |
| .parquet | columns by name |

All but parquet may be compressed (`.gz`). A row is read when it is asked for; what is held in
memory is the lines' places, or columns as Arrow keeps them.
"""

import json
import re
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from mmfusion.errors import CorruptSample, UserError, first_line

from ..shard_writer import JsonLines, facts
from .delimited import form_of, open_bytes, rows

IMAGE = (
    "image", "image_path", "path", "file", "filename", "filepath", "file_name", "image_name"
)  # fmt: skip
CAPTIONS = ("captions", "caption", "text", "raw", "comment", "sentences")
LABEL = ("label",)
SPLIT = ("split",)
LINES, TEXT = (".jsonl", ".ndjson"), (".csv", ".tsv", ".txt", ".token")
AS_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
AT_ONCE = 1 << 14  # rows
BROKEN = (OSError, EOFError, zlib.error, pa.ArrowException)


@dataclass(frozen=True)
class Wanted:
    """What of a table is wanted.

    Attributes:
        images: folder in which the pictures' paths start; None: the table's own.
        splits: take only the rows of these; none takes all.
        image: the column of paths or pictures; None looks for the usual names.
        captions: the column of captions; likewise.
    """

    images: Path | None = None
    splits: tuple[str, ...] = ()
    image: str | None = None
    captions: str | None = None


class Table(Protocol):
    """Rows by number. A row is a dict of what it says under image, captions, label and split."""

    def __len__(self) -> int: ...

    def where(self, row: int) -> str:
        """File and row, for messages."""

    def __getitem__(self, row: int) -> dict[str, Any]:
        """The row; raises Damage where there is none to be read."""

    def rows(self) -> Iterator[dict[str, Any] | None]:
        """All rows in order; None where there is none to be read."""


def find(names: Iterable[str], given: str | None, usual: tuple[str, ...]) -> str | None:
    """The one of some names that was given, or else the first that is usual, in any case."""
    if given is not None:
        return given if given in names else None
    lower = {name.lower(): name for name in names}
    return next((lower[name] for name in usual if name in lower), None)


class JsonRows:
    """Objects in memory, each as a line of JSON."""

    def __init__(self, path: Path, entries: Iterable[Any], unit: str) -> None:
        lines = (json.dumps(entry).encode() for entry in entries)
        self._lines = pa.array(lines, pa.large_binary())
        self.path, self.unit = path, unit

    def lines(self) -> Iterator[bytes]:
        """All of them, in order."""
        return (line.as_py() for line in self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def where(self, row: int) -> str:
        return f"{self.path}: {self.unit} {row + 1}"

    def __getitem__(self, row: int) -> dict[str, Any]:
        return facts(self._lines[row].as_py(), self.where(row))


class Objects:
    """A table of JSON objects."""

    def __init__(self, given: JsonRows | JsonLines, wanted: Wanted) -> None:
        self._given, self.wanted = given, wanted

    def __len__(self) -> int:
        return len(self._given)

    def where(self, row: int) -> str:
        return self._given.where(row)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self._read(self._given[row])

    def _read(self, entry: dict[str, Any]) -> dict[str, Any]:
        wanted = self.wanted
        names = {
            "image": find(entry, wanted.image, IMAGE),
            "captions": find(entry, wanted.captions, CAPTIONS),
            "label": find(entry, None, LABEL),
            "split": find(entry, None, SPLIT),
        }
        return {what: entry[name] for what, name in names.items() if name is not None}

    def rows(self) -> Iterator[dict[str, Any] | None]:
        for line in self._given.lines():
            try:
                yield self._read(facts(line, ""))
            except CorruptSample:
                yield None


class Columns:
    """A table of columns, by what is in them; texts are given as bytes, for they may be none."""

    def __init__(self, columns: dict[str, pa.ChunkedArray], where: Callable[[int], str]) -> None:
        self._columns = pa.table(
            {
                what: column.cast(AS_BYTES.get(column.type, column.type))
                for what, column in columns.items()
            }
        )
        self.where = where

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {what: self._columns[what][row].as_py() for what in self._columns.column_names}

    def rows(self) -> Iterator[dict[str, Any] | None]:
        for batch in self._columns.to_batches(max_chunksize=AT_ONCE):
            yield from batch.to_pylist()


class Broken:
    """A table with rows at its end that are none: what is written there cannot be split."""

    def __init__(self, table: Table, broken: list[str]) -> None:
        self.table, self.broken = table, broken

    def __len__(self) -> int:
        return len(self.table) + len(self.broken)

    def where(self, row: int) -> str:
        return self.table.where(row)

    def __getitem__(self, row: int) -> dict[str, Any]:
        if row < len(self.table):
            return self.table[row]
        raise CorruptSample("caption", self.broken[row - len(self.table)])

    def rows(self) -> Iterator[dict[str, Any] | None]:
        yield from self.table.rows()
        yield from (None for _ in self.broken)


def read_table(files: list[Path], wanted: Wanted) -> Table:
    """A table in one file, or in many parquet files.

    Raises:
        UserError: it cannot be read, or its form or columns are not known.
    """
    path = files[0]
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    if kind == ".parquet" and all(file.suffix.lower() == kind for file in files):
        return _parquet(files, wanted)
    if len(files) > 1:
        raise UserError(
            f"{path}: {len(files)} files are given; one table is read at a time, unless all are "
            "parquet files or tars"
        )
    try:
        if kind in LINES:
            return Objects(JsonLines(path), wanted)
        if kind == ".json":
            return _json(path, wanted)
        if kind in TEXT:
            return _text(path, wanted)
    except BROKEN as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from None
    raise UserError(
        f"{path}: no kind of table that is read here; expected .jsonl, .json, .csv, .tsv, .txt, "
        ".parquet, or tars"
    )


def _json(path: Path, wanted: Wanted) -> Table:
    with open_bytes(path) as file:
        try:
            found = json.loads(file.read())
        except (ValueError, RecursionError) as error:
            if getattr(error, "msg", "") == "Extra data":  # lines under another name
                return Objects(JsonLines(path), wanted)
            raise UserError(f"{path}: not valid JSON ({error})") from None
    match found:
        case {"images": list(images), "annotations": list(annotations)}:
            return Objects(JsonRows(path, _coco(images, annotations), "annotation"), wanted)
        case {"images": list(images)}:
            splits = {str(image.get("split")) for image in images if isinstance(image, dict)}
            if not wanted.splits and len(splits) > 1:
                raise UserError(
                    f"{path}: holds the splits {', '.join(sorted(splits))}; say which are wanted, "
                    "as --split train"
                )
            return Objects(JsonRows(path, map(_karpathy, images), "image"), wanted)
        case list():
            return Objects(JsonRows(path, found, "object"), wanted)
    raise UserError(
        f"{path}: expected a list of objects, or an object with `images` and `annotations` (COCO) "
        "or with `images` that have `sentences` (Karpathy)"
    )


def _coco(images: list[Any], annotations: list[Any]) -> Iterator[Any]:
    names = {
        image["id"]: image.get("file_name")
        for image in images
        if isinstance(image, dict) and isinstance(image.get("id"), int | str)
    }
    for entry in annotations:
        if not isinstance(entry, dict):
            yield entry
            continue
        of = entry.get("image_id")
        name = names.get(of) if isinstance(of, int | str) else None
        yield {"image": name, "captions": entry.get("caption")}


def _karpathy(image: Any) -> Any:
    if not isinstance(image, dict):
        return image
    folder, name = image.get("filepath"), image.get("filename")
    if isinstance(folder, str) and folder and isinstance(name, str):
        name = f"{folder}/{name}"
    return {"image": name, "captions": image.get("sentences"), "split": image.get("split")}


def _text(path: Path, wanted: Wanted) -> Table:
    form = form_of(path, lambda names: find(names, wanted.image, IMAGE) is not None)
    names = form.names or ["image", "caption"]
    columns = columns_of(path, names, wanted)
    at = {what: names.index(name) for what, name in columns.items()}
    chunks: dict[str, list[pa.Array]] = {what: [] for what in columns}
    numbers, broken = array("q"), list[str]()

    def whole() -> Iterator[list[bytes]]:
        for number, cells in rows(path, form, at["image"]):
            if len(cells) == form.width:
                numbers.append(number)
                yield cells
            else:
                broken.append(f"{path}:{number}: has {len(cells)} columns, not {form.width}")

    given = whole()
    while some := list(islice(given, AT_ONCE)):
        for what, column in at.items():
            cells = [row[column] for row in some]
            if what == "image" and form.flickr:
                cells = [re.sub(rb"#\d+$", b"", cell) for cell in cells]
            chunks[what].append(pa.array(cells, pa.binary()))
    found = {what: pa.chunked_array(some, pa.binary()) for what, some in chunks.items()}
    table = Columns(found, lambda row: f"{path}:{numbers[row]}")
    return Broken(table, broken) if broken else table


def _parquet(files: list[Path], wanted: Wanted) -> Table:
    tables, file = [], files[0]
    columns: dict[str, str] = {}
    try:
        for file in files:
            columns = columns or columns_of(file, pa.parquet.read_schema(file).names, wanted)
            tables.append(
                pa.parquet.read_table(file, columns=list(columns.values()), partitioning=None)
            )
        table = pa.concat_tables(tables, promote_options="permissive")
    except BROKEN as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)})") from None
    starts = np.cumsum([0, *map(len, tables)])

    def where(row: int) -> str:
        at = int(np.searchsorted(starts, row, "right")) - 1
        return f"{files[at]}: row {row - int(starts[at]) + 1}"

    return Columns({what: table[name] for what, name in columns.items()}, where)


def columns_of(
    path: Path, names: list[str], wanted: Wanted, pictures: str | None = None
) -> dict[str, str]:
    """What is wanted -> the column that holds it.

    Raises:
        UserError: there is none for the image (unless it is `pictures`) or the captions.
    """
    found = {
        "image": pictures or find(names, wanted.image, IMAGE),
        "captions": find(names, wanted.captions, CAPTIONS),
        "label": find(names, None, LABEL),
        "split": find(names, None, SPLIT),
    }
    for what, option in (("image", "--image-column"), ("captions", "--caption-column")):
        if found[what] is None:
            shown = ", ".join(filter(None, names))[:300] or "none"
            raise UserError(
                f"{path}: which column holds the {what}? It has {shown}; name it with {option}"
            )
    if wanted.splits and not found["split"]:
        raise UserError(f"{path}: has no column `split`, but --split is given")
    return {what: name for what, name in found.items() if name is not None}
