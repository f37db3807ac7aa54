"""Captioned pictures as an evaluation asks for them: prompts, pictures and references by number."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image as PILImage
from tqdm import tqdm

from mmfusion.data_pipelines.images import spelled
from mmfusion.data_pipelines.samples import FACTS, PICTURES
from mmfusion.data_pipelines.shards import Shards
from mmfusion.data_pipelines.storage import beside, expand
from mmfusion.errors import UserError, first_line
from mmfusion.rng import generator
from mmfusion.texts import read_text

from .image_sets import FolderImages, ImageSet, whole_shards

FORMS = '{"a.png": "a dog"}, lines of {"file_name": "a.png", "text": "a dog"}, or COCO annotations'


class CaptionedDataset:
    """Shards with captions. A damaged sample stops the evaluation.

    Attributes:
        captions: of each picture, all of them.
        usable: those of them that fit into a row of the model.
        too_long: how many do not.
    """

    def __init__(self, pattern: str, fits: Callable[[str], bool] = lambda text: True) -> None:
        """Open the shards and read their captions; `fits` says which a row holds with a picture."""
        self.pattern, self.shards = pattern, whole_shards(pattern)
        numbers = tqdm(range(len(self.shards)), "reading captions", leave=False, delay=2)
        self.captions = [self.shards.sample(number, FACTS).captions() for number in numbers]
        self.usable = [[text for text in texts if fits(text)] for texts in self.captions]
        self.too_long = sum(map(len, self.captions)) - sum(map(len, self.usable))
        if not any(self.usable):
            raise UserError(f"{pattern}: no caption is short enough for the model's rows")

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def about(self) -> dict[str, str]:
        """What a figure says of the corpus."""
        return {"data": self.pattern, "data_sha256": self.shards.digest}

    def prompts(self, count: int, seed: int) -> list[str]:
        """Usable captions in random order, one a picture before any has its turn again.

        The first of more prompts are the same as fewer.
        """
        numbers = [number for number, texts in enumerate(self.usable) if texts]
        prompts: list[str] = []
        for turn in range(-(-count // len(numbers))):
            for place in generator("prompts", seed, turn).permutation(len(numbers)):
                texts = self.usable[numbers[place]]  # pictures differ in their wording
                prompts.append(texts[(numbers[place] + turn) % len(texts)])
        return prompts[:count]

    def pictures(self, count: int | None = None) -> "StoredImages":
        """The first `count` pictures (default: all)."""
        return StoredImages(self.shards, range(min(count or len(self), len(self))))


class StoredImages(Sequence[PILImage.Image]):
    """Pictures of shards by number, in any order, read when they are asked for.

    Attributes:
        digest: SHA-256 of which pictures they are.
    """

    def __init__(self, shards: Shards, numbers: Sequence[int]) -> None:
        self._shards, self._numbers = shards, numbers
        self.digest = hashlib.sha256(f"{shards.digest} {list(numbers)}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        return self._shards.sample(self._numbers[number], PICTURES).picture()

    def chosen(self, numbers: Sequence[int]) -> "StoredImages":
        """Some of them, each as often as it is named."""
        return StoredImages(self._shards, [self._numbers[number] for number in numbers])


def open_captioned(
    pictures: str, file: Path | None
) -> tuple[StoredImages | ImageSet, list[str], int]:
    r"""Pictures, the text of each, and how many texts had no picture.

    Args:
        pictures: a folder of pictures, a folder of shards, or a pattern that names shards, whose
            first captions are the texts.
        file: the texts of a folder of pictures: JSON {name: text}, JSON lines with `file_name` and
            `text` or `caption`, or COCO annotations; the first caption of a picture counts. A name
            is the path in the folder, with or without its ending, however it is spelled: `./a.png`
            and `x\a.png`, too.
    """
    found = expand(pictures)
    folder = found[0] if len(found) == 1 and os.path.isdir(found[0]) else None
    if not found:
        raise UserError(f"{pictures}: no such folder of pictures or shards; {beside(pictures)}")
    if folder and not any(Path(folder).glob("*.tar")):
        if file is None:
            raise UserError(f"{pictures}: a folder of pictures needs --texts FILE, as {FORMS}")
        return _paired(FolderImages(folder), file)
    if file is not None:
        raise UserError(f"{pictures}: shards have captions of their own; leave --texts away")
    corpus = CaptionedDataset(f"{folder}/*.tar" if folder else pictures)
    return corpus.pictures(), [captions[0] for captions in corpus.captions], 0


def _paired(shown: FolderImages, file: Path) -> tuple[FolderImages, list[str], int]:
    """A folder's pictures with the texts of a file."""
    given: dict[str, str] = {}
    for name, text in _read_texts(file):
        given.setdefault(spelled(name, shown.name), text)
    texts = []
    for name in shown.names:
        path = spelled(name, shown.name)
        found = given.get(path, given.get(os.path.splitext(path)[0]))
        if found is None:
            raise UserError(
                f"{file}: has no text for {name}; each of the {len(shown)} pictures needs one, as "
                f"{FORMS}"
            )
        texts.append(found)
    return shown, texts, len(given) - len(texts)


def _read_texts(path: Path) -> list[tuple[str, str]]:
    """Names of pictures and their texts."""
    try:
        data = read_text(path)
        if path.suffix in (".jsonl", ".ndjson"):
            held = [json.loads(line) for line in data.split("\n") if line.strip()]
        else:
            held = json.loads(data)
        if isinstance(held, dict) and "annotations" in held:
            names = {image["id"]: image["file_name"] for image in held["images"]}
            rows = [(names[each["image_id"]], each["caption"]) for each in held["annotations"]]
        elif isinstance(held, dict):
            rows = [*held.items()]
        else:
            rows = [(row["file_name"], row.get("text", row.get("caption"))) for row in held]
        if odd := [name for row in rows for name in row if not isinstance(name, str)]:
            raise TypeError(f"{odd[0]!r} is no string")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"texts {path}: expected {FORMS} ({message})") from None
    return rows
