"""Where a document's pictures are: in a folder, in the record, or in a table of URLs and files."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from os.path import abspath
from pathlib import Path
from typing import Any

from pyarrow import parquet

from mmfusion.errors import CorruptSample, UserError, first_line

from ..images import ImageReader, spelled
from ..shard_writer import facts
from .delimited import form_of, lines, rows
from .interleaved_formats import ImageItem
from .records import BROKEN_GZIP, BROKEN_PARQUET

TEXT = (".csv", ".tsv", ".txt")


@dataclass
class ImageFiles:
    """Finds and reads pictures.

    Attributes:
        reader: how they become members.
        folder: that paths are relative to; None is the folder of the record's file.
        table: URL -> file.
    """

    reader: ImageReader
    folder: Path | None = None
    table: dict[str, Path] = field(default_factory=dict)

    def read(self, part: ImageItem, beside: Path, anywhere: bool) -> tuple[str, bytes]:
        """The member's extension and bytes.

        Args:
            part: which picture.
            beside: the folder of the record's file.
            anywhere: the user wrote the paths. Others, of a corpus, may not lead out of the folder;
                those of the table not out of `folder`.

        Raises:
            Damage: it is not there, or not a whole picture.
        """
        if part.data is not None:
            return self.reader.member(part.data, "a picture in the record")
        folder, path = self.folder or beside, self.table.get(part.url or "")
        bound = not anywhere if path is None else self.folder is not None
        if path is None and part.path is not None:
            path = Path(spelled(part.path, folder))
        if path is None:
            raise CorruptSample(
                "picture", f"picture {part.url}: not fetched; --image-table has no file"
            )
        if bound and not path.is_relative_to(abspath(folder)):
            told = part.path or f"{part.url} ({path})"
            raise CorruptSample("picture", f"picture {told}: is not in the folder {folder}")
        return self.reader.read(path)


def read_table(path: Path, folder: Path | None = None) -> dict[str, Path]:
    """The files of URLs, from the columns `url` and `path` of a JSONL, CSV or parquet file.

    Paths are relative to `folder`, or else to the table's own. A row without a path, as of a
    picture that could not be fetched, is passed over. The table is held in memory.

    Raises:
        UserError: it cannot be read, or lacks the columns.
    """
    table: dict[str, Path] = {}
    try:
        for row in _rows(path):
            url, file = row.get("url"), row.get("path")
            if not isinstance(url, str) or not isinstance(file, str | None):
                raise UserError(f"{path}: a row is {ascii(row)[:200]}; expected `url` and `path`")
            if file:
                table[url] = Path(spelled(file, folder or path.parent))
    except (*BROKEN_GZIP, *BROKEN_PARQUET, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from None
    if not table:
        raise UserError(f"{path}: names no files; expected the columns `url` and `path`")
    return table


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    names = path.name.removesuffix(".gz")
    if names.endswith(".parquet"):
        with parquet.ParquetFile(path) as file:
            missing = {"url", "path"} - set(file.schema_arrow.names)
            if missing:
                raise UserError(f"{path}: has no column `{min(missing)}`")
            for batch in file.iter_batches(columns=["url", "path"]):
                yield from batch.to_pylist()
        return
    if names.lower().endswith(TEXT):
        form = form_of(path, {"url", "path"}.issubset)
        columns = form.names or []
        if missing := {"url", "path"} - set(columns):
            told = f"has no column `{min(missing)}`"
            raise UserError(f"{path}: {told}; expected `url` and `path`")
        for number, cells in rows(path, form, columns.index("path")):
            if len(cells) != form.width:
                raise UserError(
                    f"{path}:{number}: has {len(cells)} columns, not {form.width}; put cells with "
                    "a delimiter in quotes"
                )
            yield dict(zip(columns, map(bytes.decode, cells), strict=True))
        return
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            yield facts(line, f"{path}:{number}")
