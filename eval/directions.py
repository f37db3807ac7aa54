"""Each direction measured: pictures of classes, pictures of texts, texts of pictures."""

from pathlib import Path
from typing import Any

from mmfusion.config.evaluation import ClassToImage, ImageToText, TextToImage

from .answers import Answers

Findings = tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]


def class_to_image(answers: Answers, asked: ClassToImage, output: Path) -> Findings:
    raise NotImplementedError


def text_to_image(answers: Answers, asked: TextToImage, output: Path) -> Findings:
    raise NotImplementedError


def image_to_text(answers: Answers, asked: ImageToText, output: Path) -> Findings:
    raise NotImplementedError
