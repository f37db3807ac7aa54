"""The digits suite: all five tasks of a model, measured through its public pipeline.

What a picture shows is said by a judge that knows only real digits, what a caption says by the one
digit that it names (`judge.py`). No picture is picked: the sheets show the first ones, and of the
nearest neighbours those that look most like a copy.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from mmfusion import ImageSlot, TextSlot
from mmfusion.config import ModelConfig
from mmfusion.config.evaluation import Digits
from mmfusion.data_pipelines.converters.digits import CONTINUATION, captions
from mmfusion.errors import UserError
from mmfusion.generation.edit_masks import region

from ..captions.scores import score
from ..formatting import Row
from ..metrics import frechet_distance
from ..sample_store import SampleStore
from .edits import edit_sheet, kept_identical
from .judge import Judge, features, named_digit
from .real import SIDE, read_digits

SHOWN = 20
"""Pictures on a sheet; the sheet of classes has ten a class."""
TASKS = "class_to_image", "text_to_image", "image_to_text", "interleaved", "edit"

Cells = list[dict[str, Any]]
"""What one sheet of the page shows: pictures, what was wanted and what was found."""
Findings = tuple[dict[str, Any], dict[str, Cells]]
"""Entries of the report, and sheets by name."""


class Suite:
    """The measurements of one model; each returns its findings.

    Attributes:
        inputs: digests of the real digits.
    """

    def __init__(self, answers: SampleStore, settings: Digits) -> None:
        """Read the real digits; `answers` may be anything with the methods of `Pipeline`."""
        if why := unfit(answers.config):
            raise UserError(why)
        self.answers, self.settings = answers, settings
        data = Path(settings.data)
        self.train, self.unseen = read_digits(data, "train"), read_digits(data, "held_out")
        self.inputs = {"train": self.train.digest, "held_out": self.unseen.digest}
        self.judge = Judge(self.train, self.unseen)
        self.held_out = self.unseen.first(settings.held_out)

    def measure(self) -> Findings:
        """All five tasks: entries of the report (plain data), and the sheets' cells."""
        judge = self.judge
        about = {"k": judge.k, "accuracy_on_held_out": judge.accuracy, "n": judge.n_held_out}
        report: dict[str, Any] = {"judge": about}
        sheets: dict[str, Cells] = {}
        for task in TASKS:
            numbers, cells = getattr(self, task)()
            report |= numbers
            sheets |= cells
        return report, sheets

    def class_to_image(self, **options: Any) -> Findings:
        """Pictures of each class: right digit, Fréchet distance, and how many are copies."""
        labels = np.arange(self.settings.pictures) % 10
        made = self.answers.class_to_image(labels.tolist(), **options)
        judged = self.judge(made)
        right = judged == labels
        nearest, distance = self.judge.nearest(made)
        real, unseen = features(self.train.pictures), features(self.unseen.pictures)
        per_class = {str(digit): _share(right[digit::10]) for digit in range(min(10, len(made)))}
        report = {
            "class_to_image": {"accuracy": _share(right), "n": len(made), "per_class": per_class},
            "frechet_pixel": {
                "value": frechet_distance(features(made), real),
                "n": len(made),
                "features": "pixels value/8-1",
                "reference": f"{len(real)} training pictures",
                "held_out_value": frechet_distance(unseen, real),
                "n_held_out": len(unseen),
            },
            "memorised": _share(distance < self.judge.threshold),
            "memorised_threshold": self.judge.threshold,
        }
        real_ones = [PILImage.fromarray(self.train.pictures[i]) for i in nearest]
        copies = _cells(np.argsort(distance)[:SHOWN], picture=made, neighbour=real_ones,
                        distance=distance, label=labels)  # fmt: skip
        cells = _cells(range(100), label=labels, picture=made, judged=judged)
        return report, {"class_to_image": cells, "nearest": copies}

    def text_to_image(self, **options: Any) -> Findings:
        """Pictures of captions, all classes and wordings in turn: the judge sees the digit."""
        number = np.arange(self.settings.pictures)
        labels, wordings = number % 10, number // 10 % 10
        prompts = [captions(d)[w] for d, w in zip(labels.tolist(), wordings.tolist(), strict=True)]
        made = self.answers.text_to_image(prompts, **options)
        judged = self.judge(made)
        some = number[::11][:SHOWN]  # the wordings take turns, too
        cells = _cells(some, prompt=prompts, picture=made, label=labels, judged=judged)
        report = {"accuracy": _share(judged == labels), "n": len(made)}
        return {"text_to_image": report}, {"text_to_image": cells}

    def image_to_text(self) -> Findings:
        """Captions of held-out pictures: they name the digit, and CIDEr against its wordings."""
        labels, pictures = self.held_out.labels, self.held_out.drawn()
        written = list(self.answers.image_to_text(pictures))
        named = [named_digit(caption) for caption in written]
        allowed = [captions(int(label)) for label in labels]
        cider = score(allowed, written, ["cider"], "plain").figures["cider"]  # same everywhere
        report = {
            "accuracy": _share(np.array(named, object) == labels),
            "cider": cider["value"],
            "cider_tokenizer": cider["tokenizer"],
            "n": cider["n"],
            "cider_warning": cider["warning"],
        }
        cells = _cells(range(SHOWN), picture=pictures, label=labels, caption=written, named=named)
        return {"image_to_text": report}, {"image_to_text": cells}

    def interleaved(self) -> Findings:
        """After a held-out digit and "then comes": the next digit's name, then a picture of it."""
        following, pictures = (self.held_out.labels + 1) % 10, self.held_out.drawn()
        prompts = [[p, CONTINUATION, TextSlot(), ImageSlot()] for p in pictures]
        answers = self.answers.generate(prompts)
        written, made = [a[2] for a in answers], [a[3] for a in answers]
        named, judged = [named_digit(text) for text in written], self.judge(made)
        name_right, picture_right = np.array(named, object) == following, judged == following
        report = {
            "accuracy": _share(name_right & picture_right),
            "name_accuracy": _share(name_right),
            "picture_accuracy": _share(picture_right),
            "n": len(answers),
        }
        cells = _cells(range(SHOWN), given=pictures, continuation=[CONTINUATION] * len(answers),
                       text=written, picture=made, label=following, named=named,
                       judged=judged)  # fmt: skip
        return {"interleaved": report}, {"interleaved": cells}

    def edit(self) -> Findings:
        """Bottom halves drawn anew, for the own label and another: right, and the top untouched."""
        chosen = self.held_out.first(self.settings.edits)
        labels, pictures = chosen.labels, chosen.drawn()
        others = (labels + 5) % 10
        same = self.answers.edit(pictures, "bottom", label=labels.tolist())
        other = self.answers.edit(pictures, "bottom", label=others.tolist())
        bottom = region("bottom", SIDE, SIDE)
        mask = PILImage.fromarray(bottom.astype(np.uint8) * 255)
        rows, kept = edit_sheet(self.answers, chosen)
        for made in (same, other):
            kept &= kept_identical(self.answers.config, bottom, made, chosen.pictures)
        judged_same, judged_other = self.judge(same), self.judge(other)
        report = {
            "kept_identical": kept,
            "accuracy": _share(judged_same == labels),
            "n": len(labels),
            "other_label_accuracy": _share(judged_other == others),
            "other_label_n": len(others),
        }
        cells = _cells(range(SHOWN), original=pictures, mask=[mask] * len(labels), label=labels,
                       same=same, judged_same=judged_same, other_label=others, other=other,
                       judged_other=judged_other)  # fmt: skip
        return {"edit": report}, {"edit": cells, "edits": rows}


