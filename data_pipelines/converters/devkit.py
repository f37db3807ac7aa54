"""Classes of ImageNet's validation pictures, whose tar does not name them, and the classes' names.

They come from ILSVRC2012_devkit_t12.tar.gz or its folder, or from a table of file and class.
"""

import csv
import io
import json
import re
import tarfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.io import loadmat

from mmfusion.errors import UserError, first_line, user_error
from mmfusion.texts import begin

from ..images import SUFFIXES

DEVKIT = ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12")
TRUTH, SYNSETS = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"
WNID = re.compile(r"n\d{8}")
HEAD = re.compile(r"((image|img|picture|photo|file|path|name|id|key)[ _-]?)+")
"""What a table calls its column of files."""
ENDINGS = *SUFFIXES, ".tif", ".tiff", ".ppm", ".tar"
MOST_BYTES = 1 << 26  # of a file of the devkit; the real ones have less than 1 MB


class Labels(NamedTuple):
    """What class each picture is of, and what the classes are called."""

    of: dict[str, str]  # file without its ending -> folder of the class, as n01440764
    names: dict[str, str]  # folder of a class -> words; empty where a table gave the labels


def beside(tar: Path) -> Path | None:
    """The devkit that lies in the same folder as a tar."""
    return next((p for name in DEVKIT if (p := tar.parent / name).exists()), None)


def read_labels(path: Path, folders: list[str]) -> Labels:
    """The labels in a devkit or table; `folders` are those of the classes given by number.

    A table is JSON of {file: class}, or lines of file and class with a comma, tab or space between;
    cells may be quoted, and a first line that names the columns is passed over.
    """
    try:
        if path.is_dir():
            return _devkit({name: (path / name).read_bytes() for name in (TRUTH, SYNSETS)}, path)
        if path.name.endswith((".tar.gz", ".tgz", ".tar")):
            return _devkit(_members(path), path)
        text = begin(path.read_bytes(), path).decode("utf-8", "replace")
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(
            f"{path}: cannot be read ({first_line(error)}); expected {DEVKIT[0]}, its folder, or a "
            "table of file and class"
        ) from None
    pairs: Iterable[Any] = _rows(text)
    if path.suffix == ".json":
        said = f"{path}: expected {{file: class, ...}}"
        with user_error(said, TypeError, ValueError, RecursionError):
            pairs = dict(json.loads(text)).items()
    labels: dict[str, str] = {}
    for file, of in pairs:
        folder = str(of)
        if folder.isdigit():
            if int(of) >= len(folders):
                raise UserError(
                    f"{path}: has the number {of} for {file}; --names must say which class that is"
                )
            folder = folders[int(of)]
        if labels.setdefault(stem(file), folder) != folder:
            raise UserError(f"{path}: says {labels[stem(file)]} and {folder} of {file}")
    if not labels:
        raise UserError(f"{path}: holds no file with its class")
    return Labels(labels, {})


def _cells(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line.strip()], delimiter=delimiter, skipinitialspace=True), [])


def _rows(text: str) -> list[tuple[str, str]]:
    """File and class of the lines of a table; of ILSVRC's boxes behind a class nothing is read."""
    found: list[tuple[str, str]] = []
    lines = [line for line in text.split("\n") if line.strip()]
    usual = max("\t;,", key=lambda d: sum(d in line for line in lines))  # one for the whole table
    for line in lines:
        cells, delimiter = list[str](), usual if usual in line else None
        with suppress(csv.Error):  # of a cell as large as no class
            cells = _cells(line, delimiter) if delimiter else []
        if len(cells) < 2:  # a quote that does not close, or white space between
            words = line.split()
            boxed = next((n for n, word in enumerate(words) if n and WNID.fullmatch(word)), None)
            if delimiter is None and boxed:
                cells = [line[: line.index(words[boxed])], words[boxed]]
            else:
                cells = line.rsplit(delimiter, 1)
        if len(cells) > 1:
            file, of = cells[0].strip(), cells[1].strip()
            first = of.partition(" ")[0]
            found.append((file, first if WNID.fullmatch(first) else of))
    return found[1:] if found and HEAD.fullmatch(found[0][0].lower()) else found


def stem(file: str) -> str:
    """A file's name without folders and ending; what follows another dot belongs to the name."""
    name = file.replace("\\", "/").rpartition("/")[2]
    bare, _, ending = name.rpartition(".")
    return bare if bare and f".{ending.lower()}" in ENDINGS else name


def _members(path: Path) -> dict[str, bytes]:
    """The two files, read where they lie in the archive."""
    found: dict[str, bytes] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            for name in (TRUTH, SYNSETS):
                if member.name.endswith(name) and member.isreg() and member.size < MOST_BYTES:
                    found[name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    if len(found) < 2:
        raise UserError(f"{path}: holds no {TRUTH} and {SYNSETS}; is it the devkit of tasks 1-2?")
    return found


def _devkit(files: dict[str, bytes], path: Path) -> Labels:
    names, folders = dict[str, str](), dict[int, str]()
    with user_error(f"{path}: not a devkit that can be read", Exception):  # loadmat raises any
        for entry in np.ravel(loadmat(io.BytesIO(files[SYNSETS]), squeeze_me=True)["synsets"]):
            if int(entry["num_children"]) == 0:  # the others are classes of classes
                folder = folders[int(entry["ILSVRC2012_ID"])] = str(entry["WNID"])
                names[folder] = str(entry["words"]).partition(",")[0].strip()
        truth = (folders[int(line)] for line in files[TRUTH].split())
        return Labels({f"ILSVRC2012_val_{n:08d}": of for n, of in enumerate(truth, 1)}, names)
