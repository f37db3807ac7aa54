"""Classes of ImageNet's validation pictures, whose tar does not name them, and the classes' names.

They come from ILSVRC2012_devkit_t12.tar.gz or its folder, or from a table of file and class.
"""

import io
import json
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from mmfusion.errors import UserError, first_line
from mmfusion.texts import begin

DEVKIT = ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12")
TRUTH, SYNSETS = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"
MOST_BYTES = 1 << 26  # of a file of the devkit; the real ones have less than 1 MB
WNID = re.compile(r"n\d{8}")


@dataclass
class Labels:
    """What class each picture is of, and what the classes are called.

    Attributes:
        of: file without its ending -> folder of the class, as n01440764.
        names: folder of a class -> words; empty where a table gave the labels.
    """

    of: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


def beside(tar: Path) -> Path | None:
    """The devkit that lies in the same folder as a tar."""
    return next((p for name in DEVKIT if (p := tar.parent / name).exists()), None)


def read_labels(path: Path, numbered: dict[int, str]) -> Labels:
    """The labels in a devkit or table; `numbered` are the folders of classes given by number.

    A table is JSON of {file: class}, or lines of file and class with a comma, tab or space between.
    """
    try:
        if path.is_dir():
            return _devkit((path / TRUTH).read_bytes(), (path / SYNSETS).read_bytes(), path)
        if path.name.endswith((".tar.gz", ".tgz", ".tar")):
            return _devkit(*_members(path), path)
        text = begin(path.read_bytes(), path).decode("utf-8", "replace")
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(
            f"{path}: cannot be read ({first_line(error)}); expected {DEVKIT[0]}, its folder, or a "
            "table of file and class"
        ) from None
    pairs: list[tuple[str, Any]]
    if path.suffix == ".json":
        try:
            pairs = [(str(file), of) for file, of in dict(json.loads(text)).items()]
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: expected {{file: class, ...}} ({error})") from None
    else:
        pairs = [tuple(re.split(r"[,\t ]+", line.strip())[:2]) for line in text.split("\n")]  # type: ignore[misc]
        pairs = [pair for pair in pairs if len(pair) == 2]
    labels = Labels()
    for file, of in pairs:
        if not str(of).isdigit():
            folder = str(of)
        elif int(of) in numbered:
            folder = numbered[int(of)]
        else:
            raise UserError(
                f"{path}: has the number {of} for {file}; --names must say which class that is"
            )
        if labels.of.setdefault(stem(file), folder) != folder:
            raise UserError(f"{path}: says {labels.of[stem(file)]} and {folder} of {file}")
    if not labels.of:
        raise UserError(f"{path}: holds no file with its class")
    return labels


def stem(file: str) -> str:
    """A file's name without folders and ending."""
    name = file.replace("\\", "/").rpartition("/")[2]
    return name.rpartition(".")[0] or name


def _members(path: Path) -> tuple[bytes, bytes]:
    """The two files, read where they lie in the archive."""
    found: dict[str, bytes] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            for name in (TRUTH, SYNSETS):
                if member.name.endswith(name) and member.isreg() and member.size < MOST_BYTES:
                    file = tar.extractfile(member)
                    assert file is not None
                    found[name] = file.read()
    if len(found) < 2:
        raise UserError(f"{path}: holds no {TRUTH} and {SYNSETS}; is it the devkit of tasks 1-2?")
    return found[TRUTH], found[SYNSETS]


def _devkit(truth: bytes, synsets: bytes, path: Path) -> Labels:
    labels, folders = Labels(), dict[int, str]()
    try:
        for entry in np.ravel(loadmat(io.BytesIO(synsets), squeeze_me=True)["synsets"]):
            if int(entry["num_children"]) == 0:  # the others are classes of classes
                folder = str(entry["WNID"])
                folders[int(entry["ILSVRC2012_ID"])] = folder
                labels.names[folder] = str(entry["words"]).partition(",")[0].strip()
        for number, line in enumerate(truth.split(), 1):
            labels.of[f"ILSVRC2012_val_{number:08d}"] = folders[int(line)]
    except Exception as error:  # loadmat raises anything at a damaged file
        raise UserError(f"{path}: not a devkit that can be read ({first_line(error)})") from None
    return labels
