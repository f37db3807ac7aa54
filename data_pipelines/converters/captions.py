"""Pictures with captions as shards: from a table of paths, parquet files of pictures, or tars.

Which of these it is, is found from the files themselves. annotations.py says which tables are
read. Tars are samples as webdataset or img2dataset write them.
"""

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from pyarrow import parquet

from mmfusion.errors import CorruptSample, UserError

from .. import storage
from ..index import open_index
from ..samples import Sample as Given
from ..shard_writer import Made, Output, Parts, Sample, digest, shuffled
from ..shards import Members, Shards
from .annotations import Wanted
from .caption_table import CaptionTable, image_path, texts
from .parquet_images import image_column_of, parquet_parts
from .records import files_of, reading
from .reshard import reshard


def write_captions(
    source: str | Path,
    output: Output,
    wanted: Wanted = Wanted(),  # noqa: B008 (frozen)
    caption_key: str | None = None,
) -> Made:
    """Write captioned pictures as shards.

    Pictures out of tars and parquet files stay in the order in which they lie, and a tar becomes
    one shard whatever it holds.

    Args:
        source: a table; or tars or parquet files as a glob or with braces.
        output: where the shards go.
        wanted: which columns, rows and folder of pictures.
        caption_key: under which a tar's `json` members keep their captions; None looks for
            `captions` and `caption`.
    """
    files = files_of(source, wanted.images)
    paths = [Path(file) for file in files]
    folder, key = {"--images": wanted.images}, {"--caption-key": caption_key}
    columns = {"--image-column": wanted.image, "--caption-column": wanted.captions}
    if all(file.endswith(".tar") for file in files):
        _refuse(source, "tars", {**folder, **columns})
        files += [str(p) for path in paths if (p := path.with_suffix(".parquet")).is_file()]
        shards = Shards(str(source))
        parts, items = _tars(shards, output, wanted, caption_key), len(shards)
    elif paths[0].suffix.lower() == ".parquet" and image_column_of(paths[0], wanted):
        _refuse(source, "parquet files that hold the pictures", {**folder, **key})
        parts, items = parquet_parts(paths, output, wanted), len(paths)
    else:
        _refuse(source, "tables", key)
        table = CaptionTable(paths, wanted)
        parts, items = _pictures(table, output, wanted, paths[0].parent), len(table)
    settings = {**asdict(wanted), "splits": str(wanted.splits) if wanted.splits else None}
    settings |= {"items": items, "caption_key": caption_key}
    made = output.write(parts, source, digest(files), **settings)
    if wanted.splits and not any(len(open_index(str(p))) for p in parts if p.exists()):
        raise UserError(f"{source}: has nothing of the split {', '.join(wanted.splits)}")
    return made


def _refuse(source: str | Path, form: str, options: dict[str, Any]) -> None:
    """Options that would go unheeded are mistakes."""
    for option, given in options.items():
        if given is not None:
            raise UserError(f"{option} {given}: is not for {form} ({source}); leave it out")


def _pictures(table: CaptionTable, output: Output, wanted: Wanted, folder: Path) -> Parts:
    def make(number: int) -> list[Sample]:
        found = table[number]
        path = image_path(found.image, wanted.images, folder, table.where(number))
        extension, data = output.reader.read(path)
        return [(f"{number:08d}", {"json": found.facts(), extension: data})]

    return output.cut(shuffled(len(table), output.seed), make)


def _tars(shards: Shards, output: Output, wanted: Wanted, caption_key: str | None) -> Parts:
    beside = lru_cache(maxsize=4)(_metadata)

    def describe(sample: Given, number: int) -> Members | None:
        facts = dict(sample.json())
        if wanted.splits and str(facts.get("split")) not in wanted.splits:
            return None
        caption = facts.pop("caption", None)
        given = facts.get("captions", caption)
        if caption_key is not None:
            given = caption if caption_key == "caption" else facts.get(caption_key)
        elif given is None:
            shard = shards.paths[shards.locate(number)[0]]
            given = None if storage.is_remote(shard) else beside(shard).get(sample.key)
        if given is None:
            lacking = "neither a txt member nor `caption` or `captions` in its json; "
            lacking = f": {lacking}--caption-key names another key"
            told = f" under {caption_key}" if caption_key else lacking
            raise sample.corrupt("caption", f": has no caption{told}")
        return {**facts, "captions": texts(given, f"{sample.where}.json")}

    return reshard(shards, output, describe)


def _metadata(shard: str) -> dict[str, str]:
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
