"""Pictures with captions, listed in a JSONL, as shards.

A line is {"image": "path", "captions": ["...", ...]} or {"image": "path", "caption": "..."}, with a
`label` if there is one. Paths are relative to the JSONL's folder.
"""

from pathlib import Path
from typing import Any

from mmfusion.errors import UserError

from .jobs import each, facts, json_lines, new_shards
from .pictures import PictureReader
from .shards import write_shards


def write_captions(
    lines: Path,
    output: Path,
    name: str = "train",
    reader: PictureReader = PictureReader(),  # noqa: B008 (frozen)
) -> list[Path]:
    """Write a JSONL's pictures and captions as shards `name-*.tar`, in its order.

    Raises:
        UserError: the JSONL cannot be read, or not one line of it can be used.
    """
    new_shards(output, name)

    def sample(numbered: tuple[int, bytes]) -> tuple[str, dict]:
        number, line = numbered
        where = f"{lines}:{number}"
        entry = facts(line, where)
        described: dict[str, Any] = {"captions": _captions(entry, where)}
        if entry.get("label") is not None:
            if not isinstance(entry["label"], int):
                raise UserError(f"{where}: `label` must be the number of a class")
            described["label"] = entry["label"]
        if not isinstance(entry.get("image"), str):
            raise UserError(f"{where}: `image` must be the path of a picture")
        extension, data = reader.read(lines.parent / entry["image"])
        return f"{number:08d}", {"json": described, extension: data}

    return write_shards(output, name, each(json_lines(lines), sample, str(lines)))


def _captions(entry: dict[str, Any], where: str) -> list[str]:
    captions = entry.get("captions", [entry.get("caption")])
    if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
        raise UserError(f"{where}: needs `captions`, a list of strings, or `caption`, a string")
    captions = [caption for caption in captions if caption.strip()]
    if not captions:
        raise UserError(f"{where}: the captions hold no text")
    return captions
