"""Documents of pictures and texts in any order as shards.

A record of our own format is {"content": [part, ...]}, and a part one of
    {"text": "..."}                       given text
    {"answer": "..."}                     text that is learned
    {"image": "path"}                     given picture
    {"image": "path", "target": true}     picture that is learned
MMC4 and OBELICS are read, too (interleaved_formats.py). In the shard, pictures are the members
0.png, 1.jpg, ..., and `content` names them. A document longer than the limits becomes several
samples, `00000012-0`, `00000012-1`, ...

A page of MMC4 or OBELICS goes on without pictures that cannot be read, and without stretches that
teach nothing, if something else of it does; `left_out` in its first sample lists them. A document
of our own format is left out as a whole: its answers may be about the picture.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

from mmfusion.errors import CorruptSample, UserError, shown

from ..shard_writer import MOST_WARNINGS, Made, Output, Sample, digest
from .image_files import ImageFiles, read_urls
from .interleaved_formats import FIELDS, Document, ImageItem, Item, Reading, TextItem, parse
from .records import Records, files_of, open_all
from .splitting import Limits, split

log = logging.getLogger("mmfusion")
HOPELESS = 100  # pictures of which none can be read: links may be dead, but not all


def write_interleaved(
    pattern: str | Path,
    output: Output,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    images: Path | None = None,
    image_table: Path | None = None,
) -> Made:
    """Write the documents of JSONL, JSONL.gz or parquet files as shards.

    Args:
        pattern: a file, or a glob.
        output: where the shards go.
        reading: of records that do not say themselves what is learned.
        limits: of a sample.
        images: folder that the pictures' paths are relative to; None is that of the record's file.
        image_table: of `url` and `path`.
    """
    records = open_all(files_of(pattern, images), FIELDS)
    table = read_urls(image_table, images) if image_table else {}
    partly = _Partly()
    make = _maker(records, ImageFiles(output.reader, images, table), reading, limits, partly)
    inputs = digest([*(file.path for file in records.files), image_table, limits.tokenizer])
    made = output.write(
        output.cut(records.order(output.seed), make),
        pattern,
        inputs,
        items=len(records),
        images=images,
        image_table=image_table,
        max_pictures=limits.pictures,
        max_tokens=limits.tokens,
        tokenizer=limits.tokenizer,
        **asdict(reading),
    )
    partly.tell()
    return made


def _maker(
    records: Records, files: ImageFiles, reading: Reading, limits: Limits, partly: "_Partly"
) -> Callable[[int], list[Sample]]:
    count = limits.counter()

    def make(number: int) -> list[Sample]:
        where = records.where(number)
        document = parse(records[number], reading, where)
        document, left_out = _with_members(document, files, records.folder(number), partly)
        pieces, dropped = split(document.joined(), limits, count, document.web)
        told = f"{where}: nothing to learn"
        if not pieces and left_out:
            raise CorruptSample("picture", f"{told} without its pictures ({left_out[0]})")
        if not pieces:
            raise CorruptSample("content", f"{told}: no part is an answer or a target")
        left_out += map(_told, dropped)
        partly.note(where, left_out, len(dropped))
        return _samples(f"{number:08d}", pieces, left_out)

    return make


@dataclass
class _Partly:
    """Counts what is left out of documents that go on without it."""

    counts: Counter[str] = field(default_factory=Counter)
    lock: Any = field(default_factory=Lock)

    def picture(self, error: CorruptSample | None = None) -> None:
        """A picture could be read, or could not."""
        with self.lock:
            self.counts["missed" if error else "read"] += 1
            if self.counts["missed"] >= HOPELESS and not self.counts["read"]:
                raise UserError(
                    f"none of the first {HOPELESS} pictures can be read; check --images and "
                    f"--image-table; the last: {error}"
                )

    def note(self, where: str, left_out: list[str], stretches: int) -> None:
        """A document goes on without these."""
        with self.lock:
            room = max(0, MOST_WARNINGS - self.counts["noted"])
            self.counts.update(noted=len(left_out), stretches=stretches)
        for what in left_out[:room]:
            log.warning("%s: goes on without %s", where, what)

    def tell(self) -> None:
        """Say how many there were."""
        missed, stretches = self.counts["missed"], self.counts["stretches"]
        if missed or stretches:
            log.warning(
                "%d of %d pictures cannot be read, and stretches of documents that teach nothing: "
                "%d; `left_out` in the samples of a document that goes on lists them",
                *(missed, missed + self.counts["read"], stretches),
            )


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
                partly.picture(error)
                if not document.web:
                    raise
                left_out.append(str(error))
                continue
            partly.picture()
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
