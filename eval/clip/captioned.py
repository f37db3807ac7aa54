"""Pictures with a text for each: a folder and a file of texts, or shards with captions."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as PILImage

from mmfusion.data_pipelines.images import spelled
from mmfusion.data_pipelines.storage import beside, expand
from mmfusion.errors import UserError, first_line
from mmfusion.texts import read_text

from ..captioned_dataset import CaptionedDataset
from ..image_sets import FolderImages, ImageSet

FORMS = '{"a.png": "a dog"}, lines of {"file_name": "a.png", "text": "a dog"}, or COCO annotations'


@dataclass(frozen=True)
class Captioned:
    """Pictures, read when they are asked for, and the text of each.

    Attributes:
        digest: of the pictures' contents.
        unused: how many texts had no picture.
    """

    pictures: Sequence[PILImage.Image] | ImageSet
    texts: list[str]
    digest: str
    unused: int = 0


def open_captioned(pictures: str, texts: Path | None) -> Captioned:
    r"""Pictures and the text of each.

    Args:
        pictures: a folder of pictures, a folder of shards, or a pattern that names shards, whose
            first captions are the texts.
        texts: for a folder of pictures: JSON {name: text}, JSON lines with `file_name` and `text`
            or `caption`, or COCO annotations, of which the first caption of a picture counts. A
            name is the path in the folder, with or without its ending, however it is spelled:
            `./a.png` and `x\a.png`, too.

    Raises:
        UserError: something is missing, or a picture has no text.
    """
    pattern, found = pictures, expand(pictures)
    if [folder := Path(path) for path in found if Path(path).is_dir()]:
        if len(found) > 1:
            raise UserError(f"{pictures}: names {len(found)} files and folders; give one folder")
        if not any(folder.glob("*.tar")):
            if texts is None:
                raise UserError(f"{pictures}: a folder of pictures needs --texts FILE, as {FORMS}")
            return _paired(FolderImages(str(folder)), texts)
        pattern = f"{folder}/*.tar"
    elif not found:
        raise UserError(f"{pictures}: no such folder of pictures or shards; {beside(pictures)}")
    if texts is not None:
        raise UserError(f"{pictures}: shards have captions of their own; leave --texts away")
    corpus = CaptionedDataset(pattern)
    shown = corpus.pictures()
    return Captioned(shown, [captions[0] for captions in corpus.captions], shown.digest)


def _paired(shown: FolderImages, file: Path) -> Captioned:
    """A folder's pictures with the texts of a file."""
    message: dict[str, str] = {}
    for name, text in read_texts(file).items():
        message.setdefault(spelled(name, shown.name), text)
    paths = [spelled(name, shown.name) for name in shown.names]
    found = [message.get(path, message.get(os.path.splitext(path)[0])) for path in paths]
    without = [name for name, text in zip(shown.names, found, strict=True) if text is None]
    if without:
        raise UserError(
            f"{file}: has no text for {without[0]} ({len(without)} of {len(shown)} pictures); it "
            f"needs one for each, as {FORMS}"
        )
    texts = [text for text in found if text is not None]
    return Captioned(shown, texts, shown.digest, len(message) - len(texts))


def read_texts(path: Path) -> dict[str, str]:
    """The texts of a file by the name of their picture; forms as in `open_captioned`.

    Raises:
        UserError: it is missing, or holds something else.
    """
    try:
        data = read_text(path)
        held = (
            [json.loads(line) for line in data.split("\n") if line.strip()]
            if path.suffix in (".jsonl", ".ndjson")
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
        message = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"texts {path}: expected {FORMS} ({message})") from None
    texts: dict[str, str] = {}
    for name, text in rows:
        if not isinstance(name, str) or not isinstance(text, str):
            raise UserError(f"texts {path}: the text of {name!r} is no string; expected {FORMS}")
        texts.setdefault(name, text)  # of several captions the first
    return texts
