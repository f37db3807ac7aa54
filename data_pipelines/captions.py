"""Pictures with captions, listed in a JSONL, as shards.

A line is {"image": "path", "captions": ["...", ...]} or {"image": "path", "caption": "..."}, with a
`label` if there is one. Paths are relative to the JSONL's folder.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmfusion.errors import Damage

from .jobs import JsonLines, Made, Sample, cut, write_parts
from .pictures import PictureReader


def write_captions(
    lines: Path,
    output: Path,
    name: str = "train",
    reader: PictureReader = PictureReader(),  # noqa: B008 (frozen)
    seed: int | None = 0,
) -> Made:
    """Write a JSONL's pictures and captions as shards `name-*.tar`.

    Raises:
        UserError: the JSONL cannot be read, or too few lines of it can be used.
    """
    entries = JsonLines(lines)

    def sample(place: int) -> list[Sample]:
        entry, where = entries[place], entries.where(place)
        described: dict[str, Any] = {"captions": _captions(entry, where)}
        if entry.get("label") is not None:
            if type(entry["label"]) is not int:
                raise Damage("label", f"{where}: `label` must be the number of a class")
            described["label"] = entry["label"]
        if not isinstance(entry.get("image"), str):
            raise Damage("picture", f"{where}: `image` must be the path of a picture")
        extension, data = reader.read(lines.parent / entry["image"])
        return [(f"{place:08d}", {"json": described, extension: data})]

    settings = {"from": str(lines), "items": len(entries), "seed": seed, **asdict(reader)}
    return write_parts(cut(output, name, len(entries), sample, seed), name, str(lines), settings)


def _captions(entry: dict[str, Any], where: str) -> list[str]:
    captions = entry.get("captions", [entry.get("caption")])
    if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
        raise Damage(
            "caption", f"{where}: needs `captions`, a list of strings, or `caption`, a string"
        )
    captions = [caption for caption in captions if caption.strip()]
    if not captions:
        raise Damage("caption", f"{where}: the captions hold no text")
    return captions
