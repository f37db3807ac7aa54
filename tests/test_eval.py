"""Evaluation: each number against a closed form, a known value, or a model known to be good or bad.

The models are stand-ins: one answers with real held-out digits, one with noise.
"""

import json
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import model_config
from PIL import Image as PILImage

from mmfusion import ImageSlot, TextSlot
from mmfusion.config import GenerationConfig
from mmfusion.config.evaluation import Digits as Settings
from mmfusion.data_pipelines.converters.digits import NAMES, captions
from mmfusion.errors import UserError
from mmfusion.eval.digits.edits import MASKS
from mmfusion.eval.digits.judge import Judge, features, named_digit
from mmfusion.eval.digits.real import Digits, read_digits
from mmfusion.eval.digits.suite import Suite, summary
from mmfusion.eval.formatting import columns
from mmfusion.eval.pages import losses
from mmfusion.eval.report import write_report
from mmfusion.generation.edit_masks import region


@pytest.fixture(scope="module")
def train(digits_data: Path) -> Digits:
    return read_digits(digits_data, "train")


@pytest.fixture(scope="module")
def held_out(digits_data: Path) -> Digits:
    return read_digits(digits_data, "held_out")


@pytest.fixture(scope="module")
def judge(train: Digits, held_out: Digits) -> Judge:
    return Judge(train, held_out)


def by_class(digits: Digits) -> list[list[PILImage.Image]]:
    return [[PILImage.fromarray(p) for p in digits.pictures[digits.labels == d]] for d in range(10)]


class Perfect:
    """Answers every task with real held-out digits."""

    def __init__(self, held_out: Digits) -> None:
        self.config = model_config()
        self.real = by_class(held_out)
        pairs = zip(held_out.pictures, held_out.labels, strict=True)
        self.labels = {p.tobytes(): int(d) for p, d in pairs}

    def _draw(self, labels: Sequence[int]) -> list[PILImage.Image]:
        return [self.real[d][i // 10 % len(self.real[d])] for i, d in enumerate(labels)]

    def class_to_image(self, labels: list[int], **_: Any) -> list[PILImage.Image]:
        return self._draw(labels)

    def text_to_image(self, prompts: list[str], **_: Any) -> list[PILImage.Image]:
        self.asked = prompts
        return self._draw([d for d in map(named_digit, prompts) if d is not None])

    def image_to_text(self, images: list[PILImage.Image], **_: Any) -> list[str]:
        return [captions(self.labels[p.tobytes()])[i % 10] for i, p in enumerate(images)]

    def generate(self, prompts: list[list], **_: Any) -> list[list]:
        filled = []
        for given, between, text, image in prompts:
            assert isinstance(text, TextSlot)
            assert isinstance(image, ImageSlot)
            following = (self.labels[given.tobytes()] + 1) % 10
            filled.append([given, between, NAMES[following], self.real[following][0]])
        return filled

    def edit(
        self, images: list, mask: Any, label: Any = None, prompt: Any = None, **_: Any
    ) -> list[PILImage.Image]:
        asked = label or [named_digit(text) for text in prompt or []]
        anew = region("bottom", 8, 8) if isinstance(mask, str) else mask
        made = []
        for picture, digit in zip(images, asked, strict=True):
            pixels = np.asarray(picture).copy()
            if digit != self.labels[picture.tobytes()]:
                pixels[anew] = np.asarray(self.real[digit][0])[anew]
            made.append(PILImage.fromarray(pixels))
        return made


class Noise(Perfect):
    """Answers every task with noise, and with words that name nothing or everything."""

    def _draw(self, labels: Sequence[int]) -> list[PILImage.Image]:
        pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8), np.uint8)
        return [PILImage.fromarray(p) for p in pixels]

    def image_to_text(self, images: list[PILImage.Image], **_: Any) -> list[str]:
        return [("", "one or two", "10 things")[i % 3] for i in range(len(images))]

    def generate(self, prompts: list[list], **_: Any) -> list[list]:
        pictures = self._draw([0] * len(prompts))
        return [[*p[:2], "", picture] for p, picture in zip(prompts, pictures, strict=True)]

    def edit(self, images: list, mask: Any, **_: Any) -> list[PILImage.Image]:
        return self._draw([0] * len(images))


class Copycat(Perfect):
    """Repeats training pictures."""

    def __init__(self, held_out: Digits, train: Digits) -> None:
        super().__init__(held_out)
        self.real = by_class(train)


