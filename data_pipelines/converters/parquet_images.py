"""Parquet files that hold the pictures themselves: some row groups become a shard.

A picture is a cell of bytes, as img2dataset writes it (`jpg`), or of {bytes, path}, as Hugging Face
datasets do. A row group at a time is in memory, never a file.
"""

import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet

from mmfusion.errors import CorruptSample, UserError, first_line

from ..images import ImageReader
from ..shard_writer import Sample, ShardJob
from .annotations import BROKEN, Wanted, columns_of, find
from .caption_table import label_of, texts

PICTURE = ("image", "jpg", "jpeg", "png", "webp", "img", "picture", "image_bytes", "bytes")
STATUS = ("status",)  # img2dataset's: not every address had a picture


class Groups(NamedTuple):
    """Row groups of a file, and the number of their first row in the file and in all files."""

    path: Path
    groups: list[int]
    first: int
    number: int


def image_column_of(path: Path, wanted: Wanted) -> str | None:
    """The column of a parquet file that holds pictures, if there is one.

    Raises:
        UserError: it is no parquet file.
    """
    schema = _schema(path)
    held = [field.name for field in schema if _holds_pictures(field.type)]
    structs = [name for name in held if pa.types.is_struct(schema.field(name).type)]
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
    """A part for each run of row groups that reaches `per_shard` rows, in their order.

    Raises:
        UserError: a file is no parquet file, or lacks the columns.
    """
    parts: list[Groups] = []
    before = 0
    for file in files:
        _columns(file, wanted)
        first, rows, groups = 0, 0, list[int]()
        sizes = _group_sizes(file)
        for group, size in enumerate(sizes, 1):
            groups.append(group - 1)
            rows += size
            if rows >= per_shard or group == len(sizes):
                parts.append(Groups(file, groups, first, before + first))
                first, rows, groups = first + rows, 0, []
        before += sum(sizes)

    def opens(some: Groups) -> Callable[[], ShardJob[list[Sample]]]:
        return lambda: _part(some, reader, wanted)

    return {output / f"{name}-{n:05d}.tar": opens(some) for n, some in enumerate(parts)}


def metadata(shard: str) -> dict[str, str]:
    """Captions by key from the table that img2dataset puts beside a tar; none without one.

    Raises:
        Damage: it cannot be read.
    """
    path = Path(shard).with_suffix(".parquet")
    if not path.is_file():
        return {}
    try:
        table = pa.parquet.read_table(path, columns=["key", "caption"]).to_pydict()
    except BROKEN as error:
        raise CorruptSample("caption", f"{path}: cannot be read ({first_line(error)})") from None
    return dict(zip(table.get("key", []), table.get("caption", []), strict=False))


def _part(some: Groups, reader: ImageReader, wanted: Wanted) -> ShardJob[list[Sample]]:
    path = some.path
    columns = _columns(path, wanted)
    sizes = _group_sizes(path)
    rows = [(number, row) for number in some.groups for row in range(sizes[number])]
    lock = threading.Lock()

    @lru_cache(maxsize=2)  # threads are a little ahead of each other
    def group(number: int) -> Any:
        with pa.parquet.ParquetFile(path) as file:
            return file.read_row_group(number, columns=list(columns.values()), use_threads=False)

    def make(place: int) -> list[Sample]:
        number, row = rows[place]
        where = f"{path}: row {some.first + place + 1}"
        try:
            with lock:
                table = group(number)
            entry = {what: table[column][row].as_py() for what, column in columns.items()}
        except (*BROKEN, UnicodeDecodeError) as error:
            raise CorruptSample("shard", f"{where}: cannot be read ({first_line(error)})") from None
        return _sample(entry, f"{some.number + place:08d}", where, reader, wanted)

    return ShardJob(range(len(rows)), make)


def _sample(
    entry: dict[str, Any], key: str, where: str, reader: ImageReader, wanted: Wanted
) -> list[Sample]:
    if wanted.splits and str(entry.get("split")) not in wanted.splits:
        return []
    data = entry["image"]
    data = data.get("bytes") if isinstance(data, dict) else data
    if not data and entry.get("status") not in (None, "success"):
        return []  # it was never had
    if not data:
        raise CorruptSample("picture", f"{where}: holds no picture")
    described: dict[str, Any] = {"captions": texts(entry["captions"], where)}
    label = label_of(entry.get("label"), where)
    if label is not None:
        described["label"] = label
    extension, data = reader.member(data, f"picture of {where}")
    return [(key, {"json": described, extension: data})]


def _columns(path: Path, wanted: Wanted) -> dict[str, str]:
    names = _schema(path).names
    status = find(names, None, STATUS)
    found = columns_of(path, names, wanted, image_column_of(path, wanted))
    return {**found, "status": status} if status else found


def _holds_pictures(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        kinds = {kind.field(n).name: kind.field(n).type for n in range(kind.num_fields)}
        kind = kinds.get("bytes", pa.null())
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _schema(path: Path) -> Any:
    try:
        return pa.parquet.read_schema(path)
    except BROKEN as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from None


def _group_sizes(path: Path) -> list[int]:
    try:
        about = pa.parquet.read_metadata(path)
    except BROKEN as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from None
    return [about.row_group(number).num_rows for number in range(about.num_row_groups)]
