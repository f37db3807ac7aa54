"""Where a document's pictures are: in a folder, in the record, or in a table of URLs and files."""

from dataclasses import dataclass, field
from os.path import abspath
from pathlib import Path

from mmfusion.errors import CorruptSample, UserError

from ..images import ImageReader, spelled
from .annotations import read_table
from .interleaved_formats import ImageItem
from .records import Columns, reading

REMEDY = "expected `url` and `path`"
COLUMNS = Columns({"url": ("url",), "path": ("path",)}, {"url": REMEDY, "path": REMEDY})


@dataclass
class ImageFiles:
    """Finds and reads pictures."""

    reader: ImageReader
    folder: Path | None = None  # that paths are relative to; None is that of the record's file
    table: dict[str, Path] = field(default_factory=dict)  # of URLs

    def read(self, part: ImageItem, beside: Path, anywhere: bool) -> tuple[str, bytes]:
        """The member's extension and bytes; `beside` is the folder of the record's file.

        Paths may lead `anywhere` where the user wrote them. Others, of a corpus, may not lead out
        of the folder; those of the table not out of `folder`.
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


def read_urls(path: Path, folder: Path | None = None) -> dict[str, Path]:
    """The files of URLs, from the columns `url` and `path` of a table.

    Paths are relative to `folder`, or else to the table's own. A row without a path, as of a
    picture that could not be fetched, is passed over. The table is held in memory.
    """
    table: dict[str, Path] = {}
    with reading(path):
        rows = read_table([path], COLUMNS, "path")
        for number, row in enumerate(rows.scan()):
            row = rows[number] if row is None else row  # says what is wrong
            cells = (row.get("url"), row.get("path"))
            url, file = (c.decode() if isinstance(c, bytes) else c for c in cells)
            if not isinstance(url, str) or not isinstance(file, str | None):
                raise UserError(f"{path}: a row is {ascii((url, file))[:200]}; {REMEDY}")
            if file:
                table[url] = Path(spelled(file, folder or path.parent))
    if not table:
        raise UserError(f"{path}: names no files; {REMEDY}")
    return table
