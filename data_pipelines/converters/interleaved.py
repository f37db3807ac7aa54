"""Documents of pictures and texts in any order as shards.

A record of our own format is {"content": [part, ...]}, and a part one of
    {"text": "..."}                       given text
    {"answer": "..."}                     text that is learned
    {"image": "path"}                     given picture
    {"image": "path", "target": true}     picture that is learned
MMC4 and OBELICS are read, too (content.py). In the shard, pictures are the members
0.png, 1.jpg, ..., and `content` names them. A document longer than the limits becomes several
samples, `00000012-0`, `00000012-1`, ...

A page of MMC4 or OBELICS goes on without pictures that cannot be read, and without stretches that
teach nothing, if something else of it does; `left_out` in its first sample lists them. A document
of our own format is left out as a whole: its answers may be about the picture.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from threading import Lock
from typing import Any

from mmfusion.errors import CorruptSample, UserError

from ..images import ImageReader
from ..samples import shown
from ..shard_writer import MOST_WARNINGS, Made, Sample, cut, write_parts
from .image_files import ImageFiles, read_table
from .inputs import digest
from .interleaved_formats import FIELDS, Document, ImageItem, Item, Reading, TextItem, parse
from .records import Records, open_all
from .splitting import Limits, split

log = logging.getLogger("mmfusion")
HOPELESS = 100  # pictures of which none can be read: links may be dead, but not all


def write_interleaved(
    pattern: str | Path,
    output: Path,
    name: str = "train",
    reader: ImageReader = ImageReader(),  # noqa: B008 (frozen)
    seed: int | None = 0,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    images: Path | None = None,
    image_table: Path | None = None,
    per_shard: int = 2000,
    most_lost: float = 0.1,
) -> Made:
    """Write the documents of JSONL, JSONL.gz or parquet files as shards `name-*.tar`.

    Args:
        pattern: a file, or a glob.
        output: where the shards go.
        name: how the shards' names begin.
        reader: how pictures become members.
        seed: of the shuffle; None keeps the order.
        reading: of records that do not say themselves what is learned.
        limits: of a sample.
        images: folder that the pictures' paths are relative to; None is that of the record's file.
        image_table: JSONL, CSV or parquet of `url` and `path`.
        per_shard: documents of a shard.
        most_lost: share of the documents that may be unusable.
    """
    records = open_all(str(pattern), FIELDS)
    if images is not None and not images.is_dir():
        raise UserError(f"--images {images}: no such folder")
    table = read_table(image_table, images) if image_table else {}
    files = ImageFiles(reader, images, table)
    partly = _Partly()
    make = _maker(records, files, reading, limits, partly)
    inputs = [*(file.path for file in records.files), image_table, limits.tokenizer]
    settings = {
        "from": str(pattern), "items": len(records), "seed": seed, **asdict(reader),
        **asdict(reading), "max_pictures": limits.pictures, "max_tokens": limits.tokens,
        "tokenizer": limits.tokenizer and str(limits.tokenizer), "images": images and str(images),
        "image_table": image_table and str(image_table), "per_shard": per_shard,
        "input_files": digest(inputs),
    }  # fmt: skip
    parts = cut(output, name, records.order(seed), make, per_shard)
    made = write_parts(parts, name, str(pattern), settings, most_lost=most_lost)
    partly.tell()
    return made


def _maker(
    records: Records, files: ImageFiles, reading: Reading, limits: Limits, partly: "_Partly"
) -> Callable[[int], list[Sample]]:
    count = limits.counter()

    def make(number: int) -> list[Sample]:
        where, folder = records.where(number), records.file(number).path.parent
        document = parse(records[number], reading, where)
        document, left_out = _with_members(document, files, folder, partly)
        pieces, dropped = split(document.joined(), limits, count, document.web)
        told = f"{where}: nothing to learn"
        if not pieces and left_out:
            raise CorruptSample("picture", f"{told} without its pictures ({left_out[0]})")
        if not pieces:
            raise CorruptSample("content", f"{told}: no part is an answer or a target")
        left_out += [_told(piece) for piece in dropped]
        partly.note(where, left_out, stretches=len(dropped))
        return _samples(f"{number:08d}", pieces, left_out)

    return make


class _Partly:
    """Counts what is left out of documents that go on without it."""

    def __init__(self) -> None:
        self._lock, self._counts = Lock(), Counter[str]()

    def read(self) -> None:
        """A picture could be read."""
        with self._lock:
            self._counts["read"] += 1

    def missed(self, error: CorruptSample) -> None:
        """A picture could not be read."""
        with self._lock:
            self._counts["missed"] += 1
            if self._counts["missed"] >= HOPELESS and not self._counts["read"]:
                raise UserError(
                    f"none of the first {HOPELESS} pictures can be read; check --images and "
                    f"--image-table; the last: {error}"
                )

    def note(self, where: str, left_out: list[str], stretches: int) -> None:
        """A document goes on without these."""
        with self._lock:
            for what in left_out:
                self._counts["noted"] += 1
                if self._counts["noted"] <= MOST_WARNINGS:
                    log.warning("%s: goes on without %s", where, what)
            self._counts["stretches"] += stretches

    def tell(self) -> None:
        """Say how many there were."""
        counts = self._counts
        pictures = counts["missed"] + counts["read"]
        if counts["missed"]:
            log.warning("%d of %d pictures cannot be read", counts["missed"], pictures)
        if counts["stretches"]:
            log.warning("stretches of documents that teach nothing: %d", counts["stretches"])
        if counts["noted"]:
            log.warning("their documents go on without them; `left_out` in a sample lists them")


def _with_members(
    document: Document, files: ImageFiles, folder: Path, partly: _Partly
) -> tuple[Document, list[str]]:
    """The document with its pictures read, and what is said of those that cannot be."""
    parts: list[Item] = []
    left_out: list[str] = []
    for part in document.parts:
        if isinstance(part, ImageItem):
            try:
                part = replace(part, member=files.read(part, folder, anywhere=not document.web))
            except CorruptSample as error:
                partly.missed(error)
                if not document.web:
                    raise
                left_out.append(str(error))
                continue
            partly.read()
        parts.append(part)
    return replace(document, parts=parts), left_out


def _told(piece: list[Item]) -> str:
    pictures = sum(isinstance(part, ImageItem) for part in piece)
    texts = " ".join(part.text for part in piece if isinstance(part, TextItem))
    return f"a stretch that teaches nothing ({pictures} pictures, text {shown(texts)})"


def _samples(key: str, pieces: list[list[Item]], left_out: list[str]) -> list[Sample]:
    samples: list[Sample] = []
    for number, piece in enumerate(pieces):
        content: list[dict] = []
        members: dict[str, bytes] = {}
        for part in piece:
            if isinstance(part, TextItem):
                content.append({"answer" if part.learned else "text": part.text})
                continue
            assert part.member is not None
            extension, data = part.member
            member = f"{len(members)}.{extension}"
            members[member] = data
            content.append({"image": member, **({"target": True} if part.learned else {})})
        facts: dict[str, Any] = {"content": content}
        if left_out and not number:
            facts["left_out"] = left_out
        samples.append((f"{key}-{number}" if len(pieces) > 1 else key, {"json": facts, **members}))
    return samples
