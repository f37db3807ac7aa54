"""A pipeline whose answers are made side by side by all processes, and kept on disk.

Answers come in files of a fixed size, cut by their number: which process makes a file, and whether
in this run or one that was killed before, changes nothing in it. Files are shards, so pictures can
be looked at, scored by other programs, or trained on. What is asked decides the folder's name, so
answers to another question, of other weights or with other options, are never taken for these.
"""

import hashlib
import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from mmfusion import Pipeline, jsonl
from mmfusion.codecs.image import encoded
from mmfusion.data_pipelines.shards import Shards, write_shard
from mmfusion.errors import UserError
from mmfusion.files import append, write
from mmfusion.generation.likelihood import Likelihood

from . import work
from .image_sets import ShardImages

VERSION = 1
"""Of what is in the files."""
SECONDS = "seconds.jsonl"


class StoredSamples(Sequence[Any]):
    """Answers on disk: a picture, a text, or with several slots the list of both, by number.

    Attributes:
        folder: of the shards.
        digest: SHA-256 of what they hold.
    """

    def __init__(self, folder: Path, paths: list[Path]) -> None:
        self.folder = folder
        self._shards = Shards([str(path) for path in paths])
        self.digest = self._shards.digest

    def pictures(self, size: int) -> ShardImages:
        """As a set of pictures to be measured."""
        return ShardImages(str(self.folder), size, self._shards)

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        sample = self._shards[int(number)]
        made = [_read(ext, sample[ext]) for ext in sorted(sample) if ext != "json"]
        if not made:
            return sample.json()
        return made[0] if len(made) == 1 else made


class SampleStore:
    """Takes a pipeline's place in an evaluation; see `Pipeline` for its methods."""

    def __init__(
        self, pipeline: Pipeline, folder: Path, model: str, seed: int = 0, batch: int = 100
    ) -> None:
        """Keep answers of the model with the SHA-256 `model` under `folder`; i has seed + i.

        `batch` of them are made side by side, and kept as one file.
        """
        self.pipeline, self.folder, self.config = pipeline, folder, pipeline.config
        self.model, self.seed, self.batch = model, seed, batch
        self.seconds: dict[str, float] = {}
        """Spent on the answers of each task, over all processes and runs."""

    def check(self, task: str, options: dict[str, Any]) -> None:
        """Refuse options that the model cannot answer with, before anything is asked."""
        read = self.pipeline.read
        slot = read.text_slot if task == "image_to_text" else read.image_slot
        parts = [slot(task, options)]
        if task == "image_to_text":
            parts.append(read.image_slot("interleaved", {}))  # as long as a given picture
        read.check_length(parts, f"a picture in {task}")

    def fits(self, text: str) -> bool:
        """Whether a row of the model holds a picture with this text, asked for or given."""
        read = self.pipeline.read
        picture = read.image_slot("interleaved", {})
        for segment in (read.text(text), read.answer(text)):
            try:
                read.check_length([segment, picture])
            except UserError:
                return False
        return True

    def class_to_image(self, labels: Sequence[int], **options: Any) -> StoredSamples:
        return self._ask("class_to_image", [list(labels)], options)

    def text_to_image(self, prompts: Sequence[str], **options: Any) -> StoredSamples:
        return self._ask("text_to_image", [list(prompts)], options)

    def image_to_text(self, images: Sequence[PILImage.Image], **options: Any) -> StoredSamples:
        return self._ask("image_to_text", [images], options)

    def edit(
        self, image: Sequence[PILImage.Image], mask: Any, prompt: Any = None, label: Any = None,
        **options: Any,
    ) -> StoredSamples:  # fmt: skip
        return self._ask("edit", [image, mask, prompt, label], options)

    def generate(self, prompt: Sequence[list[Any]], **options: Any) -> list[list[Any]]:
        """The prompts with their slots filled."""
        filled = []
        for given, made in zip(prompt, self._ask("interleaved", [prompt], options), strict=True):
            found = iter(made if isinstance(made, list) else [made])
            filled.append([next(found) if _is_slot(item) else item for item in given])
        return filled

    def log_likelihood(self, prompts: Sequence[Any], answers: Sequence[str]) -> list[Likelihood]:
        kept = self._ask("log_likelihood", [prompts, list(answers)], {})
        return [Likelihood(**each) for each in kept]

    def _answers(self, task: str, asked: list[Any], first: int, options: Any) -> list[list[Any]]:
        """The pipeline's own answers to one file's part of what is asked, each as its parts."""
        if task == "log_likelihood":
            prompts, texts = asked
            found = self.pipeline.log_likelihood(prompts, texts, batch_size=self.batch)
            return [[asdict(each)] for each in found]
        options = {"seed": self.seed + first, "batch_size": self.batch, **options}
        if task == "interleaved":
            given = list(asked[0])
            filled = self.pipeline.generate(given, **options)
            return [[item for item, place in zip(*pair, strict=True) if _is_slot(place)]
                    for pair in zip(filled, given, strict=True)]  # fmt: skip
        return [[made] for made in getattr(self.pipeline, task)(*asked, **options)]

    def _ask(self, task: str, asked: list[Any], options: dict[str, Any]) -> StoredSamples:
        """The answers to what is asked, made where they are not there.

        `asked` is what the pipeline's method takes, by place: items, and what belongs to each.
        """
        count, weight = len(asked[0]), self.pipeline.decoder.latent_in.weight
        question = {
            "version": VERSION,
            "task": task,
            "model_sha256": self.model,
            "kind": [weight.device.type, str(weight.dtype)],
            "count": count,
            "seed": self.seed,
            "batch": self.batch,
            "options": options,
            "sampling": self.config.generation.model_dump().get(task),
            "asked_sha256": _digest(asked),
        }
        folder = self.folder / f"{task}-{_digest(question)[:12]}"
        described = folder / "question.json"
        if not described.exists():
            text = json.dumps(question, indent=1, default=repr)
            write(described, text.encode("utf-8", "replace"))

        def make(first: int, path: Path) -> None:
            begun = time.perf_counter()
            part = slice(first, first + self.batch)
            mine = [value[part] if number == 0 or isinstance(value, list) else value
                    for number, value in enumerate(asked)]  # fmt: skip
            made = self._answers(task, mine, first, options)
            # Before the file is there: others go on as soon as it is.
            entry = {"file": path.name, "seconds": time.perf_counter() - begun}
            append(folder / SECONDS, json.dumps(entry) + "\n")
            pairs = enumerate(zip(mine[0], made, strict=True), first)
            write_shard(path, ((f"{n:08d}", _members(task, *pair)) for n, pair in pairs))

        starts = range(0, count, self.batch)
        parts = {folder / f"{n:08d}.tar": partial(make, start) for n, start in enumerate(starts)}
        unit = {"image_to_text": "caption", "log_likelihood": "text"}.get(task, "picture")
        work.share(parts, task.replace("_", " "), unit, count, self.batch)
        self.seconds[task] = self.seconds.get(task, 0.0) + _seconds(folder / SECONDS)
        return StoredSamples(folder, list(parts))