def suite(model: Any, data: Path, **changes: Any) -> Suite:
    return Suite(model, Settings.model_validate({"data": str(data), "pictures": 200, **changes}))


def measured(model: Any, data: Path, **changes: Any) -> tuple[dict, dict]:
    return suite(model, data, **changes).measure()


@pytest.fixture(scope="module")
def perfect(digits_data: Path, held_out: Digits) -> tuple[dict, dict]:
    model = Perfect(held_out)
    report, sheets = measured(model, digits_data)
    facts = {
        "model": "perfect", "model_sha256": "ab" * 32, "seed": 0, "parameters": 12345,
        "device": "Tin Can 9", "inputs": {"digits": {"train": "cd" * 32}}, "figures": {},
        "seconds": {"edit": 1.5}, "versions": {"python": "3"},
        "config": model.config.model_dump(mode="json"),
        "sampling": model.config.generation.model_dump(),
    }  # fmt: skip
    return {**report, **facts}, sheets


# The judge


def test_judge_knows_held_out_digits(judge: Judge, held_out: Digits) -> None:
    assert (judge.k, judge.n_held_out) == (1, 297)
    assert judge.accuracy == pytest.approx(293 / 297)
    assert (judge(held_out.drawn()) == held_out.labels).mean() == judge.accuracy


def test_judge_space_is_value_over_eight_minus_one() -> None:
    pixels = np.rint(np.arange(17) * (255 / 16)).astype(np.uint8)[None]
    np.testing.assert_allclose(features(pixels)[0], np.arange(17) / 8 - 1, atol=0.5 / 127.5)
    assert features(pixels[..., [0, 16]]).tolist() == [[-1, 1]]


def test_memorised_counts_copies_and_not_real_unseen_digits(
    judge: Judge, train: Digits, held_out: Digits
) -> None:
    assert judge.threshold == pytest.approx(1.4246, abs=1e-3)

    def memorised(pictures: np.ndarray) -> int:
        return int((judge.nearest(pictures)[1] < judge.threshold).sum())

    assert memorised(train.pictures[:50]) == 50
    assert memorised(train.pictures[:50] ^ 1) == 50  # a grey level's difference is none
    assert memorised(held_out.pictures) == 15
    index, distance = judge.nearest(train.drawn()[7:9])
    assert index.tolist() == [7, 8]
    np.testing.assert_allclose(distance, 0, atol=1e-6)


def test_first_held_out_pictures_are_balanced(held_out: Digits) -> None:
    for count, least, most in ((10, 1, 1), (100, 10, 10), (25, 2, 3)):
        each = np.bincount(held_out.first(count).labels, minlength=10)
        assert (each.min(), each.max()) == (least, most)
    some, part = held_out.first(30), held_out.first(30).first(12)
    np.testing.assert_array_equal(part.pictures, some.pictures[:12])
    assert len(held_out.first(None)) == 297


# Captions


def test_named_digit() -> None:
    for digit, said in {
        7: ("a handwritten seven", "the digit 7", "SEVEN, drawn by hand.", "a hand-drawn seven (7)",
            "seven\u2028seven"),
        0: ("zero", "0"),
        None: ("one or two", "1 two", "77", "10", "1,000 or 7.5", "twenty-one",
               "the 7th, seventeen, someone", "a handwritten", ""),
    }.items():  # fmt: skip
        assert [named_digit(caption) for caption in said] == [digit] * len(said)
    assert all(named_digit(c) == d for d in range(10) for c in [*captions(d), NAMES[d]])


# The suite


def test_a_perfect_model_is_as_good_as_the_judge(perfect: tuple[dict, dict]) -> None:
    report, sheets = perfect
    drawn, told, edit = (report[name] for name in ("class_to_image", "image_to_text", "edit"))
    for found in (drawn, report["text_to_image"], edit):
        assert found["accuracy"] > 0.97
    assert list(drawn["per_class"]) == [str(d) for d in range(10)]
    distance = report["frechet_pixel"]
    assert distance["value"] < 1.5
    assert distance["held_out_value"] == pytest.approx(0.464, abs=0.001)
    assert report["memorised"] < 0.1
    assert (told["accuracy"], told["cider"] > 1, told["cider_tokenizer"]) == (1, True, "plain")
    assert report["interleaved"]["name_accuracy"] == edit["kept_identical"] == 1
    assert (drawn["n"], distance["n_held_out"], edit["n"], edit["other_label_n"]) == (
        200, 297, 100, 100
    )  # fmt: skip
    assert report["interleaved"]["n"] == told["n"] == 297
    assert report["judge"] == {"k": 1, "accuracy_on_held_out": 293 / 297, "n": 297}
    assert set(sheets) == {*GenerationConfig.model_fields, "nearest", "edits"}
    assert json.loads(json.dumps(report, allow_nan=False)) == report  # plain data only