def unfit(config: ModelConfig) -> str:
    """Why the suite cannot measure a model; empty if it can."""
    image, classes = config.image, config.classes
    if (image.size, image.channels) != (SIDE, 1) or len(classes) != 10:
        return (
            f"the digits suite measures models of 8x8 grey pictures in ten classes; this one has "
            f"image.size {image.size}, image.channels {image.channels} and {len(classes)} classes"
        )
    if config.text is None:
        return "the digits suite needs a model with text; this one has no tokenizer"
    return ""


def _cells(numbers: Iterable[int], **columns: Any) -> Cells:
    """Cells of a sheet, of those of the numbers that each column has."""
    plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in columns.items()}
    count = min(map(len, plain.values()))
    return [{k: v[i] for k, v in plain.items()} for i in numbers if i < count]


def _share(right: Any) -> float:
    return float(np.mean(right))


def summary(report: dict[str, Any]) -> list[Row]:
    """The scores for people, with what real digits reach where that can be said."""
    told, edit, distance = (report[name] for name in ("image_to_text", "edit", "frechet_pixel"))
    held_out = report["judge"]["accuracy_on_held_out"]

    def right(title: str, task: str, note: str, part: str = "") -> Row:
        of = report[task]
        shown = f"{100 * of[f'{part}accuracy']:.1f}%"
        return Row(title, shown, of.get(f"{part}n", of["n"]), note)

    return [
        right("Class → image", "class_to_image",
              f"the judge sees the class; of real ones the judge sees {100 * held_out:.1f}%"),
        right("Text → image", "text_to_image", "the judge sees the caption's digit"),
        right("Image → text", "image_to_text",
              "the caption names a held-out picture's digit, and no other"),
        Row("CIDEr", f"{told['cider']:.2f}", told["n"],
            f"against ten wordings; tokenizer: {told['cider_tokenizer']}",
            told.get("cider_warning", "")),
        right("Interleaved", "interleaved",
              "after a picture and “then comes”: next name and picture"),
        right("… its name", "interleaved", "the text names the next digit, and no other", "name_"),
        right("… its picture", "interleaved", "the judge sees the next digit", "picture_"),
        right("Editing", "edit", "bottom half drawn anew under the own label: the judge sees it"),
        right("… another label", "edit", "bottom half drawn anew under another label",
              "other_label_"),
        Row("… top half kept", "yes" if edit["kept_identical"] else "NO",
            edit["n"] + edit["other_label_n"], "bit for bit, in all edits"),
        Row("Fréchet distance", f"{distance['value']:.2f}", distance["n"],
            f"{distance['features']}, against {distance['reference']}; lower is better. "
            f"{distance['n_held_out']} real held-out pictures: {distance['held_out_value']:.2f}"),
        Row("Memorised", f"{100 * report['memorised']:.1f}%", report["class_to_image"]["n"],
            f"nearer than {report['memorised_threshold']:.2f} to a training picture, as 5% of real "
            "held-out pictures are"),
    ]  # fmt: skip
