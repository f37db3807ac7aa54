"""The shipped colour model: what it draws it reads, and every documented call answers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

import mmfusion
from mmfusion import ImageSlot, Pipeline, TextSlot
from mmfusion.errors import UserError
from mmfusion.manifest import MANIFEST

FOLDER = Path(mmfusion.__path__[0], "models/emoji")
PROMPTS = [
    "a star, noto style",
    "a frog, twemoji style",
    "a penguin, fluent style",
    "a volcano, noto style",
    "a cactus, emojione style",
    "a balloon, twemoji style",
    "a ghost, fluent style",
    "a watermelon, emojione style",
]  # trained cells
LARGEST = 24 << 20  # bytes of the folder


@pytest.fixture(scope="module")
def emoji() -> Pipeline:
    return Pipeline.from_pretrained("emoji", "cpu")


@pytest.fixture(scope="module")
def drawn(emoji: Pipeline) -> dict[str, PILImage.Image]:
    return dict(zip(PROMPTS, emoji.text_to_image(PROMPTS, seed=1), strict=True))


def test_it_reads_what_it_draws(emoji: Pipeline, drawn: dict[str, PILImage.Image]):
    assert {(picture.size, picture.mode) for picture in drawn.values()} == {((64, 64), "RGB")}
    read = emoji.image_to_text([*drawn.values()])
    assert sum(said == asked for said, asked in zip(read, drawn, strict=True)) >= 7, read
    titled = [prompt.title() for prompt in PROMPTS]
    assert emoji.text_to_image(titled, seed=1) == [*drawn.values()]


def test_an_edit_changes_what_the_mask_says(emoji: Pipeline, drawn: dict[str, PILImage.Image]):
    star = drawn["a star, noto style"]
    edited = np.asarray(emoji.edit(star, "bottom", prompt="a watermelon, emojione style"), int)
    change = np.abs(edited - np.asarray(star)).max(axis=(1, 2))
    # Patches lap by half a patch; and the picture's own codes are not exactly those of its pixels.
    assert change[:24].max() < change[40:].max() / 2


def test_it_has_no_classes(emoji: Pipeline):
    for call in (
        lambda: emoji.class_to_image("rocket"),
        lambda: emoji.edit(PILImage.new("RGB", (64, 64)), "top", label="rocket"),
        lambda: emoji.edit(PILImage.new("RGB", (64, 64)), "top"),
    ):
        with pytest.raises(UserError, match="give a prompt"):
            call()


def test_it_follows_words_and_examples(emoji: Pipeline, drawn: dict[str, PILImage.Image]):
    frog, star = drawn["a frog, twemoji style"], drawn["a star, noto style"]
    *_, restyled = emoji.generate([frog, "the same in noto style", ImageSlot()], seed=1)
    *_, other = emoji.generate([star, "the same in twemoji style", ImageSlot()], seed=1)
    *_, following = emoji.generate([star, other, restyled, ImageSlot()], seed=1)
    read = [emoji.generate([p, TextSlot()])[-1] for p in (restyled, other, following)]
    assert read[:2] == ["a frog, noto style", "a star, twemoji style"]
    assert read[2].startswith("a frog, ")  # by example alone the style is right less often


def test_its_folder_is_small_and_names_the_designers():
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert MANIFEST in files
    assert sum(files.values()) <= LARGEST
    card = (FOLDER / "README.md").read_text("utf-8")
    for credit in ("Noto Emoji", "Twemoji", "Fluent Emoji", "Emoji One", "CC BY 4.0", "MIT"):
        assert credit in card
