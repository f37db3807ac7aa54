"""ImageNet, or any pictures by class, as shards: from folders, ILSVRC's tars, or labelled samples.

Labels are the numbers of --names. Without it they number the classes' folders by name, which for
ImageNet's 1,000 is the usual order. Pictures are shuffled, the same way for the same seed, so that
each shard holds a bit of every class. Shards of samples that have labels already, as timm's, become
one shard each.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmfusion import files
from mmfusion.errors import CorruptSample, UserError, printable

from .. import storage
from ..images import ImageReader
from ..samples import Sample as Given
from ..shard_writer import Made, Sample, cut, facts, shuffled, write_parts
from ..shards import Members, Shards
from .caption_table import Recaptions
from .devkit import DEVKIT, WNID, Labels, beside, read_labels
from .image_folders import ClassFiles, class_tars, flat_tars, folders, kind_of
from .inputs import digest
from .reshard import reshard

TEMPLATES = ("{name}", "a photo of a {name}", "a picture of a {name}")
CLASSES = "classes.json"
Index = dict[int, tuple[str, str]]

log = logging.getLogger("mmfusion")


def write_imagenet(
    source: str | Path,
    output: Path,
    name: str = "train",
    class_index: Path | None = None,
    reader: ImageReader = ImageReader(),  # noqa: B008 (frozen)
    seed: int = 0,
    per_shard: int = 2000,
    labels: Path | None = None,
    captions: Path | None = None,
    most_lost: float = 0.1,
) -> Made:
    """Write shards `name-*.tar` and `classes.json`, the list of names for `classes_file`.

    Args:
        source: a folder of class folders; or tars, as a glob or with braces.
        output: where the shards go.
        name: how the shards' names begin.
        class_index: JSON of {number: [folder, name]} of all classes, whose numbers are the labels;
            without it the names are the devkit's, or else the folders'. Templated captions are
            written only if the names are words.
        reader: how pictures become members.
        seed: of the shuffle; samples that are in shards stay in their order.
        per_shard: pictures; a shard of samples becomes one shard whatever it holds.
        labels: the devkit, or a table of file and class; by default the devkit beside the tars.
        captions: a table with captions of the pictures, in place of the templated ones.
        most_lost: share of the pictures that may be unusable.
    """
    index = _read_index(class_index) if class_index else {}
    tars = [] if Path(source).is_dir() else storage.expand(str(source))
    if not tars and not Path(source).is_dir():
        raise UserError(f"{source}: cannot be read (no such file or folder)")
    kind = _kind(tars)
    listing: Iterable[bytes] = ()
    if kind == "samples":
        if labels:
            raise UserError(f"--labels {labels}: the samples of {source} have labels; leave it out")
        shards = Shards(str(source))
        names, items = _numbered_names(index), len(shards)
        keys = (shards.place(number)[1] for number in range(items))
        recaptions = _recaptions(captions, keys)
        parts = reshard(shards, output, name, reader, _describer(names, recaptions))
    else:
        labels = labels or (beside(Path(tars[0])) if tars else None)
        found, names, worded = _classes(Path(source), tars, kind, labels, index, class_index)
        listing = found.listing() if kind == "folders" else ()
        recaptions, items = _recaptions(captions, found.names()), len(found)
        make = _maker(found, names if worded else [], recaptions, reader)
        parts = cut(output, name, shuffled(items, seed), make, per_shard)
    settings = {
        "from": printable(str(source)), "items": items, "seed": seed, "per_shard": per_shard,
        "names": class_index and str(class_index), "labels": labels and str(labels),
        "captions": captions and str(captions), **asdict(reader),
        "input_files": digest([*tars, class_index, labels, captions], listing),
    }  # fmt: skip
    _check_classes(output, names)
    made = write_parts(parts, name, str(source), settings, most_lost=most_lost)
    _write_classes(output, names, source)
    return made


def _classes(
    source: Path, tars: list[str], kind: str, labels: Path | None, index: Index, origin: Path | None
) -> tuple[ClassFiles, list[str], bool]:
    """The pictures, the names of their classes, and whether these are words."""
    given = _labels(labels, index, kind)
    found = _found(source, tars, kind, given, index)
    if index:
        found = found.numbered([place for place, _ in index.values()], str(origin))
    names = class_names(found.classes, dict(index.values()), given.names, origin)
    return found, names, bool(index or given.names) or not any(map(WNID.fullmatch, found.classes))


def _write_classes(output: Path, names: list[str], source: str | Path) -> None:
    if not names:
        log.warning("%s: no --names, so there is no list of classes to write", source)
        return
    _check_classes(output, names)  # another run may have written its own meanwhile
    text = json.dumps(names, ensure_ascii=False, indent=0)
    files.write(output / CLASSES, text.encode("utf-8", "replace"))


def _check_classes(output: Path, names: list[str]) -> None:
    """Labels of one folder must mean the same in all of its shards."""
    path = output / CLASSES
    if not names or not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        before = None
    if before != names:
        raise UserError(
            f"{path}: lists other classes than the {len(names)} of these pictures, so labels would "
            "differ; give --names with all classes, or another --output"
        )


def class_names(
    folders: list[str],
    index: dict[str, str],
    words: dict[str, str] | None = None,
    source: Path | None = None,
) -> list[str]:
    """Readable names of class folders, each only once: `crane`, `crane (n03126707)`.

    They are those of `index` (from the file `source`), of `words`, or the folders' own.
    """
    missing = [place for place in folders if index and place not in index]
    if missing:
        raise UserError(f"{source}: has no name for the folder {missing[0]}")
    names = {place: index.get(place) or (words or {}).get(place, place) for place in folders}
    times = Counter(names.values())
    return [n if times[n := names[place]] == 1 else f"{n} ({place})" for place in folders]


def _read_index(path: Path) -> Index:
    try:
        entries = facts(path.read_bytes(), str(path)).items()
        found = {int(n): (str(place), str(name).replace("_", " ")) for n, (place, name) in entries}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (TypeError, ValueError):
        found = {}
    if not found or sorted(found) != list(range(len(found))):
        raise UserError(f"{path}: expected {{number: [folder, name], ...}}, numbered from 0")
    if len({place for place, _ in found.values()}) < len(found):
        raise UserError(f"{path}: names a folder twice; each number needs one of its own")
    return dict(sorted(found.items()))


def _numbered_names(index: Index) -> list[str]:
    folders = [place for place, _ in index.values()]
    return class_names(folders, dict(index.values()))


def _kind(tars: list[str]) -> str:
    kind = kind_of(tars[0]) if tars else "folders"
    named = kind == "pictures" and all(WNID.fullmatch(Path(tar).stem) for tar in tars)
    return "tars" if named else kind


def _labels(path: Path | None, index: Index, kind: str) -> Labels:
    if path is None:
        return Labels()
    labels = read_labels(path, {number: place for number, (place, _) in index.items()})
    if kind != "pictures" and not labels.names:
        raise UserError(f"{path}: --labels is for flat tars; these pictures' classes are known")
    return labels


def _found(source: Path, tars: list[str], kind: str, given: Labels, index: Index) -> ClassFiles:
    if kind == "folders":
        return folders(source, empty_too=bool(index))
    if kind == "tars":
        return class_tars(tars)
    if not given.of:
        raise UserError(
            f"{tars[0]}: holds pictures, but not their classes; give --labels with the devkit "
            f"({DEVKIT[0]}) or a table of file and class"
        )
    # All classes, not only those that occur: labels must be those of the training pictures.
    known = {place for place, _ in index.values()} | set(given.names) | set(given.of.values())
    return flat_tars(tars, given.of, known)


def _recaptions(table: Path | None, files: Iterable[str]) -> Recaptions | None:
    if table is None:
        return None
    found = Recaptions(table, files)
    if found.missing:
        log.warning("%s: has no captions for %d of the pictures", table, found.missing)
    return found


def _described(
    label: int, number: int, names: list[str], recaptions: Recaptions | None
) -> dict[str, Any]:
    """Label and captions; `names` are there if they are words."""
    if recaptions is not None:
        captions = recaptions.of(number)
    else:
        captions = [t.format(name=names[label]) for t in TEMPLATES] if names else []
    return {"label": label, "captions": captions} if captions else {"label": label}


def _maker(
    found: ClassFiles, names: list[str], recaptions: Recaptions | None, reader: ImageReader
) -> Callable[[int], list[Sample]]:
    def make(number: int) -> list[Sample]:
        if number >= len(found.labels):
            raise found.lost[number - len(found.labels)]
        described = _described(int(found.labels[number]), number, names, recaptions)
        extension, data = found.read(number, reader)
        described["file"] = found.file(number)
        return [(f"{number:08d}", {"json": described, extension: data})]

    return make


def _describer(
    names: list[str], recaptions: Recaptions | None
) -> Callable[[Given, str, int], Members]:
    def describe(sample: Given, key: str, number: int) -> Members:
        told = sample.json()
        label = told.get("label")
        if type(label) is not int or label < 0 or (names and label >= len(names)):
            expected = f"0 to {len(names) - 1}" if names else "the number of a class"
            raise CorruptSample(
                "label", f"{sample.where}: label is {label!r:.50}; expected {expected}"
            )
        return {**told, **_described(label, number, names, recaptions)}

    return describe