def test_noise_fails_every_measurement(digits_data: Path, held_out: Digits) -> None:
    report, _ = measured(Noise(held_out), digits_data, held_out=50, edits=30)
    for task in ("class_to_image", "text_to_image", "image_to_text", "interleaved", "edit"):
        assert report[task]["accuracy"] < 0.3
    told, edit, distance = (report[n] for n in ("image_to_text", "edit", "frechet_pixel"))
    assert (told["accuracy"], told["n"], told["cider"] < 0.1) == (0, 50, True)
    assert report["interleaved"]["name_accuracy"] == report["memorised"] == 0
    assert (edit["kept_identical"], edit["n"]) == (False, 30)
    assert (distance["value"] > 10, distance["n_held_out"]) == (
        True,
        297,
    )  # the yardsticks keep all


def test_a_copycat_is_found_out(digits_data: Path, held_out: Digits, train: Digits) -> None:
    report, sheets = measured(Copycat(held_out, train), digits_data, held_out=10, edits=10)
    assert report["class_to_image"]["accuracy"] == 1
    assert report["memorised"] == 1
    first = sheets["nearest"][0]
    assert first["picture"].tobytes() == first["neighbour"].tobytes()


def test_prompts_take_turns_over_classes_and_wordings(digits_data: Path, held_out: Digits) -> None:
    model = Perfect(held_out)
    suite(model, digits_data, pictures=100).text_to_image()
    assert sorted(model.asked) == sorted(c for d in range(10) for c in captions(d))
    assert [named_digit(prompt) for prompt in model.asked[:10]] == list(range(10))


def test_another_models_pictures_and_missing_data_are_refused(
    digits_data: Path, held_out: Digits, tmp_path: Path
) -> None:
    model = Perfect(held_out)
    with pytest.raises(UserError, match=r"no shards match.*mmfusion data digits"):
        suite(model, tmp_path)
    for changes, named in (
        ({"image": {"size": 16, "channels": 1}}, r"image\.size 16"),
        ({"text": None}, "no tokenizer"),
    ):
        model.config = model_config(**changes)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=named):
            suite(model, digits_data)


@pytest.mark.parametrize("name", MASKS)
def test_the_sheet_of_edits_shows_every_region_by_class_and_by_text(
    perfect: tuple[dict, dict], held_out: Digits, name: str
) -> None:
    rows = {row["name"]: row for row in perfect[1]["edits"]}
    assert set(rows) == set(MASKS) >= {"center", "top", "bottom", "outpaint"}
    row, anew, first = rows[name], MASKS[name], held_out.first(6)
    assert np.array_equal(np.asarray(row["mask"]) > 0, anew)
    assert 0 < anew.sum() < 64
    for i, cell in enumerate(row["cells"]):
        assert named_digit(cell["text"]) not in (cell["label"], cell["class"], None)
        assert cell["class"] != cell["label"] == first.labels[i]
        for made in (cell["by_class"], cell["by_text"]):
            changed = np.asarray(made) != first.pictures[i]
            assert changed.any()
            assert not changed[~anew].any()


@pytest.mark.parametrize("name", MASKS)
def test_a_kept_pixel_that_changes_is_seen(digits_data: Path, held_out: Digits, name: str) -> None:
    class Touches(Perfect):
        def edit(self, images: list, mask: Any, **options: Any) -> list[PILImage.Image]:
            made = super().edit(images, mask, **options)
            if mask is MASKS[name] and options.get("prompt"):
                pixels = np.asarray(made[-1]).copy()
                pixels[tuple(np.argwhere(~MASKS[name])[0])] ^= 1
                made[-1] = PILImage.fromarray(pixels)
            return made

    report, _ = suite(Touches(held_out), digits_data, held_out=10).edit()
    assert report["edit"]["kept_identical"] is False


# The report


