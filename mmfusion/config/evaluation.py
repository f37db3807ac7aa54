"""What `mmfusion eval` measures: a section for each direction, and what it is compared with."""

from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from mmfusion.config.sampling import OF_PICTURES, OF_TEXTS, Sampling
from mmfusion.config.section import PathName, Section, faults

ImageMetric = Literal["fid", "sfid", "is", "precision", "recall", "kid"]
CaptionMetric = Literal["bleu", "rouge_l", "cider", "meteor"]


class Asked(Section):
    """How answers are made: what differs from the model's own defaults for the task."""

    allowed: ClassVar[tuple[str, ...]]
    """The options that do something for such answers."""

    sampling: dict[str, Any] = Field({})
    """Options of `Sampling`: those of pictures for pictures, those of texts for texts."""
    training_shards: bool = False
    """The data, or the reference, are what the model was trained on: each figure says so."""
    best_of: int = Field(1, gt=0)
    """Answers made for each prompt, of which the model keeps the one that it finds likeliest."""

    @field_validator("sampling")
    @classmethod
    def _known(cls, given: dict[str, Any]) -> dict[str, Any]:
        try:
            Sampling.model_validate(given)
        except ValidationError as error:
            raise ValueError("; ".join(told for _, told in faults(Sampling, error))) from None
        return given

    @model_validator(mode="after")
    def _of_use(self) -> "Asked":
        # Where candidates are ranked, this says how, though no text is written.
        ranks = ("length_penalty",) if self.best_of > 1 else ()
        if idle := [name for name in self.sampling if name not in (*self.allowed, *ranks)]:
            raise ValueError(
                f"sampling: {', '.join(idle)} would change nothing here; "
                f"there are {', '.join(self.allowed)}"
            )
        return self


class Drawn(Asked):
    """Pictures against a reference set, by features."""

    allowed = OF_PICTURES

    pictures: int = Field(gt=0)
    """How many are drawn. Only distances of the same number compare."""
    reference: PathName | None = None
    """A folder, shards, a samples npz, or a reference npz of openai/guided-diffusion."""
    features: list[str] = Field(["inception"], min_length=1)
    """Extractors: inception[:FILE], dinov2:MODEL, clip:MODEL:WEIGHTS, pixels."""
    metrics: list[ImageMetric] = Field([*get_args(ImageMetric)], min_length=1)
    """Which of them to measure; those that the features do not serve are left out."""


class ClassToImage(Drawn):
    """Pictures of all classes in turn."""

    pictures: int = Field(50_000, gt=0)


class TextToImage(Drawn):
    """Pictures of a corpus's captions, one caption of a sample each."""

    data: PathName
    """Shards with captions; also the reference, if no other is given."""
    pictures: int = Field(30_000, gt=0)
    clip: str | None = None
    """MODEL:WEIGHTS of the CLIP score."""
    cycle: bool = True
    """Measure how likely the prompt is as a caption of its picture, by the model itself."""


class ImageToText(Asked):
    """Captions of a corpus's pictures, against its own."""

    allowed = OF_TEXTS

    data: PathName
    """Shards with captions."""
    pictures: int | None = Field(None, gt=0)
    """Use only the first so many; default: all."""
    metrics: list[CaptionMetric] = Field([*get_args(CaptionMetric)], min_length=1)
    """Which of them to measure; METEOR needs Java."""
    tokenizer: Literal["auto", "ptb", "plain", "spaces"] = "auto"
    """auto: as published scores (ptb) where Java is, else plain."""
    clip: str | None = None
    """MODEL:WEIGHTS of RefCLIPScore."""
    perplexity: bool = True
    """Of the references, given their picture."""


class Digits(Section):
    """The digits suite: five tasks, judged by real digits."""

    data: PathName
    """Folder that `mmfusion data digits` wrote."""
    pictures: int = Field(1000, gt=0)
    """Drawn from classes."""
    held_out: int | None = Field(None, gt=0)
    """Use only so many held-out pictures; default: all."""
    edits: int = Field(100, gt=0)
    """Edits that are judged."""


class Emoji(Section):
    """The emoji suite: cells of names and styles, judged by a network from pip."""

    data: PathName
    """Folder that `mmfusion data emoji` wrote."""
    set: Literal["held_out", "validation"] = "held_out"
    """The kept cells; choose guidance, EMA and checkpoint by `validation`."""
    cells: int = Field(300, gt=1)
    """Of the set, at most; as many pictures are drawn of each kind."""
    edits: int = Field(60, gt=0)
    """Cells that are edited."""
    judge: str = "efficientnet"
    """Extractor with features and style."""
    sampling: dict[str, Any] = Field({})
    """Options of `Sampling` for all pictures but edits, such as {guidance: 3}."""


class EvaluationConfig(Section):
    """A whole evaluation."""

    seed: int = Field(0, ge=0)
    """Answer i of a task uses seed + i and nothing else."""
    batch: int = Field(100, gt=0)
    """Answers made side by side and kept as one file, on whichever rank; figures may differ in
    their last bits between batches of different sizes."""
    class_to_image: ClassToImage | None = None
    text_to_image: TextToImage | None = None
    image_to_text: ImageToText | None = None
    digits: Digits | None = None
    emoji: Emoji | None = None

    @model_validator(mode="after")
    def _check(self) -> "EvaluationConfig":
        suites = self.digits, self.emoji
        if not any((self.class_to_image, self.text_to_image, self.image_to_text, *suites)):
            raise ValueError(
                "there is nothing to measure: name class_to_image, text_to_image, image_to_text, "
                "digits or emoji"
            )
        return self
