"""Rows of text files with a delimiter, as people have them: CSV with quotes, and lists without.

Tabs and bars come without quoting: a quote is a part of the text, as in CC3M's lists. Only where
all names of the head are quoted is the file. With commas and semicolons a cell is quoted if its
quote closes before a delimiter or the line's end (RFC 4180); any other quote is a part of the text.
A quoted cell may hold line ends, but no two rows become one: where its first line and a later one
are rows by themselves, its quote is a part of the text, too.
"""

import re
from array import array
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from mmfusion.errors import CorruptSample
from mmfusion.texts import begin

from ..images import SUFFIXES
from .records import AT_ONCE, Columns, Rows, TableRows, open_bytes, reading

TOKEN = re.compile(rb"[^\t]+#\d+\t")  # how a line of Flickr's files begins
ENDS = tuple(suffix.encode() for suffix in SUFFIXES)
NAMES = ["image", "caption"]  # of the columns, where no head says them


class Form(NamedTuple):
    """How a file's rows are written.

    Attributes:
        names: of the columns.
        head: whether the first row says them.
        flickr: whether the rows are `name.jpg#0<tab>caption`.
    """

    names: list[str]
    head: bool
    delimiter: bytes
    quoted: bool
    flickr: bool = False


def open_delimited(path: Path, columns: Columns, image: str) -> list[Rows]:
    """The rows of a file in memory, as bytes, and after them those that cannot be split.

    `image` is the column that holds paths of pictures.
    """
    with reading(path):
        form = _form_of(path, columns)
        at = {what: form.names.index(n) for what, n in columns.all_of(path, form.names).items()}
        numbers, broken = array("q"), list[CorruptSample]()

        def whole() -> Iterator[list[bytes]]:
            for number, cells in _rows(path, form, at[image]):
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
            cells = {
                what: pa.array([row[n] for row in some], pa.binary()) for what, n in at.items()
            }
            chunks.append(pa.table(cells))
    table = [Rows(path, TableRows(pa.concat_tables(chunks)), numbers=numbers)] if chunks else []
    return [*table, Rows(path, broken)]


def _lines(path: Path) -> Iterator[bytes]:
    r"""Lines with their ends, which are \n alone, or \r in a file that has no other."""
    with open_bytes(path) as file:
        first = begin(file.readline(), path)
        if not first.endswith(b"\n") and b"\r" in first.rstrip(b"\r"):
            yield from (line + b"\n" for line in first.split(b"\r"))
            return
        yield from chain([first], file)


def _form_of(path: Path, columns: Columns) -> Form:
    """How a file is written, by its first line; `.tsv` says that it has tabs."""
    head = next(_lines(path)).rstrip(b"\r\n")
    if TOKEN.match(head):
        return Form(NAMES, False, b"\t", quoted=False, flickr=True)
    there = [d for d in (b"\t", b"|", b",", b";") if d in head]
    forms = [_form(head, d) for d in ([b"\t"] if ".tsv" in path.suffixes else there or [b","])]
    fitting = (
        f for f in forms if not f.head or columns.needed.keys() <= columns.of(f.names).keys()
    )
    return next(fitting, forms[0])


def _form(head: bytes, delimiter: bytes) -> Form:
    found = head.split(delimiter)
    quoted = delimiter in b",;" or all(len(c) > 1 and c[:1] == c[-1:] == b'"' for c in found)
    if quoted:
        found, _ = _Cells(delimiter).of(head)
    if len(found) == 2 and found[0].lower().endswith(ENDS):
        return Form(NAMES, False, delimiter, quoted)  # the first line names a picture
    names = [name.decode("utf-8", "replace").strip() for name in found]
    names = [n if names.index(n) == at else f"{n}.{at}" for at, n in enumerate(names)]
    return Form(names, True, delimiter, quoted)


def _rows(path: Path, form: Form, image: int) -> Iterator[tuple[int, list[bytes]]]:
    """First line from 1 and cells of all rows but empty ones; not all have a cell a column."""
    cells, given = _Cells(form.delimiter), _Ahead(_lines(path))
    if form.head:
        given.take()

    def is_row(line: bytes) -> bool:
        found, _ = cells.of(line.rstrip(b"\r\n"))
        return len(found) == len(form.names) and found[image].lower().endswith(ENDS)

    while (line := given.take()) is not None:
        number, text = given.number, line.rstrip(b"\r\n")
        if not form.quoted or b'"' not in text:
            if text:
                yield number, text.split(form.delimiter)
            continue
        found, opened = cells.of(text)
        if opened:
            more = _until_closed(line, given, cells)
            whole, opened = cells.of(b"".join([line, *more]).rstrip(b"\r\n"))
            fits = not opened and len(whole) == len(form.names)
            if fits and not (is_row(line) and any(map(is_row, more))):
                found = whole
            else:
                given.back(more)
        yield number, found


class _Cells:
    """Splits rows with quotes."""

    def __init__(self, delimiter: bytes) -> None:
        end = rb"(" + re.escape(delimiter) + rb"|\Z)"
        inside = rb'[^"]*(?:""[^"]*)*'
        plain = rb"[^\n" + re.escape(delimiter) + rb"]*"
        self._cell = re.compile(b'(?:"(' + inside + b')"|(' + plain + b"))" + end)
        self._open = re.compile(b'"' + inside + rb"\Z")

    def of(self, text: bytes) -> tuple[list[bytes], bool]:
        """The cells, and whether there is a quote that could be closed on a later line.

        Of several lines there are no cells where a line ends outside of quotes.
        """
        found, at, opened, end = list[bytes](), 0, False, b","
        while end:
            match = self._cell.match(text, at)
            opened |= text[at : at + 1] == b'"' and self._open.match(text, at) is not None
            if match is None:
                return [], opened
            quoted, plain, end = match.groups()
            found.append(plain if quoted is None else quoted.replace(b'""', b'"'))
            at = match.end()
        return found, opened


class _Ahead:
    """Lines by number, of which some can be given back."""

    def __init__(self, given: Iterable[bytes]) -> None:
        self._given, self._back = iter(given), list[bytes]()
        self.number = 0

    def take(self) -> bytes | None:
        """The next line; None after the last."""
        line = self._back.pop() if self._back else next(self._given, None)
        self.number += line is not None
        return line

    def back(self, lines: list[bytes]) -> None:
        """These were the last that were taken, and come again."""
        self._back += reversed(lines)
        self.number -= len(lines)


def _until_closed(line: bytes, given: _Ahead, cells: _Cells) -> list[bytes]:
    """The lines after one with an open quote, as far as they can belong to its row."""
    taken = [line]
    while (more := given.take()) is not None:
        taken.append(more)
        if b'"' in more and not cells.of(b"".join(taken).rstrip(b"\r\n"))[1]:
            break  # it is closed, or another quote stands where none may
    return taken[1:]
