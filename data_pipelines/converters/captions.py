"""Pictures with captions as shards: from a table of paths, parquet files of pictures, or tars.

Which of these it is, is found from the files themselves. Data_pipelines/tables.py says which tables
are read. Tars are samples as webdataset or img2dataset write them.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmfusion.errors import CorruptSample, UserError, printable

from .. import storage
from ..images import ImageReader
from ..index import open_index
from ..samples import Sample as Given
from ..shard_writer import Made, Sample, ShardJob, cut, shuffled, write_parts
from ..shards import Members, Shards
from .annotations import Wanted, read_table
from .caption_table import CaptionTable, image_path, texts
from .inputs import digest
from .parquet_images import image_column_of, metadata, parquet_parts
from .reshard import reshard

Parts = dict[Path, Callable[[], ShardJob[list[Sample]]]]


def write_captions(
    source: str | Path,
    output: Path,
    name: str = "train",
    reader: ImageReader = ImageReader(),  # noqa: B008 (frozen)
    seed: int | None = 0,
    per_shard: int = 2000,
    wanted: Wanted = Wanted(),  # noqa: B008 (frozen)
    caption_key: str | None = None,
    most_lost: float = 0.1,
) -> Made:
    """Write captioned pictures as shards `name-*.tar`.

    Args:
        source: a table; or tars or parquet files as a glob or with braces.
        output: where the shards go.
        name: how the shards' names begin.
        reader: how pictures become members.
        seed: of the shuffle of a table's pictures; None keeps their order. Pictures out of tars
            and parquet files stay in the order in which they lie.
        per_shard: pictures; a tar becomes one shard whatever it holds.
        wanted: which columns, rows and folder of pictures.
        caption_key: under which a tar's `json` members keep their captions; None looks for
            `captions` and `caption`.
        most_lost: share of the pictures that may be unusable.

    Raises:
        UserError: there is no such file, its form is not known or has no use for an option, or too
            little of it can be used.
    """
    files = source_files(str(source))
    if wanted.images is not None and not wanted.images.is_dir():
        raise UserError(f"--images {wanted.images}: no such folder")
    if all(file.endswith(".tar") for file in files):
        columns = {"--image-column": wanted.image, "--caption-column": wanted.captions}
        _refuse(source, "tars", {"--images": wanted.images, **columns})
        files += [str(p) for f in files if (p := Path(f).with_suffix(".parquet")).is_file()]
        shards = Shards(str(source))
        parts, items = _tars(shards, output, name, reader, wanted, caption_key), len(shards)
    else:
        _refuse(source, "tables and parquet files", {"--caption-key": caption_key})
        paths = [Path(file) for file in files]
        if paths[0].suffix.lower() == ".parquet" and image_column_of(paths[0], wanted):
            _refuse(source, "parquet files that hold the pictures", {"--images": wanted.images})
            parts = parquet_parts(paths, output, name, reader, wanted, per_shard)
            items = len(paths)
        else:
            folder = paths[0].parent
            table = read_table(paths, wanted)
            pictures = CaptionTable(table, str(source), wanted, wanted.images or folder)
            items = len(pictures)
            make = _sample_maker(pictures, reader, wanted, folder)
            parts = cut(output, name, shuffled(items, seed), make, per_shard)
    settings: dict[str, Any] = {"from": printable(str(source)), "items": items, "seed": seed}
    settings |= {"per_shard": per_shard, **asdict(reader), "caption_key": caption_key}
    settings |= {key: str(value) if value else None for key, value in asdict(wanted).items()}
    settings["input_files"] = digest(files)
    made = write_parts(parts, name, str(source), settings, most_lost=most_lost)
    if wanted.splits and not any(len(open_index(str(p))) for p in parts if p.exists()):
        raise UserError(f"{source}: has nothing of the split {', '.join(wanted.splits)}")
    return made


def source_files(source: str) -> list[str]:
    """The files that a pattern names.

    Raises:
        UserError: there are none, or they are a folder.
    """
    files = storage.expand(source)
    if not files:
        raise UserError(f"{source}: no such file; {storage.beside(source)}")
    if any(Path(file).is_dir() for file in files):
        raise UserError(f"{source}: is a folder; give its files, as '{source}/*.tar'")
    return files


def _refuse(source: str | Path, form: str, options: dict[str, Any]) -> None:
    """Options that would go unheeded are mistakes."""
    for option, given in options.items():
        if given is not None:
            raise UserError(f"{option} {given}: is not for {form} ({source}); leave it out")


def _sample_maker(
    pictures: CaptionTable, reader: ImageReader, wanted: Wanted, folder: Path
) -> Callable[[int], list[Sample]]:
    def sample(place: int) -> list[Sample]:
        found, where = pictures[place], pictures.where(place)
        described: dict[str, Any] = {"captions": found.captions}
        if found.label is not None:
            described["label"] = found.label
        extension, data = reader.read(image_path(found.image, wanted.images, folder, where))
        return [(f"{place:08d}", {"json": described, extension: data})]

    return sample


def _tars(
    shards: Shards,
    output: Path,
    name: str,
    reader: ImageReader,
    wanted: Wanted,
    caption_key: str | None,
) -> Parts:
    beside = lru_cache(maxsize=4)(metadata)

    def describe(sample: Given, key: str, number: int) -> Members | None:
        facts = dict(sample.json())
        if wanted.splits and str(facts.get("split")) not in wanted.splits:
            return None
        caption = facts.pop("caption", None)
        given = facts.get("captions", caption)
        if caption_key is not None:
            given = caption if caption_key == "caption" else facts.get(caption_key)
        elif given is None:
            shard = shards.paths[shards.locate(number)[0]]
            given = None if storage.is_remote(shard) else beside(shard).get(key)
        if given is None:
            raise CorruptSample(
                "caption",
                f"{sample.where}: has no caption under {caption_key}"
                if caption_key
                else f"{sample.where}: has no caption: neither a txt member nor `caption` or "
                "`captions` in its json; --caption-key names another key",
            )
        return {**facts, "captions": texts(given, f"{sample.where}.json")}

    return reshard(shards, output, name, reader, describe)
