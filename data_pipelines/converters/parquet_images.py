"""Parquet files that hold the pictures themselves: some row groups become a shard.

A picture is a cell of bytes, as img2dataset writes it (`jpg`), or of {bytes, path}, as Hugging Face
datasets do. A row group at a time is in memory, never a file.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from mmfusion.errors import CorruptSample, UserError

from ..images import ImageReader
from ..shard_writer import Sample, ShardJob
from .annotations import Wanted, find
from .caption_table import described_by, label_of, texts
from .records import Records, RowGroups, reading, schema

PICTURE = ("image", "jpg", "jpeg", "png", "webp", "img", "picture", "image_bytes", "bytes")
STATUS = ("status",)  # img2dataset's: not every address had a picture


def image_column_of(path: Path, wanted: Wanted) -> str | None:
    """The column of a parquet file that holds pictures, if there is one."""
    columns = schema(path)
    held = [field.name for field in columns if _holds_pictures(field.type)]
    structs = [name for name in held if pa.types.is_struct(columns.field(name).type)]
    if wanted.image is None and len(structs) == 1:
        return structs[0]
    return find(held, wanted.image, PICTURE)


def parquet_parts(
    files: list[Path],
    output: Path,
    name: str,
    reader: ImageReader,
    wanted: Wanted,
    per_shard: int,
) -> dict[Path, Callable[[], ShardJob[list[Sample]]]]:
    """A part for each run of row groups that reaches `per_shard` rows, in their order."""
    records = Records([_open(file, wanted) for file in files])
    ends, end = [0], 0
    for file in records.files:
        for group, size in enumerate(file.sizes, 1):
            end += size
            if end - ends[-1] >= per_shard or group == len(file.sizes):
                ends.append(end)

    def make(number: int) -> list[Sample]:
        return _samples(number, records[number], records.where(number), reader, wanted)

    return {
        output / f"{name}-{n:05d}.tar": partial(ShardJob, range(start, end), make)
        for n, (start, end) in enumerate(pairwise(ends))
    }


def _open(path: Path, wanted: Wanted) -> RowGroups:
    names = schema(path).names
    status = find(names, None, STATUS)
    found = wanted.columns_of(path, names, image_column_of(path, wanted))
    return RowGroups(path, {**found, "status": status} if status else found)


def _samples(
    number: int, row: dict[str, Any], where: str, reader: ImageReader, wanted: Wanted
) -> list[Sample]:
    if wanted.splits and str(row.get("split")) not in wanted.splits:
        return []
    data = row.get("image")
    data = data.get("bytes") if isinstance(data, dict) else data
    if not data and row.get("status") not in (None, "success"):
        return []  # it was never had
    if not data:
        raise CorruptSample("picture", f"{where}: holds no picture")
    described = described_by(texts(row.get("captions"), where), label_of(row.get("label"), where))
    extension, data = reader.member(data, f"picture of {where}")
    return [(f"{number:08d}", {"json": described, extension: data})]


def metadata(shard: str) -> dict[str, str]:
    """Captions by key from the table that img2dataset puts beside a tar; none without one."""
    path = Path(shard).with_suffix(".parquet")
    if not path.is_file():
        return {}
    try:
        with reading(path):
            table = parquet.read_table(path, columns=["key", "caption"]).to_pydict()
    except UserError as error:
        raise CorruptSample("caption", str(error)) from None
    return dict(zip(table.get("key", []), table.get("caption", []), strict=False))


def _holds_pictures(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        kinds = {kind.field(n).name: kind.field(n).type for n in range(kind.num_fields)}
        kind = kinds.get("bytes", pa.null())
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
