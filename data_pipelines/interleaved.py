"""Documents of pictures and texts in any order, listed in a JSONL, as shards.

A line is {"content": [part, ...]}, and a part one of
    {"text": "..."}                       given text
    {"answer": "..."}                     text that is learned
    {"image": "path"}                     given picture
    {"image": "path", "target": true}     picture that is learned
Paths are relative to the JSONL's folder. In the shard, pictures are the members 0.png, 1.jpg, ...,
and `content` names them.
"""

from dataclasses import asdict
from pathlib import Path

from mmfusion.errors import Damage

from .jobs import JsonLines, Made, Sample, cut, write_parts
from .pictures import PictureReader

TARGET: tuple[dict, ...] = ({}, {"target": True}, {"target": False})


def write_interleaved(
    lines: Path,
    output: Path,
    name: str = "train",
    reader: PictureReader = PictureReader(),  # noqa: B008 (frozen)
    seed: int | None = 0,
) -> Made:
    """Write a JSONL's documents as shards `name-*.tar`.

    Raises:
        UserError: the JSONL cannot be read, or too few lines of it can be used.
    """
    entries = JsonLines(lines)

    def sample(place: int) -> list[Sample]:
        where = entries.where(place)
        given = entries[place].get("content")
        if not isinstance(given, list) or not given:
            raise Damage("content", f"{where}: needs `content`, a list of parts")
        content: list[dict] = []
        members: dict[str, bytes] = {}
        learned = False
        for at, part in enumerate(given):
            match part:
                case {"text": str(), **rest} if not rest:
                    content.append(part)
                case {"answer": str(), **rest} if not rest:
                    content.append(part)
                    learned = True
                case {"image": str(path), **rest} if rest in TARGET:
                    extension, data = reader.read(lines.parent / path)
                    member = f"{len(members)}.{extension}"
                    members[member] = data
                    content.append({"image": member, **rest})
                    learned = learned or bool(rest.get("target"))
                case _:
                    raise Damage(
                        "content",
                        f"{where}: content {at} is {part!r}; expected "
                        '{"text": ...}, {"answer": ...} or {"image": ..., "target": true|false}',
                    )
        if not learned:
            raise Damage("content", f"{where}: nothing to learn: no part is an answer or a target")
        return [(f"{place:08d}", {"json": {"content": content}, **members})]

    settings = {"from": str(lines), "items": len(entries), "seed": seed, **asdict(reader)}
    return write_parts(cut(output, name, len(entries), sample, seed), name, str(lines), settings)
