"""Rows of text files with a delimiter, as people have them: CSV with quotes, and lists without.

Tabs and bars come without quoting: a quote is a part of the text, as in CC3M's lists. Only where
all names of the head are quoted is the file. With commas and semicolons a cell is quoted if its
quote closes before a delimiter or the line's end (RFC 4180), spaces around it or not; any other
quote is a part of the text.
A quoted cell may hold line ends, but no two rows become one: where its first line and a later one
are rows by themselves, its quote is a part of the text, too.
"""

import re
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from mmfusion.errors import CorruptSample
from mmfusion.texts import begin

from ..images import SUFFIXES
from .records import AT_ONCE, Columns, Rows, TableRows, open_bytes, reading

TOKEN = re.compile(rb"[^\t\n]+#\d+\t")  # how a line of Flickr's files begins
ENDS = tuple(suffix.encode() for suffix in SUFFIXES)
NAMES = ["image", "caption"]  # of the columns, where no head says them


class Form(NamedTuple):
    """How a file's rows are written."""

    names: list[str]  # of the columns
    head: bool  # whether the first row says them
    delimiter: bytes
    quoted: bool
    flickr: bool = False  # `name.jpg#0<tab>caption`


def open_delimited(path: Path, columns: Columns, image: str) -> list[Rows]:
    """The rows of a file in memory, as bytes, and after them those that cannot be split.

    `image` is the column that holds paths of pictures.
    """
    with reading(path), open_bytes(path) as file:
        data = begin(file.read(), path)
    if b"\n" not in data:
        data = data.replace(b"\r", b"\n")
    form = _form_of(data, b"\t" if ".tsv" in path.suffixes else b"\t|,;", columns)
    at = {what: form.names.index(name) for what, name in columns.all_of(path, form.names).items()}
    numbers, broken = array("q"), list[CorruptSample]()

    def whole() -> Iterator[list[bytes]]:
        for number, cells in _rows(data, form, at[image]):
            if len(cells) == len(form.names):
                numbers.append(number)
                yield cells
            else:
                told = f"{path}:{number}: has {len(cells)} columns, not {len(form.names)}; "
                told += "put cells with a delimiter in quotes"
                broken.append(CorruptSample("caption", told))

    given, chunks = whole(), list[pa.Table]()
    while some := list(islice(given, AT_ONCE)):
        if form.flickr:
            some = [[re.sub(rb"#\d+$", b"", name), text] for name, text in some]
        cells = {what: pa.array([row[n] for row in some], pa.binary()) for what, n in at.items()}
        chunks.append(pa.table(cells))
    table = [Rows(path, TableRows(pa.concat_tables(chunks)), numbers)] if chunks else []
    return [*table, Rows(path, broken)]


def _form_of(data: bytes, delimiters: bytes, columns: Columns) -> Form:
    """How a file is written, by its first line; a single delimiter need not be there."""
    if TOKEN.match(data):
        return Form(NAMES, False, b"\t", quoted=False, flickr=True)
    head = data.partition(b"\n")[0].rstrip(b"\r")
    there = [d for d in delimiters if d in head or len(delimiters) == 1] or b","
    forms = [_form(head, bytes([delimiter])) for delimiter in there]
    needed = columns.needed.keys()
    return next((f for f in forms if not f.head or needed <= columns.of(f.names).keys()), forms[0])


def _form(head: bytes, delimiter: bytes) -> Form:
    found = head.split(delimiter)
    quoted = delimiter in b",;" or all(len(c) > 1 and c[:1] == c[-1:] == b'"' for c in found)
    if quoted:
        found, _ = _split(head, 0, _cell(delimiter))
    if len(found) == 2 and found[0].strip().lower().endswith(ENDS):
        return Form(NAMES, False, delimiter, quoted)  # the first line names a picture
    names = [name.decode("utf-8", "replace").strip() for name in found]
    names = [n if names.index(n) == at else f"{n}.{at}" for at, n in enumerate(names)]
    return Form(names, True, delimiter, quoted)


def _rows(data: bytes, form: Form, image: int) -> Iterator[tuple[int, list[bytes]]]:
    """First line from 1 and cells of all rows but empty ones; not all have a cell a column."""
    cell, number, start = _cell(form.delimiter), 1, 0

    def is_row(line: bytes) -> bool:
        found, _ = _split(line, 0, cell)
        return len(found) == len(form.names) and found[image].strip().lower().endswith(ENDS)

    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        line = data[start:end]
        if form.quoted and b'"' in line:
            cells, stop = _split(data, start, cell)
            if stop > end:  # a quoted cell goes on on later lines
                several = is_row(line) and any(map(is_row, data[end:stop].split(b"\n")))
                if several or len(cells) != len(form.names):
                    cells, stop = _split(line, 0, cell)[0], end
        else:
            cells, stop = line.rstrip(b"\r\n").split(form.delimiter), end
        if line.rstrip(b"\r\n") and (number > 1 or not form.head):
            yield number, cells
        number += data.count(b"\n", start, stop)
        start = stop


def _cell(delimiter: bytes) -> re.Pattern[bytes]:
    """A cell, in quotes or plain, with the delimiter or the line's end."""
    end = re.escape(delimiter)
    return re.compile(
        rb'(?: *"([^"]*(?:""[^"]*)*)" *|([^\n' + end + rb"]*?))(?:(" + end + rb")|\r*(?:\n|\Z))"
    )


def _split(text: bytes, at: int, cell: re.Pattern[bytes]) -> tuple[list[bytes], int]:
    """The cells of the row that begins at a place, and where the row ends."""
    found, more = list[bytes](), b","
    while more:
        match = cell.match(text, at)
        assert match is not None  # any text is a cell
        quoted, plain, more = match.groups()
        found.append(plain if quoted is None else quoted.replace(b'""', b'"'))
        at = match.end()
    return found, at
