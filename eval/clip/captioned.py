"""Pictures with a text for each: a folder and a file of texts, or shards with captions."""

import hashlib
import json
from abc import ABC, abstractmethod
from pathlib import Path

from mmfusion.data_pipelines.pictures import SUFFIXES
from mmfusion.data_pipelines.samples import FACTS, is_picture
from mmfusion.data_pipelines.shards import Shards
from PIL import Image as Picture

from mmfusion.codecs.image import open_picture
from mmfusion.errors import UserError, first_line

FORMS = '{"a.png": "a dog"}, lines of {"file_name": "a.png", "text": "a dog"}, or COCO annotations'


class Captioned(ABC):
    """Pictures, read when they are asked for, and the text of each.

    Attributes:
        texts: one for each picture.
        digest: of the pictures' contents.
        unused: how many texts had no picture.
    """

    texts: list[str]
    digest: str
    unused = 0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, number: int, /) -> Picture.Image: ...


class _Folder(Captioned):
    def __init__(self, folder: Path, file: Path) -> None:
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not paths:
            raise UserError(f"{folder}: holds no pictures ({', '.join(SUFFIXES)}) and no shards")
        names = [path.relative_to(folder).as_posix() for path in paths]
        told = read_texts(file)
        found = [told.get(name, told.get(name.rpartition(".")[0])) for name in names]
        without = [name for name, text in zip(names, found, strict=True) if text is None]
        if without:
            raise UserError(
                f"{file}: has no text for {without[0]} ({len(without)} of {len(names)} pictures); "
                f"it needs one for each, as {FORMS}"
            )
        self._paths, self.texts = paths, [str(text) for text in found]
        self.unused = len(told) - len(names)
        whole = hashlib.sha256()
        for path in paths:
            whole.update(hashlib.sha256(path.read_bytes()).digest())
        self.digest = whole.hexdigest()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int, /) -> Picture.Image:
        path = self._paths[number]
        return open_picture(path.read_bytes(), str(path))


class _Shards(Captioned):
    def __init__(self, pattern: str) -> None:
        self._shards = Shards(pattern)
        if self._shards.lost:
            path, lost = self._shards.lost[0]
            raise UserError(f"{path}: {lost.what}; a score needs all of the pictures")
        samples = (self._shards.sample(i, FACTS) for i in range(len(self._shards)))
        self.texts = [sample.captions(sample.json())[0] for sample in samples]
        self.digest = self._shards.digest

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, number: int, /) -> Picture.Image:
        wanted = [ext for ext in self._shards.extensions(number) if is_picture(ext)]
        return self._shards.sample(number, wanted).picture()


def open_captioned(pictures: str, texts: Path | None) -> Captioned:
    """Pictures and the text of each.

    Args:
        pictures: a folder of pictures, a folder of shards, or a pattern that names shards, whose
            first captions are the texts.
        texts: for a folder of pictures: JSON {name: text}, JSON lines with `file_name` and `text`
            or `caption`, or COCO annotations, of which the first caption of a picture counts. A
            name is the path in the folder, with or without its ending.

    Raises:
        UserError: something is missing, or a picture has no text.
    """
    folder = Path(pictures)
    pattern = pictures
    if folder.is_dir():
        if not any(folder.glob("*.tar")):
            if texts is None:
                raise UserError(f"{pictures}: a folder of pictures needs --texts FILE, as {FORMS}")
            return _Folder(folder, texts)
        pattern = f"{pictures}/*.tar"
    elif ".tar" not in pictures:
        raise UserError(f"{pictures}: no such folder of pictures or shards")
    if texts is not None:
        raise UserError(f"{pictures}: shards have captions of their own; leave --texts away")
    return _Shards(pattern)


def read_texts(path: Path) -> dict[str, str]:
    """The texts of a file by the name of their picture; forms as in `open_captioned`.

    Raises:
        UserError: it is missing, or holds something else.
    """
    try:
        data = path.read_text(encoding="utf-8")
        held = (
            [json.loads(line) for line in data.splitlines() if line.strip()]
            if path.suffix == ".jsonl"
            else json.loads(data)
        )
        if isinstance(held, dict) and "annotations" in held:
            names = {image["id"]: image["file_name"] for image in held["images"]}
            rows = [(names[a["image_id"]], a["caption"]) for a in held["annotations"]]
        elif isinstance(held, dict):
            rows = list(held.items())
        else:
            rows = [(row["file_name"], row.get("text", row.get("caption"))) for row in held]
    except OSError as error:
        raise UserError(f"texts {path}: cannot be read ({first_line(error)})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"texts {path}: expected {FORMS} ({told})") from None
    texts: dict[str, str] = {}
    for name, text in rows:
        if not isinstance(name, str) or not isinstance(text, str):
            raise UserError(f"texts {path}: the text of {name!r} is no string; expected {FORMS}")
        texts.setdefault(name, text)  # of several captions the first
    return texts
