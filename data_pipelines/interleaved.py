"""Documents of pictures and texts in any order, listed in a JSONL, as shards.

A line is {"content": [part, ...]}, and a part one of
    {"text": "..."}                       given text
    {"answer": "..."}                     text that is learned
    {"image": "path"}                     given picture
    {"image": "path", "target": true}     picture that is learned
Paths are relative to the JSONL's folder. In the shard, pictures are the members 0.png, 1.jpg, ...,
and `content` names them.
"""

from pathlib import Path

from mmfusion.errors import UserError

from .jobs import each, facts, json_lines, new_shards
from .pictures import PictureReader
from .shards import write_shards

TARGET: tuple[dict, ...] = ({}, {"target": True}, {"target": False})


def write_interleaved(
    lines: Path,
    output: Path,
    name: str = "train",
    reader: PictureReader = PictureReader(),  # noqa: B008 (frozen)
) -> list[Path]:
    """Write a JSONL's documents as shards `name-*.tar`, in its order.

    Raises:
        UserError: the JSONL cannot be read, or not one line of it can be used.
    """
    new_shards(output, name)

    def sample(numbered: tuple[int, bytes]) -> tuple[str, dict]:
        number, line = numbered
        where = f"{lines}:{number}"
        given = facts(line, where).get("content")
        if not isinstance(given, list) or not given:
            raise UserError(f"{where}: needs `content`, a list of parts")
        content: list[dict] = []
        members: dict[str, bytes] = {}
        learned = False
        for place, part in enumerate(given):
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
                    raise UserError(
                        f"{where}: content {place} is {part!r}; expected "
                        '{"text": ...}, {"answer": ...} or {"image": ..., "target": true|false}'
                    )
        if not learned:
            raise UserError(f"{where}: nothing to learn: no part is an answer or a target")
        return f"{number:08d}", {"json": {"content": content}, **members}

    return write_shards(output, name, each(json_lines(lines), sample, str(lines)))
