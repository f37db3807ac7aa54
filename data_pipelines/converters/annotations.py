"""Tables that name pictures and their captions, in the forms in which people have them.

| file | rows |
|---|---|
| .jsonl, .ndjson | objects, one a line |
| .json | a list of objects, COCO's captions, or Karpathy's splits |
| .csv, .tsv, .txt, .token | columns by name; path and caption; Flickr's `name.jpg#0<tab>caption` |
| .parquet | columns by name |

All but parquet may be compressed (`.gz`).
"""

import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmfusion.errors import CorruptSample, UserError

from . import delimited
from .records import (
    AT_ONCE,
    JSONL,
    Columns,
    GzipLines,
    Lines,
    Records,
    Rows,
    open_bytes,
    parquet_table,
    reading,
    schema,
)

IMAGE = (
    "image", "image_path", "path", "file", "filename", "filepath", "file_name", "image_name"
)  # fmt: skip
CAPTIONS = ("captions", "caption", "text", "raw", "comment", "sentences")
DELIMITED = (".csv", ".tsv", ".txt", ".token")
OPTIONS = {"image": "--image-column", "captions": "--caption-column"}


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

    def columns(self, names: Iterable[str], pictures: str | None = None) -> dict[str, str]:
        """Those of image, captions, label and split that are there -> the column that holds it.

        `pictures` is the column of the image where that is known.
        """
        found = {
            "image": pictures or find(names, self.image, IMAGE),
            "captions": find(names, self.captions, CAPTIONS),
            "label": find(names, None, ("label",)),
            "split": find(names, None, ("split",)),
        }
        return {what: name for what, name in found.items() if name is not None}

    def columns_of(
        self, path: Path, names: list[str], pictures: str | None = None
    ) -> dict[str, str]:
        """The same of a table, which must have an image and captions."""
        found = self.columns(names, pictures)
        for what, option in OPTIONS.items():
            if what not in found:
                shown = ", ".join(filter(None, names))[:300] or "none"
                raise UserError(
                    f"{path}: which column holds the {what}? It has {shown}; name it with {option}"
                )
        if self.splits and "split" not in found:
            raise UserError(f"{path}: has no column `split`, but --split is given")
        return found

    def row(self, entry: dict[str, Any]) -> dict[str, Any]:
        """What an object says under image, captions, label and split."""
        return {what: entry[name] for what, name in self.columns(entry).items()}


def find(names: Iterable[str], given: str | None, usual: tuple[str, ...]) -> str | None:
    """The one of some names that was given, or else the first that is usual, in any case."""
    if given is not None:
        return given if given in names else None
    lower = {name.lower(): name for name in names}
    return next((lower[name] for name in usual if name in lower), None)


def read_table(files: list[Path], wanted: Wanted) -> Records:
    """A table in one file, or in many parquet files; rows say image, captions, label and split."""
    path = files[0]
    kind = kind_of(path)
    if kind == ".parquet" and all(file.suffix.lower() == kind for file in files):
        found = [(file, wanted.columns_of(file, schema(file).names)) for file in files]
        return Records([parquet_table(file, columns) for file, columns in found])
    if len(files) > 1:
        raise UserError(
            f"{path}: {len(files)} files are given; one table is read at a time, unless all are "
            "parquet files or tars"
        )
    if kind in JSONL:
        return Records([open_lines(path)], wanted.row)
    if kind == ".json":
        return Records([_json(path, wanted)], wanted.row)
    if kind in DELIMITED:
        rows = open_delimited(path, lambda n: "image" in wanted.columns(n), wanted.columns_of)
        return Records(rows)
    raise UserError(
        f"{path}: no kind of table that is read here; expected .jsonl, .json, .csv, .tsv, .txt, "
        ".parquet, or tars"
    )


def kind_of(path: Path) -> str:
    """A file's ending, without that of a gzip."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def open_lines(path: Path) -> Lines:
    """A JSONL whose lines are asked for in any order: what is compressed is held as a whole."""
    return GzipLines(path) if path.suffix == ".gz" else Lines(path)


def _json(path: Path, wanted: Wanted) -> Rows:
    with reading(path), open_bytes(path) as file:
        try:
            found = json.loads(file.read())
        except (ValueError, RecursionError) as error:
            if getattr(error, "msg", "") == "Extra data":  # lines under another name
                return open_lines(path)
            raise UserError(f"{path}: not valid JSON ({error})") from None
    match found:
        case {"images": list(images), "annotations": list(annotations)}:
            return Rows(path, list(_coco(images, annotations)), "annotation")
        case {"images": list(images)}:
            splits = {str(image.get("split")) for image in images if isinstance(image, dict)}
            if not wanted.splits and len(splits) > 1:
                raise UserError(
                    f"{path}: holds the splits {', '.join(sorted(splits))}; say which are wanted, "
                    "as --split train"
                )
            return Rows(path, list(map(_karpathy, images)), "image")
        case list():
            return Rows(path, found, "object")
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


def open_delimited(
    path: Path,
    known: Callable[[list[str]], bool],
    columns_of: Callable[[Path, list[str]], dict[str, str]],
    image: str = "image",
) -> list[Rows]:
    """The rows of a text with a delimiter in memory, and after them those that cannot be split.

    Args:
        path: of the file.
        known: whether names of columns are such as are looked for.
        columns_of: file, its columns -> which are wanted, by what they are called in a row.
        image: which of these are paths of pictures.
    """
    with reading(path):
        form = delimited.form_of(path, known)
        names = form.names or ["image", "caption"]
        columns = columns_of(path, names)
        at = {what: names.index(name) for what, name in columns.items()}
        chunks: dict[str, list[pa.Array]] = {what: [] for what in columns}
        numbers, broken = array("q"), list[CorruptSample]()

        def whole() -> Iterator[list[bytes]]:
            for number, cells in delimited.rows(path, form, at[image]):
                if len(cells) == form.width:
                    numbers.append(number)
                    yield cells
                else:
                    told = f"{path}:{number}: has {len(cells)} columns, not {form.width}; "
                    told += "put cells with a delimiter in quotes"
                    broken.append(CorruptSample("caption", told))

        given = whole()
        while some := list(islice(given, AT_ONCE)):
            for what, column in at.items():
                cells = [row[column] for row in some]
                if what == image and form.flickr:
                    cells = [re.sub(rb"#\d+$", b"", cell) for cell in cells]
                chunks[what].append(pa.array(cells, pa.binary()))
    found = {what: pa.chunked_array(some, pa.binary()) for what, some in chunks.items()}
    return [Columns(path, pa.table(found), numbers), Rows(path, broken)]