def _is_slot(item: Any) -> bool:
    return not isinstance(item, (str, PILImage.Image))


def _seconds(log: Path) -> float:
    """What the files took: the last entry of each, since one may have been made twice."""
    entries = jsonl.objects(log) if log.is_file() else ()
    latest = {entry["file"]: entry["seconds"] for entry in entries}
    return sum(latest.values())


def _members(task: str, asked: Any, answer: list[Any]) -> dict[str, Any]:
    """What is kept of an answer: its parts, and the label or caption that was asked for."""
    found: dict[str, Any] = {}
    if task == "class_to_image":
        found["json"] = {"label": asked}
    elif task == "text_to_image":
        found["json"] = {"captions": [asked]}
    for place, item in enumerate(answer):
        head = f"{place}." if len(answer) > 1 else ""
        if isinstance(item, dict):
            found["json"] = item
        elif isinstance(item, str):
            found[f"{head}txt"] = item.encode("utf-8", "replace")
        else:
            found[f"{head}png"] = encoded(item)
    return found


def _read(ext: str, data: bytes) -> str | PILImage.Image:
    if ext.endswith("txt"):
        return data.decode("utf-8")
    picture: PILImage.Image = PILImage.open(io.BytesIO(data), formats=["PNG"])
    picture.load()
    return picture


def _digest(value: Any) -> str:
    """SHA-256 of plain data, arrays and pictures, and of what has a digest of its own."""
    digest = hashlib.sha256()
    for piece in _pieces(value):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(value: Any) -> Iterator[bytes]:
    if isinstance(value, PILImage.Image):
        yield f"picture {value.mode} {value.size} ".encode()
        yield value.tobytes()
    elif isinstance(value, np.ndarray):
        yield f"array {value.dtype} {value.shape} ".encode()
        yield value.tobytes()
    elif isinstance(own := getattr(value, "digest", None), str):
        yield f"digest {own} ".encode()
    elif isinstance(value, dict):
        yield from _pieces([[key, value[key]] for key in sorted(value)])
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield f"list {len(value)} ".encode()
        for item in value:
            yield from _pieces(item)
    else:
        text = repr(value).encode("utf-8", "backslashreplace")
        yield f"item {len(text)} ".encode() + text
