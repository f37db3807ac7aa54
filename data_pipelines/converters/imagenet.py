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
from pathlib import Path
from typing import Any

from mmfusion import files
from mmfusion.errors import UserError

from ..samples import Sample as Given
from ..shard_writer import Made, Output, Sample, digest, shuffled
from ..shards import Members, Shards
from .caption_table import Recaptions
from .devkit import DEVKIT, WNID, Labels, beside, read_labels
from .image_folders import ClassFiles, class_tars, flat_tars, folders, kind_of
from .records import files_of, object_of
from .reshard import reshard

TEMPLATES = ("{name}", "a photo of a {name}", "a picture of a {name}")
CLASSES = "classes.json"
Describe = Callable[[int, int], dict[str, Any]]  # label and number of a picture -> facts

log = logging.getLogger("mmfusion")


def write_imagenet(
    source: str | Path,
    output: Output,
    class_index: Path | None = None,
    labels: Path | None = None,
    captions: Path | None = None,
) -> Made:
    """Write shards and `classes.json`, the list of names for `classes_file`.

    Args:
        source: a folder of class folders; or tars, as a glob or with braces. A shard of samples
            becomes one shard in its order, whatever it holds.
        output: where the shards go.
        class_index: JSON of {number: [folder, name]} of all classes, whose numbers are the labels;
            without it the names are the devkit's, or else the folders'. Templated captions are
            written only if the names are words.
        labels: the devkit, or a table of file and class; by default the devkit beside the tars.
        captions: a table with captions of the pictures, in place of the templated ones.
    """
    index = _read_index(class_index) if class_index else {}
    tars = [] if Path(source).is_dir() else files_of(source)
    kind = kind_of(tars)
    listing: Iterable[bytes] = ()
    if kind == "samples":
        if labels:
            raise UserError(f"--labels {labels}: the samples of {source} have labels; leave it out")
        shards = Shards(str(source))
        names, items = _class_names(list(index), index), len(shards)
        keys = (shards.place(number)[1] for number in range(items))
        parts = reshard(shards, output, _labelled(_describer(captions, keys, names), len(names)))
    else:
        labels = labels or (beside(Path(tars[0])) if tars else None)
        given = read_labels(labels, list(index)) if labels else Labels({}, {})
        if labels and kind != "pictures" and not given.names:
            told = "--labels is for flat tars; these pictures' classes are known"
            raise UserError(f"{labels}: {told}")
        found = _found(Path(source), tars, kind, given, index)
        if class_index:
            found.number(list(index), class_index)
        names, items = _class_names(found.classes, {**given.names, **index}), len(found)
        worded = index or given.names or not any(map(WNID.fullmatch, found.classes))
        describe = _describer(captions, found.names(), names if worded else [])
        parts = output.cut(shuffled(items, output.seed), _maker(found, describe, output))
        listing = found.listing() if kind == "folders" else ()
    path = output.folder / CLASSES
    if names:
        _check_classes(path, names)
    inputs = digest([*tars, class_index, labels, captions], listing)
    settings = {"items": items, "names": class_index, "labels": labels, "captions": captions}
    made = output.write(parts, source, inputs, **settings)
    if names:
        _check_classes(path, names)  # another run may have written its own meanwhile
        listed = json.dumps(names, ensure_ascii=False, indent=0)
        files.write(path, listed.encode("utf-8", "replace"))
    else:
        log.warning("%s: no --names, so there is no list of classes to write", source)
    return made


def _check_classes(path: Path, names: list[str]) -> None:
    """Labels of one folder must mean the same in all of its shards."""
    try:
        before = json.loads(path.read_bytes()) if path.exists() else names
    except (OSError, ValueError, RecursionError):
        before = None
    if before != names:
        raise UserError(
            f"{path}: lists other classes than the {len(names)} of these pictures, so labels would "
            "differ; give --names with all classes, or another --output"
        )


def _class_names(folders: list[str], words: dict[str, str]) -> list[str]:
    """Readable names of class folders, each only once: `crane`, `crane (n03126707)`."""
    names = {place: words.get(place, place) for place in folders}
    times = Counter(names.values())
    return [name if times[name] == 1 else f"{name} ({place})" for place, name in names.items()]


def _read_index(path: Path) -> dict[str, str]:
    """Names by folder, in the order of their numbers."""
    try:
        entries = object_of(path.read_bytes(), str(path)).items()
        found = {int(n): (str(place), str(name).replace("_", " ")) for n, (place, name) in entries}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (TypeError, ValueError):
        found = {}
    if not found or sorted(found) != list(range(len(found))):
        raise UserError(f"{path}: expected {{number: [folder, name], ...}}, numbered from 0")
    index = dict(found[number] for number in sorted(found))
    if len(index) < len(found):
        raise UserError(f"{path}: names a folder twice; each number needs one of its own")
    return index


def _found(
    source: Path, tars: list[str], kind: str, given: Labels, index: dict[str, str]
) -> ClassFiles:
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
    return flat_tars(tars, given.of, {*index, *given.names, *given.of.values()})


def _describer(table: Path | None, files: Iterable[str], names: list[str]) -> Describe:
    """What gives label and captions: of the table, or else of the `names`, which are words."""
    recaptions = Recaptions(table, files) if table else None
    if recaptions and recaptions.missing:
        log.warning("%s: has no captions for %d of the pictures", table, recaptions.missing)

    def describe(label: int, number: int) -> dict[str, Any]:
        if recaptions is not None:
            captions = recaptions.of(number)
        else:
            captions = [t.format(name=names[label]) for t in TEMPLATES] if names else []
        return {"label": label, "captions": captions} if captions else {"label": label}

    return describe


def _maker(found: ClassFiles, describe: Describe, output: Output) -> Callable[[int], list[Sample]]:
    def make(number: int) -> list[Sample]:
        if number >= len(found.places):
            raise found.lost[number - len(found.places)]
        facts = describe(int(found.labels[number]), number)
        extension, data = found.read(number, output.reader)
        facts["file"] = found.file(number)
        return [(f"{number:08d}", {"json": facts, extension: data})]

    return make


def _labelled(describe: Describe, classes: int) -> Callable[[Given, int], Members]:
    def facts(sample: Given, number: int) -> Members:
        label = sample.json().get("label")
        if type(label) is not int or label < 0 or (classes and label >= classes):
            expected = f"0 to {classes - 1}" if classes else "the number of a class"
            raise sample.corrupt("label", f": label is {label!r:.50}; expected {expected}")
        return {**sample.json(), **describe(label, number)}

    return facts
