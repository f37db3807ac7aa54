"""COCO's files: captions that a model wrote, and the references of their pictures.

Pictures are matched by their ids as text, so 42 and "42" are the same picture.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmfusion.errors import UserError, printable
from mmfusion.texts import read_text

SHOWN = 5
"""Ids that a message names."""


def read_results(path: Path) -> dict[str, str]:
    """Picture -> caption, from COCO's results: a list of {"image_id", "caption"}.

    Raises:
        UserError: not such a file, or a picture that is there twice.
    """
    found: dict[str, str] = {}
    entries = _read(path)
    if not isinstance(entries, list):
        raise UserError(
            f'{path}: has to be COCO\'s results, a list of {{"image_id": ..., "caption": ...}}'
        )
    for where, name, caption in _captions(path, entries):
        if name in found:
            raise UserError(f"{where}: image_id {name} is there twice; keep one caption a picture")
        found[name] = caption
    if not found:
        raise UserError(f"{path}: holds no caption")
    return found


def read_references(path: Path) -> dict[str, list[str]]:
    """Picture -> captions.

    The file may be COCO's annotations ({"annotations": [{"image_id", "caption"}]}), Karpathy's
    splits (their `test` is taken), or {id: [captions]}.

    Raises:
        UserError: none of these, or without a caption.
    """
    content = _read(path)
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: has to be COCO's caption annotations, Karpathy's splits, or "
            "an object of {id: [captions]}"
        )
    found: dict[str, list[str]] = {}
    images = content.get("images")
    if "annotations" in content:
        for _, name, caption in _captions(path, content["annotations"]):
            found.setdefault(name, []).append(caption)
    elif isinstance(images, list) and any(isinstance(i, dict) and "split" in i for i in images):
        found = _karpathy(path, images)
    else:
        for name, texts in content.items():
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise UserError(f"{path}: {printable(name)[:100]}: has to be a list of captions")
            found[name] = texts
    empty = [name for name, texts in found.items() if not any(text.strip() for text in texts)]
    if empty:
        raise UserError(f"{path}: {_some(empty)} without a reference caption; remove them")
    if not found:
        raise UserError(f"{path}: holds no reference caption")
    return found


class Paired(NamedTuple):
    """Pictures that have both, in the references' order; `left_out` counts what has only one."""

    names: list[str]
    references: list[list[str]]
    candidates: list[str]
    left_out: dict[str, str]


def pair(
    results: dict[str, str], references: dict[str, list[str]], partial: bool = False
) -> Paired:
    """Bring captions and references together.

    Raises:
        UserError: without `partial`, a picture that is only in one of them; none that is in both.
    """
    names = [name for name in references if name in results]
    alone = {
        "pictures without a caption": [name for name in references if name not in results],
        "captions without references": [name for name in results if name not in references],
    }
    message = " and ".join(
        f"{len(ids)} {what} ({_some(ids)})" for what, ids in alone.items() if ids
    )
    if not names:
        raise UserError(f"no picture has both: {message}")
    if message and not partial:
        raise UserError(
            f"{message}; a score needs them all, --partial scores the {len(names)} that have both"
        )
    return Paired(
        names,
        [references[name] for name in names],
        [results[name] for name in names],
        {what: str(len(ids)) for what, ids in alone.items() if ids},
    )


def _read(path: Path) -> Any:
    try:
        return json.loads(read_text(path), object_pairs_hook=_object)
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply for captions") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different: JSON's last one would silently win."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {printable(twice)[:100]!r} is there twice in one object")
    return made


def _captions(path: Path, entries: Any) -> Iterator[tuple[str, str, str]]:
    """Place, id and caption of each entry."""
    if not isinstance(entries, list):
        raise UserError(f"{path}: annotations has to be a list")
    for number, entry in enumerate(entries):
        where = f"{path}: entry {number + 1}"
        if not isinstance(entry, dict) or not {"image_id", "caption"} <= entry.keys():
            raise UserError(f'{where}: has to be {{"image_id": ..., "caption": ...}}')
        if not isinstance(entry["caption"], str):
            raise UserError(f"{where}: caption has to be text")
        yield where, _name(entry["image_id"], where), entry["caption"]


def _karpathy(path: Path, images: list[Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for number, image in enumerate(images):
        where = f"{path}: image {number + 1}"
        try:
            if image["split"] == "test":
                given = image["cocoid"] if "cocoid" in image else image["imgid"]
                texts = [sentence["raw"] for sentence in image["sentences"]]
                if not all(isinstance(text, str) for text in texts):
                    raise TypeError
                if (name := _name(given, where)) in found:
                    raise UserError(f"{where}: picture {name} is there twice; keep one")
                found[name] = texts
        except (KeyError, TypeError):
            raise UserError(
                f"{where}: has to have split, cocoid or imgid, and sentences with raw text"
            ) from None
    return found


def _name(given: Any, where: str) -> str:
    if isinstance(given, bool) or not isinstance(given, int | str):
        raise UserError(f"{where}: image_id has to be a whole number or text")
    return str(given)


def _some(names: list[str]) -> str:
    shown = ", ".join(printable(name)[:100] for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