def test_report_is_one_self_contained_page(perfect: tuple[dict, dict], tmp_path: Path) -> None:
    report, sheets = perfect
    lines = [
        json.dumps({"step": s, "loss": math.exp(-s / 300), "seconds": s}) for s in range(0, 900, 10)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 90', "utf-8")
    (tmp_path / "training.json").write_text('{"seconds": 500.5, "steps": 900}', "utf-8")
    written = write_report(tmp_path, report, sheets)
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == written
    assert written["seconds"] == {**report["seconds"], "train": 500.5}
    assert written["training"]["steps"] == 900
    assert "train" not in report["seconds"]  # the caller's report is left alone
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "metrics.jsonl", "report.html", "report.json", "training.json",
    ]  # fmt: skip

    found: list[tuple[str, dict]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.append((tag, dict(attrs)))  # type: ignore[method-assign,assignment]
    page = (tmp_path / "report.html").read_text("utf-8")
    parser.feed(page)
    tags = {tag for tag, _ in found}
    assert not tags & {"script", "link", "iframe", "object", "embed"}
    assert not re.search(r"https?://|@import|url\(", page)
    images = [attrs for tag, attrs in found if tag == "img"]
    assert len(images) == 1 + 100 + 19 + 20 + 2 * 20 + 4 * 20 + 2 * 20 + (6 + 5 + 5 * 6 * 2)
    assert all(i["src"].startswith("data:image/") and i["alt"] for i in images)
    assert sum(i["src"].startswith("data:image/svg") for i in images) == 1  # the loss
    shown = ("1-nearest neighbours", "12,345 parameters", "on Tin Can 9", "latent_scale:")
    assert all(text in page for text in shown)
    assert [page.count(digest * 32) for digest in ("ab", "cd")] == [1, 1]
    assert "image-rendering: pixelated" in page


def test_the_page_and_the_terminal_show_all_scores(
    perfect: tuple[dict, dict], tmp_path: Path
) -> None:
    report, _ = perfect
    rows = summary(report)
    assert len({row.title for row in rows}) == len(rows) == 12
    shown = {row.title: row for row in rows}
    assert shown["… top half kept"].shown == "yes"
    assert shown["… top half kept"].n == report["edit"]["n"] + report["edit"]["other_label_n"]
    assert f"{100 * report['judge']['accuracy_on_held_out']:.1f}%" in rows[0].depends
    assert f"{report['frechet_pixel']['held_out_value']:.2f}" in shown["Fréchet distance"].depends
    write_report(tmp_path, report, {})
    page = (tmp_path / "report.html").read_text("utf-8")
    assert all(row.title in page and row.shown in page for row in rows)
    lines = columns(rows)
    assert all(lines[i].startswith(row.title) for i, row in enumerate(rows))


def test_report_escapes_what_a_model_wrote(perfect: tuple[dict, dict], tmp_path: Path) -> None:
    report, sheets = perfect
    evil = '<script>alert("x")</script>&\ud800'
    cells = [{**cell, "caption": evil} for cell in sheets["image_to_text"][:1]]
    spoken = [{**cell, "text": evil} for cell in sheets["interleaved"][:1]]
    report = {**report, "model": evil}
    write_report(tmp_path, report, {"image_to_text": cells, "interleaved": spoken})
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;&amp;?") == 3
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["model"] == evil[:-1] + "?"


def test_report_without_pictures_or_training(perfect: tuple[dict, dict], tmp_path: Path) -> None:
    write_report(tmp_path / "new", perfect[0], {})
    assert "<img" not in (tmp_path / "new/report.html").read_text("utf-8")
    write_report(tmp_path / "new", {**perfect[0], "memorised": math.nan}, {})
    before = (tmp_path / "new/report.json").read_text("utf-8")
    assert json.loads(before)["memorised"] is None  # JSON has no NaN
    (tmp_path / "new/training.json").write_text("{}", "utf-8")
    with pytest.raises(UserError, match=r"training\.json.*seconds"):
        write_report(tmp_path / "new", perfect[0], {})
    assert (tmp_path / "new/report.json").read_text("utf-8") == before


def test_charts_leave_out_what_cannot_be_drawn(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    values = [2.0, 1.0, None, math.nan, 0.5, "x"]
    lines = [json.dumps({"step": i, "image_loss": v, "loss": 1.0}) for i, v in enumerate(values)]
    path.write_text("\n".join([*lines, '{"step": 9, "text_loss": 1}', "[]", "{oops"]), "utf-8")
    found = losses(path)
    assert list(found) == ["Loss", "Image loss"]
    assert all(chart.startswith(b"<?xml") for chart in found.values())
    assert losses(path) == found  # the same bytes again
    path.write_text('{"step": 1, "image_loss": 0.0}\n{"step": 2, "image_loss": 0.0}\n', "utf-8")
    assert losses(path) == {}  # of a run on captions alone: a height of 0 has no logarithm
