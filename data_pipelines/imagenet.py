"""A folder of class folders, such as ImageNet's `n01440764/*.JPEG`, as shards.

Labels number the folders by name, which for ImageNet's 1,000 is the usual order. Samples are
shuffled, the same way for the same seed, so that each shard holds a bit of every class.
"""

import json
import os
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from mmfusion.errors import UserError

from .jobs import Made, Sample, cut, facts, write_parts
from .pictures import PictureReader

CAPTIONS = ("{name}", "a photo of a {name}", "a picture of a {name}")
SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".gif", ".bmp"}
CLASSES = "classes.json"


def write_imagenet(
    folder: Path,
    output: Path,
    name: str = "train",
    class_index: Path | None = None,
    reader: PictureReader = PictureReader(),  # noqa: B008 (frozen)
    seed: int = 0,
) -> Made:
    """Write shards `name-*.tar` and `classes.json`, the list of names for `classes_file`.

    Args:
        folder: one folder a class.
        output: where the shards go.
        name: how the shards' names begin.
        class_index: JSON of {number: [folder, name]}; without it the folders' names are used, and
            captions are written only if these are words.
        reader: how pictures become members.
        seed: of the shuffle.

    Raises:
        UserError: there are no pictures, the index lacks a folder, or no picture can be read.
    """
    pictures = {
        place.name: sorted(p for p in place.iterdir() if p.suffix.lower() in SUFFIXES)
        for place in sorted(p for p in _listed(folder) if p.is_dir())
    }
    folders = [place for place in pictures if pictures[place]]
    if not folders:
        raise UserError(f"{folder}: no folders of pictures; expected one a class, as n01440764/")
    names = class_names(folders, class_index)
    worded = class_index is not None or not any(re.fullmatch(r"n\d{8}", n) for n in folders)
    items = [(label, path) for label, place in enumerate(folders) for path in pictures[place]]

    def sample(place: int) -> list[Sample]:
        label, path = items[place]
        described = {"label": label, "file": f"{path.parent.name}/{path.name}"}
        if worded:
            described["captions"] = [caption.format(name=names[label]) for caption in CAPTIONS]
        extension, data = reader.read(path)
        return [(f"{place:08d}", {"json": described, extension: data})]

    settings = {
        "from": str(folder), "items": len(items), "names": names, "seed": seed, **asdict(reader)
    }  # fmt: skip
    made = write_parts(cut(output, name, len(items), sample, seed), name, str(folder), settings)
    part = output / f".{CLASSES}.part"
    part.write_text(json.dumps(names, ensure_ascii=False, indent=0), encoding="utf-8")
    os.replace(part, output / CLASSES)
    return made


def class_names(folders: list[str], class_index: Path | None) -> list[str]:
    """Readable names of class folders, each only once: `crane`, `crane (n03126707)`.

    Raises:
        UserError: the index is not one, or lacks a folder.
    """
    names = dict(zip(folders, folders, strict=True))
    if class_index:
        try:
            entries = facts(class_index.read_bytes(), str(class_index)).values()
            names = {str(place): str(name).replace("_", " ") for place, name in entries}
        except OSError as error:
            raise UserError(f"{class_index}: cannot be read ({error.strerror})") from None
        except (TypeError, ValueError):
            raise UserError(f"{class_index}: expected {{number: [folder, name], ...}}") from None
        missing = [place for place in folders if place not in names]
        if missing:
            raise UserError(f"{class_index}: has no name for the folder {missing[0]}")
    times = Counter(names[place] for place in folders)
    return [n if times[n := names[place]] == 1 else f"{n} ({place})" for place in folders]


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
