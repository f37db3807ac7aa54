"""COCO's files: captions that a model wrote, and the references of their pictures.

Pictures are matched by their ids as text, so 42 and "42" are the same picture.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmfusion.errors import UserError, first_line, printable, user_error
from mmfusion.texts import read_text

SHOWN = 5  # ids that a message names


def read_results(path: Path) -> dict[str, str]:
    """Picture -> caption, from COCO's results: a list of {"image_id", "caption"}."""
    found: dict[str, str] = {}
    for where, name, caption in _captions(path, _read(path)):
        if name in found:
            raise UserError(f"{where}: image_id {name} is there twice; keep one caption a picture")
        found[name] = caption
    return found


def read_references(path: Path) -> dict[str, list[str]]:
    """Picture -> captions.

    The file may be COCO's annotations ({"annotations": [{"image_id", "caption"}]}), Karpathy's
    splits (their `test` is taken), or {id: [captions]}.
    """
    content = _read(path)
    found: dict[str, list[str]] = {}
    try:
        if "annotations" in content:
            for _, name, caption in _captions(path, content["annotations"]):
                found.setdefault(name, []).append(caption)
        elif "images" in content:
            for image in content["images"]:
                if image["split"] == "test":
                    name = _name(image["cocoid"] if "cocoid" in image else image["imgid"])
                    if name in found:
                        raise ValueError(f"picture {name} is there twice")
                    found[name] = [sentence["raw"] for sentence in image["sentences"]]
        else:
            found = dict(content)
        for name, texts in found.items():
            if not isinstance(texts, list) or not any(text.strip() for text in texts):
                raise ValueError(f"{printable(name)[:100]} has no list with a caption")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: has to be COCO's caption annotations, Karpathy's splits (split, cocoid or "
            "imgid, and sentences with raw text), or an object of {id: [captions]} "
            f"({type(error).__name__}: {first_line(error)})"
        ) from None
    return found


def pair(
    results: dict[str, str], references: dict[str, list[str]], partial: bool = False
) -> tuple[list[str], dict[str, str]]:
    """Pictures that have both, in the references' order; and how many have only one.

    That some have only one is refused, unless `partial`.
    """
    names = [name for name in references if name in results]
    alone = {
        "pictures without a caption": [name for name in references if name not in results],
        "captions without references": [name for name in results if name not in references],
    }
    alone = {what: ids for what, ids in alone.items() if ids}
    if not names or (alone and not partial):
        counts = " and ".join(f"{len(ids)} {what} ({_some(ids)})" for what, ids in alone.items())
        raise UserError(
            f"{counts or 'no picture'}; a score needs both, --partial scores the {len(names)} "
            "pictures that have both"
        )
    return names, {what: str(len(ids)) for what, ids in alone.items()}


def _read(path: Path) -> Any:
    with user_error(f"{path}: is not JSON of captions", ValueError, RecursionError):
        return json.loads(read_text(path), object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different: JSON's last one would silently win."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {printable(key)[:100]!r} is there twice in one object")
        made[key] = value
    return made


def _captions(path: Path, entries: Any) -> Iterator[tuple[str, str, str]]:
    """Place, id and caption of each entry."""
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        where = f"{path}: entry {number + 1}"
        try:
            name, caption = _name(entry["image_id"]), entry["caption"]
            if not isinstance(caption, str):
                raise TypeError(f"caption {caption!r} is no text")
        except (KeyError, TypeError) as error:
            raise UserError(
                f'{where}: has to be {{"image_id": ..., "caption": ...}}, in a list '
                f"({first_line(error)})"
            ) from None
        yield where, name, caption


def _name(given: Any) -> str:
    if isinstance(given, bool) or not isinstance(given, int | str):
        raise TypeError(f"image_id {given!r} is no whole number or text")
    return str(given)


def _some(names: list[str]) -> str:
    shown = ", ".join(printable(name)[:100] for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
