"""Parquet files that hold the pictures themselves: some row groups become a shard.

A picture is a cell of bytes, as img2dataset writes it (`jpg`), or of {bytes, path}, as Hugging Face
datasets do. A row group at a time is in memory, never a file.
"""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmfusion.errors import CorruptSample

from ..shard_writer import Output, Parts, Sample, ShardJob
from .annotations import Wanted
from .caption_table import Captioned, label_of, texts
from .records import Columns, Records, RowGroups, schema

PICTURE = ("image", "jpg", "jpeg", "png", "webp", "img", "picture", "image_bytes", "bytes")


def image_column_of(path: Path, wanted: Wanted) -> str | None:
    """The column of a parquet file that holds pictures, if there is one."""
    held = {field.name: field.type for field in schema(path) if _holds_pictures(field.type)}
    structs = [name for name, kind in held.items() if pa.types.is_struct(kind)]
    if wanted.image is None and len(structs) == 1:
        return structs[0]
    usual = (wanted.image,) if wanted.image else PICTURE
    return Columns({"image": usual}, {}).of(held).get("image")


def parquet_parts(files: list[Path], output: Output, wanted: Wanted) -> Parts:
    """A part for each run of row groups that reaches `per_shard` rows, in their order."""
    records = Records([_open(file, wanted) for file in files])
    ends, end = [0], 0
    for file in records.files:
        for group, size in enumerate(file.sizes, 1):
            end += size
            if end - ends[-1] >= output.per_shard or group == len(file.sizes):
                ends.append(end)

    def make(number: int) -> list[Sample]:
        row, where = records[number], records.where(number)
        if wanted.splits and str(row.get("split")) not in wanted.splits:
            return []
        data = row.get("image")
        data = data.get("bytes") if isinstance(data, dict) else data
        if not data and row.get("status") not in (None, "success"):
            return []  # it was never had
        if not data:
            raise CorruptSample("picture", f"{where}: holds no picture")
        captions, label = texts(row.get("captions"), where), label_of(row.get("label"), where)
        extension, data = output.reader.member(data, f"picture of {where}")
        facts = Captioned("", captions, label).facts()
        return [(f"{number:08d}", {"json": facts, extension: data})]

    return output.parts(partial(ShardJob, range(*ends), make) for ends in pairwise(ends))


def _open(path: Path, wanted: Wanted) -> RowGroups:
    columns = replace(wanted, image=image_column_of(path, wanted)).columns
    # img2dataset's status: not every address had a picture.
    columns = replace(columns, names={**columns.names, "status": ("status",)})
    return RowGroups(path, columns.all_of(path, schema(path).names))


def _holds_pictures(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        kind = kind.field(at).type if at >= 0 else pa.null()
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
