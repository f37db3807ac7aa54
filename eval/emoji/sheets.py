"""What the suite's page shows: the first cells of the test, none picked."""

from collections.abc import Sequence
from typing import Any

from PIL import Image as PILImage

from mmfusion.data_pipelines.converters.emoji import Cell

from ..sample_store import SampleStore
from .cells import Test, prompt
from .judge import Verdict

SHOWN = 12
"""Answers of each kind."""
NAMES = 8
"""Names across the table."""


def table(answers: SampleStore, test: Test, sampling: dict[str, Any]) -> list[dict[str, Any]]:
    """The first names in all styles: a row a style, {"style", "cells"}; kept cells are marked."""
    cells = table_cells(test)
    made = answers.text_to_image([prompt(cell) for row in cells for cell in row], **sampling)
    drawn = iter(made)
    return [
        {"style": row[0][1], "cells": [
            {"name": cell[0], "text": prompt(cell), "picture": next(drawn),
             "kept": cell not in test.real.trained}
            for cell in row
        ]}
        for row in cells
    ]  # fmt: skip


def table_cells(test: Test) -> list[list[Cell]]:
    """The first names of a test across, all styles down."""
    styles = sorted({style for _, style in test.real.pictures})
    return [[(name, style) for name, _ in test.kept[:NAMES]] for style in styles]


def answers(
    prompts: Sequence[list[Any]], made: Sequence[PILImage.Image], test: Test, verdict: Verdict
) -> list[dict[str, Any]]:
    """Answers to prompts of pictures and words, with the verdict on each."""
    return [
        {"given": prompts[n][:-1], "made": made[n], "text": prompt(test.kept[n]),
         "name": bool(verdict.name[n]), "style": bool(verdict.style[n])}
        for n in range(min(len(made), SHOWN))
    ]  # fmt: skip
