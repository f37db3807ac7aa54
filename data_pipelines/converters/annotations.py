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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from mmfusion.errors import UserError

from .delimited import open_delimited
from .records import (
    JSONL,
    Columns,
    Lines,
    Records,
    Rows,
    TableRows,
    open_bytes,
    reading,
    schema,
)

IMAGE = (
    "image", "image_path", "path", "file", "filename", "filepath", "file_name", "image_name"
)  # fmt: skip
CAPTIONS = ("captions", "caption", "text", "raw", "comment", "sentences")
DELIMITED = (".csv", ".tsv", ".txt", ".token")
AS_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}


@dataclass(frozen=True)
class Wanted:
    """What of a table is wanted."""

    images: Path | None = None  # in which the pictures' paths begin; None: the table's folder
    splits: tuple[str, ...] = ()  # none takes all
    image: str | None = None  # the column of paths or pictures; None: a usual name
    captions: str | None = None  # likewise

    @property
    def columns(self) -> Columns:
        """The columns of image, captions, label and split."""
        image = (self.image,) if self.image else IMAGE
        captions = (self.captions,) if self.captions else CAPTIONS
        names = {"image": image, "captions": captions, "label": ("label",), "split": ("split",)}
        needed = {
            "image": "name it with --image-column",
            "captions": "name it with --caption-column",
        }
        return Columns(names, needed | ({"split": "leave out --split"} if self.splits else {}))


def read_table(files: list[Path], columns: Columns, image: str = "image") -> Records:
    """A table in one file, or in many parquet files; a row says what of `columns` is there.

    `image` is the column of paths of pictures.
    """
    path = files[0]
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    if kind == ".parquet" and all(file.suffix.lower() == kind for file in files):
        return Records([parquet_table(file, columns) for file in files])
    if len(files) > 1:
        raise UserError(
            f"{path}: {len(files)} files are given; one table is read at a time, unless all are "
            "parquet files or tars"
        )
    if kind in DELIMITED:
        return Records(open_delimited(path, columns, image))
    if kind in JSONL:
        return Records([Lines(path)], columns.row)
    if kind == ".json":
        return Records([_json(path, "split" in columns.needed)], columns.row)
    raise UserError(
        f"{path}: no kind of table that is read here; expected .jsonl, .json, .csv, .tsv, .txt, "
        ".parquet, or tars"
    )


def parquet_table(path: Path, columns: Columns) -> Rows:
    """Some columns of a parquet file in memory; texts are bytes, for they may be no UTF-8."""
    found = columns.all_of(path, schema(path).names)
    with reading(path):
        table = parquet.read_table(path, columns=list(found.values()), partitioning=None)
    cells = {what: table[name] for what, name in found.items()}
    cells = {what: cell.cast(AS_BYTES.get(cell.type, cell.type)) for what, cell in cells.items()}
    return Rows(path, TableRows(pa.table(cells)))


def _json(path: Path, split: bool) -> Rows:
    with reading(path), open_bytes(path) as file:
        try:
            found = json.loads(file.read())
        except (ValueError, RecursionError) as error:
            if getattr(error, "msg", "") == "Extra data":  # lines under another name
                return Lines(path)
            raise UserError(f"{path}: not valid JSON ({error})") from None
    match found:
        case {"images": list(images), "annotations": list(annotations)}:
            return Rows(path, list(_coco(images, annotations)))
        case {"images": list(images)}:
            splits = {str(image.get("split")) for image in images if isinstance(image, dict)}
            if not split and len(splits) > 1:
                raise UserError(
                    f"{path}: holds the splits {', '.join(sorted(splits))}; say which are wanted, "
                    "as --split train"
                )
            return Rows(path, list(map(_karpathy, images)))
        case list():
            return Rows(path, found)
    raise UserError(
        f"{path}: expected a list of objects, or an object with `images` and `annotations` (COCO) "
        "or with `images` that have `sentences` (Karpathy)"
    )


def _coco(images: list[Any], annotations: list[Any]) -> Iterator[Any]:
    names: dict[Any, Any] = {}
    for image in images:
        match image:
            case {"id": int() | str() as number}:
                names[number] = image.get("file_name")
    for entry in annotations:
        match entry:
            case {"image_id": int() | str() as number}:
                yield {"image": names.get(number), "captions": entry.get("caption")}
            case _:
                yield entry if not isinstance(entry, dict) else {"captions": entry.get("caption")}


def _karpathy(image: Any) -> Any:
    match image:
        case {"filepath": str(folder), "filename": str(name)} if folder:
            image = {**image, "filename": f"{folder}/{name}"}
    if not isinstance(image, dict):
        return image
    names = {"image": "filename", "captions": "sentences", "split": "split"}
    return {what: image.get(name) for what, name in names.items()}
