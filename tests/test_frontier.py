"""The dial: which points are best, what a budget buys, and measurements that go on where they were.

Times are never judged: points with times are made by hand.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import model_config
from material import run
from PIL import Image as PILImage

from mmfusion import Pipeline, export
from mmfusion.config import Sampling
from mmfusion.errors import UserError
from mmfusion.eval import frontier as measuring
from mmfusion.eval.frontier import (
    REPEATS,
    Grid,
    Measurement,
    combinations,
    frechet_to,
    items_of,
    measure_frontier,
    name_of,
    page,
)
from mmfusion.eval.metrics import frechet_distance
from mmfusion.export import CONFIG, SHIPPED, model_digest
from mmfusion.files import write
from mmfusion.generation.budget import FILE, Dials, Frontier, Machine, Point, kept_at, pareto, read
from mmfusion.manifest import MANIFEST, seal

pytestmark = pytest.mark.usefixtures("cache")
HERE = Machine(device="Tin Can 9", threads=2, dtype="float32")
TASK = "class_to_image"
TEN = {"ar_steps": 1, "scheduler": "ddim", "num_inference_steps": 10, "guidance": 1.0}
FIVE = TEN | {"num_inference_steps": 5}
SIX = "a handwritten six"


def point(milliseconds: float, distance: float, **changes: Any) -> Point:
    options = Dials.model_validate({**TEN, "num_inference_steps": 4, **changes})
    return Point(options=options, distance=distance, milliseconds=milliseconds,
                 pictures_per_second=1000 / milliseconds)  # fmt: skip


POINTS = [
    point(40, 3, num_inference_steps=20), point(10, 9, num_inference_steps=5),
    point(20, 5, num_inference_steps=10),
    point(30, 6, ar_steps=2, num_inference_steps=5),  # slower and worse than the one of 20 ms
    point(20, 7, scheduler="ddpm", num_inference_steps=10),  # as fast, worse
    point(55, 3, ar_steps=4),  # slower, as good
]  # fmt: skip


def frontier(points: list[Point] = POINTS, **changes: Any) -> Frontier:
    facts: dict[str, Any] = {
        "model": "digits", "model_sha256": "ab" * 32, "task": TASK, "machine": HERE,
        "versions": {"torch": torch.__version__}, "seed": 0, "batch_size": 8,
        "quality": {"name": "Fréchet distance", "n": 20, "extractor": "pixels",
                    "extractor_sha256": "", "reference": "real", "reference_sha256": "cd" * 32},
        "points": points,
    }  # fmt: skip
    return Frontier(**{**facts, **changes})


def kept(path: Path, **changes: Any) -> Path:
    write(path, frontier(**changes).model_dump_json().encode())
    return path


# Which points are best


def test_the_frontier_has_what_no_other_point_beats() -> None:
    assert [(p.milliseconds, p.distance) for p in pareto(POINTS)] == [(10, 9), (20, 5), (40, 3)]
    assert pareto([]) == []
    rng = np.random.default_rng(0)
    points = [point(float(a), float(b)) for a, b in rng.integers(1, 30, (60, 2))]
    for each in points:
        beaten = any(
            (p.milliseconds <= each.milliseconds and p.distance < each.distance)
            or (p.milliseconds < each.milliseconds and p.distance <= each.distance)
            for p in points
        )
        assert (each in pareto(points)) != beaten


def test_a_budget_buys_the_nearest_point_within_it() -> None:
    bought = {10: 9, 19.9: 9, 20: 5, 39: 5, 40: 3, 1e9: 3}
    assert {budget: frontier().within(budget).distance for budget in bought} == bought


# A pipeline with a budget


class Digits:
    """The shipped model, and where the measurements of it on this machine are kept."""

    def __init__(self) -> None:
        self.plain = Pipeline.from_pretrained("digits", "cpu")
        self.machine = Machine.of(self.plain.decoder.latent_in.weight)
        self.digest = model_digest(SHIPPED / "digits")

    def place(self, task: str = TASK) -> Path:
        return kept_at(self.digest, self.machine, task)

    def keep(self, task: str = TASK, **changes: Any) -> Path:
        facts = {"model_sha256": self.digest, "machine": self.machine, "task": task}
        return kept(self.place(task), **{**facts, **changes})


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The shipped model, to be changed."""
    return Path(shutil.copytree(SHIPPED / "digits", tmp_path / "copy"))


def drawn(pipeline: Pipeline, **options: Any) -> bytes:
    return pipeline.class_to_image(3, seed=5, **options).tobytes()


def budgeted(milliseconds: Any, model: str | Path = "digits", **options: Any) -> Pipeline:
    return Pipeline.from_pretrained(model, "cpu", budget_ms=milliseconds, **options)


def changed(folder: Path, **sections: Any) -> str:
    """The digest of an exported model after a change of its config."""
    described = json.loads((folder / CONFIG).read_text())
    for name, value in sections.items():
        described[name] = {**described[name], **value} if isinstance(value, dict) else value
    (folder / CONFIG).write_text(json.dumps(described))
    seal(folder)
    return model_digest(folder)


def test_a_model_is_all_that_its_answers_depend_on(
    digits: Digits, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "README.md").write_text("no part of the model")
    seal(folder)
    assert model_digest(folder) == digits.digest
    found = {digits.digest, changed(folder, classes=digits.plain.config.classes[::-1])}
    found |= {changed(folder, diffusion={"prediction": p}) for p in ("sample", "epsilon")}
    tokenizer = folder / "tokenizer.model"
    tokenizer.write_bytes(tokenizer.read_bytes() + b"\n")
    found.add(changed(folder))
    vae = {"codec": "vae", "vae": "some/autoencoder", "size": 64, "channels": 3, "patch": 1}
    for scale in (1.0, 2.0):  # an autoencoder outside of the folder
        monkeypatch.setattr(export, "fingerprint", lambda c, s=scale: {"vae": c.vae, "scale": s})
        found.add(changed(folder, image=vae))
    assert len(found) == 7
    for name, text in ((CONFIG, "{"), (MANIFEST, "[]")):
        (folder / name).write_text(text)
        with pytest.raises(UserError, match=name):
            model_digest(folder)


def test_measurements_are_found_by_the_whole_model(
    cache: Path, digits: Digits, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"{'ab' * 8}-tin-can-9-2-threads-float32-{TASK}.json"
    assert kept_at("ab" * 32, HERE, TASK) == cache / "frontiers" / name
    with pytest.raises(UserError, match=r"not measured on .*\n  mmfusion eval frontier --model"):
        budgeted(50)
    digits.keep(versions={"torch": "1.0"})  # another one is warned of
    assert budgeted(25, folder).budget.digest == digits.digest
    assert f"with torch 1.0, this is {digits.machine} with {torch.__version__}" in caplog.text
    changed(folder, diffusion={"prediction": "epsilon"})
    with pytest.raises(UserError, match="class_to_image of this model was not measured"):
        budgeted(25, folder)
    path = digits.keep(model_sha256="ef" * 32)
    with pytest.raises(UserError, match=re.escape(str(path))):
        budgeted(50)
    bare = Pipeline(digits.plain.config, digits.plain.decoder, digits.plain.tokenizer)
    with pytest.raises(UserError, match=r"exported folder.*frontier=PATH"):
        bare.class_to_image(3, budget_ms=50)


def test_a_frontier_given_by_its_path(
    digits: Digits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = kept(tmp_path / FILE, model_sha256=digits.digest)
    pipeline = budgeted(10, frontier=tmp_path)
    assert "measured on Tin Can 9" in caplog.text
    assert drawn(pipeline) == drawn(digits.plain, **FIVE)
    with pytest.raises(UserError, match=r"class_to_image .* not for text_to_image"):
        pipeline.text_to_image("a six")
    for given, told in ((kept(path), ": measured for"), (tmp_path / "none.json", ": no such file")):
        with pytest.raises(UserError, match=re.escape(f"{given}{told}")):
            budgeted(10, frontier=given)


def test_a_pipeline_draws_with_the_point_that_its_budget_buys(digits: Digits) -> None:
    digits.keep()
    plain, pipeline = digits.plain, budgeted(25)
    assert drawn(pipeline) == drawn(plain, **TEN) != drawn(plain)
    raster = {"order": "raster"}
    assert drawn(pipeline, scheduler=None, **raster) == drawn(plain, **raster, **TEN)
    assert drawn(pipeline, budget_ms=10) == drawn(plain, **FIVE)
    assert drawn(pipeline, budget_ms=None) == drawn(plain)
    picture = plain.class_to_image(3)  # other tasks are left alone
    assert pipeline.image_to_text(picture) == plain.image_to_text(picture)
    edited, same = (p.edit(picture, "bottom", label=4) for p in (pipeline, plain))
    assert edited.tobytes() == same.tobytes()
    with pytest.raises(UserError, match="budget_ms: only for class_to_image and text_to_image"):
        pipeline.image_to_text(picture, budget_ms=25)


@pytest.mark.parametrize(
    ("best_of", "budget", "dials"), [(1, 12, FIVE), (3, 30, FIVE), (3, 60, TEN)]
)
def test_a_budget_of_one_call_is_shared_by_the_candidates(
    digits: Digits, best_of: int, budget: float, dials: dict
) -> None:
    digits.keep("text_to_image")
    asked = digits.plain.text_to_image(SIX, best_of=best_of, budget_ms=budget)
    assert asked.tobytes() == digits.plain.text_to_image(SIX, best_of, **dials).tobytes()


def test_a_dial_that_a_call_turns_itself(digits: Digits, caplog: pytest.LogCaptureFixture) -> None:
    digits.keep(points=[point(10, 5, ar_sizes=[16])])
    pipeline = budgeted(25)
    bought = TEN | {"num_inference_steps": 4}
    drawn(pipeline)
    assert "not kept" not in caplog.text
    # Against the pipeline's budget it wins, and takes along what belongs to it.
    own = {**bought, "guidance": 3.0, "ar_steps": 2}
    assert drawn(pipeline, guidance=3.0, ar_steps=2) == drawn(digits.plain, **own)
    assert "budget_ms 25 is not kept: the call gives ar_steps, guidance itself" in caplog.text
    # In one call there is no telling which of both is meant.
    for name, value in {**bought, "ar_sizes": [16]}.items():
        with pytest.raises(UserError, match=f"budget_ms: it is kept by choosing {name}; "):
            drawn(pipeline, budget_ms=25, **{name: value})
    assert drawn(pipeline, budget_ms=None, ar_steps=2) == drawn(digits.plain, ar_steps=2)


def test_a_budget_that_cannot_be_kept_is_refused_before_anything_is_drawn(digits: Digits) -> None:
    path = digits.keep()
    digits.keep("text_to_image")
    with pytest.raises(UserError, match=r"budget_ms 3: the fastest .* takes 10\.0 ms"):
        budgeted(3)
    for wrong in (0, -1, float("nan"), "50", True):
        with pytest.raises(UserError, match="budget_ms"):
            digits.plain.class_to_image(3, budget_ms=wrong)
    with pytest.raises(UserError, match=r"with best_of 3 takes 30\.0 ms .* give at least 31"):
        Digits().plain.text_to_image(SIX, best_of=3, budget_ms=29)
    with pytest.raises(UserError, match="best_of"):
        Digits().plain.text_to_image(SIX, best_of=0, budget_ms=29)
    digits.place("text_to_image").unlink()
    whole = path.read_bytes()
    for damaged in (
        whole[: len(whole) // 2],
        b"\xff\xfe\x00",
        whole.replace(b'"milliseconds":10.0', b'"milliseconds":-1.0'),
        re.sub(rb'"points":\[.*\]', b'"points":[]', whole),
        b"[" * 100_000,
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=re.escape(str(path))):
            budgeted(50)


# The grid


def test_the_grid_has_what_the_model_can_do() -> None:
    config = model_config(diffusion={"prediction": "sample", "dropout": 0.0})
    grid = Grid([1, 4, 17], ["ddim", "euler"], [1, 3, 3], [1.0, 2.0])
    made, left_out = combinations(config, TASK, grid)
    assert [name_of(sampling) for sampling in made] == [
        f"S = {steps}, ddim, 3 steps, guidance 1" for steps in (1, 4)
    ]
    reasons = "\n".join(left_out)
    for why in ("num_inference_steps: 1 with ddim", "guidance 2.0", "euler does not sample",
                "ar_steps 17: an image has 16 tokens"):  # fmt: skip
        assert reasons.count(why) == 1
    flow = model_config(diffusion={"path": "flow", "prediction": "v_prediction"})
    made, left_out = combinations(flow, TASK, Grid(ar_steps=[1], steps=[2]))
    assert [s.scheduler for s in made] == ["euler", "dpmsolver++"]
    assert not left_out
    sized = model_config(generation={TASK: {"ar_sizes": [4, 12]}})  # make way for the dial
    made, _ = combinations(sized, TASK, Grid(ar_steps=[4], schedulers=["ddim"], steps=[2]))
    assert made[0].ar_sizes == [4, 4, 4, 4]


# Going on


class Stub:
    """Grey pictures, whose shade says how many steps were asked for; counts what it draws."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.calls: list[tuple[int, int]] = []
        self.dies_after = dies_after

    def class_to_image(self, labels: list[int], **options: Any) -> list[PILImage.Image]:
        if self.dies_after is not None and len(self.calls) >= self.dies_after:
            raise KeyboardInterrupt
        self.calls.append((options["num_inference_steps"], len(labels)))
        return [PILImage.new("L", (8, 8), options["num_inference_steps"]) for _ in labels]


def stubbed(folder: Path, stub: Stub, **facts: Any) -> Measurement:
    def shade(pictures: list[PILImage.Image]) -> float:
        assert len(pictures) == 5
        return float(np.mean([np.asarray(p).mean() for p in pictures]))

    about = frontier([point(1, 1)]).model_dump() | {"batch_size": 2, **facts}
    return Measurement(stub, list(range(5)), shade, about, folder)  # type: ignore[arg-type]


SAMPLINGS = [Sampling(num_inference_steps=n, scheduler="ddim") for n in (2, 3, 4)]


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    whole = Stub()
    assert [p.distance for p in stubbed(tmp_path / "whole", whole).points(SAMPLINGS)] == [2, 3, 4]
    each = len(whole.calls) // 3
    sizes = [count for _, count in whole.calls[:each]]  # times one by one, pictures in batches
    assert sizes == [1] * (1 + REPEATS) + [2, 2, 1]  # one that warms up
    with pytest.raises(KeyboardInterrupt):  # in the midst of the second point
        stubbed(tmp_path / "on", Stub(dies_after=each + 2)).points(SAMPLINGS)
    goes_on = Stub()
    assert [p.distance for p in stubbed(tmp_path / "on", goes_on).points(SAMPLINGS)] == [2, 3, 4]
    assert {steps for steps, _ in goes_on.calls} == {3, 4}
    measurement = stubbed(tmp_path / "on", Stub(dies_after=0))
    first = measurement.points(SAMPLINGS)
    assert first == measurement.points(SAMPLINGS)  # the times, too, are those of the files
    bare = [p.model_copy(update={"on_frontier": False}) for p in first]
    assert [p.on_frontier for p in first] == [p in pareto(bare) for p in bare]
    assert not list((tmp_path / "on").glob(".*"))


def test_a_smaller_last_batch_does_not_count_for_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(self: Measurement, _: Any, first: int, count: int) -> tuple[list, float]:
        return [PILImage.new("L", (8, 8)) for _ in self.items[first : first + count]], 1.0

    monkeypatch.setattr(Measurement, "_draw", draw)
    (found,) = stubbed(tmp_path, Stub(), batch_size=3).points(SAMPLINGS[:1])
    assert (found.pictures_per_second, found.milliseconds) == (3, 1000)


def test_points_are_known_by_what_they_depend_on(tmp_path: Path) -> None:
    measurement, sampling = stubbed(tmp_path, Stub(), model_sha256="a"), SAMPLINGS[0]
    measurement.points([sampling])
    path = measurement.path(sampling)
    assert path.is_file()
    assert not stubbed(tmp_path, Stub(), model_sha256="b").path(sampling).exists()
    assert not measurement.path(sampling.model_copy(update={"order": "raster"})).exists()
    for damaged in ("{", "{}", '{"distance": "near"}'):
        path.write_text(damaged)
        with pytest.raises(UserError, match=f"{path}: not a measured point; delete it"):
            measurement.points([sampling])
    path.unlink()
    assert measurement.points([sampling])


# The page


PNG = b"\x89PNG made up"


def test_the_page_loads_nothing_and_shows_every_dial_that_was_turned() -> None:
    marked = [p.model_copy(update={"on_frontier": p in pareto(POINTS)}) for p in POINTS]
    strange = frontier(marked, model="<script>alert(1)</script>", left_out=["euler & more"])
    made = page(strange, [PNG] * len(POINTS))
    assert made == page(strange, [PNG] * len(POINTS))  # the same bytes again
    text = made.decode()
    loads = re.findall(r'(?:src|href|srcset|action)="([^"]*)"', text)
    kinds = [load.split(";")[0] for load in loads]
    assert set(kinds) == {"data:image/png", "data:image/svg+xml"}
    assert kinds.count("data:image/png") == 3  # the frontier's sheets
    assert kinds.count("data:image/svg+xml") == 4  # guidance was not turned
    assert "<script" not in text
    assert "url(" not in text
    assert all(shown in text for shown in ("euler &amp; more", "Tin Can 9", "cd" * 32))
    assert text.count('<td class="star">frontier</td>') == 3


@pytest.mark.parametrize("points", [[point(5, 0)], [point(5, 1), point(5, 1, ar_steps=2)],
                                    [point(0.01, 1e-7), point(1e6, 1e5)]])  # fmt: skip
def test_a_page_of_odd_points(points: list[Point]) -> None:
    text = page(frontier(points), [PNG] * len(points)).decode()
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text)


# A real run


QUICK = ("--pictures", 12, "--ar-steps", "1,2", "--schedulers", "ddim", "--steps", "2",
         "--batch-size", 8)  # fmt: skip


def test_the_digits_model_is_measured_and_kept_for_budgets(
    digits_data: Path, digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    asked = ("eval", "frontier", "--reference", f"{digits_data}/train-*.tar", *QUICK, "-o", out)
    assert run(*asked, "--device", "cpu") == 0
    said = capsys.readouterr().out
    assert "warning: 12 pictures" in said
    found = read(Frontier, out / FILE)
    assert [p.options.ar_steps for p in found.points] == [1, 2]
    assert any(p.on_frontier for p in found.points)
    assert found.quality["n"] == 12
    assert found.quality["n_reference"] == 1500
    assert found.model_sha256 == digits.digest
    assert read(Frontier, kept_at(digits.digest, digits.machine, TASK)) == found
    assert "data:image/svg" in (out / "frontier.html").read_text("utf-8")
    # The distance is that of the very pictures that the pipeline draws.
    items = [i % 10 for i in range(12)]
    made = digits.plain.class_to_image(items, batch_size=8, **found.points[0].options.model_dump())
    quality, _ = frechet_to(f"{digits_data}/train-*.tar", 8, "pixels", "cpu")
    assert quality(made) == pytest.approx(found.points[0].distance, rel=1e-6)
    # And a budget finds it.
    slowest = max(p.milliseconds for p in found.points)
    best = found.within(slowest).options.model_dump(exclude_none=True)
    pipeline = Pipeline.from_pretrained("digits", "cpu", budget_ms=slowest)
    assert drawn(pipeline) == drawn(digits.plain, **best)
    # Nothing is measured twice.
    monkeypatch.setattr(Measurement, "_measure", None)
    assert run(*asked, "--device", "cpu") == 0
    assert read(Frontier, out / FILE) == found


def test_text_to_image_is_measured_from_captions(
    digits_data: Path, digits: Digits, tmp_path: Path
) -> None:
    asked = ("eval", "frontier", "--reference", f"{digits_data}/held_out-*.tar", *QUICK)
    task = "text_to_image"
    assert run(*asked, "--task", task, "--device", "cpu", "-o", tmp_path / "out") == 0
    found = read(Frontier, kept_at(digits.digest, digits.machine, task))
    assert (found.task, found.quality["n_reference"], len(found.points)) == (task, 297, 2)
    fresh = Pipeline.from_pretrained("digits", "cpu")  # the other has read what it found before
    with pytest.raises(UserError, match="class_to_image of this model was not measured"):
        fresh.class_to_image(3, budget_ms=1e9)
    assert fresh.text_to_image("a six", budget_ms=1e9).size == (8, 8)


def test_a_reference_of_moments_serves_inception(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    real, made = (rng.normal(m, 1, (50, 3)).clip(-9, 9) for m in (0, 1))

    class Fixed:
        name, kind, sha256, batch = "inception", "inception", "ab", 20

        def __call__(self, pictures: list[np.ndarray]) -> dict[str, np.ndarray]:
            return {"features": np.stack([p[0, 0] / 10 - 9 for p in pictures])}

    class Reference(list):
        moments, digest = {"features": (real.mean(0), np.cov(real, rowvar=False))}, "cd"

    monkeypatch.setattr(measuring, "make_extractor", lambda *_: Fixed())
    monkeypatch.setattr(measuring, "open_images", lambda *_: Reference())
    quality, facts = frechet_to("reference.npz", 8, "inception", None)
    pixels = np.rint((made + 9) * 10).astype(np.uint8)
    pictures = [PILImage.fromarray(np.tile(p, (8, 8, 1))) for p in pixels]
    assert quality(pictures) == pytest.approx(frechet_distance(pixels / 10 - 9, real))
    assert (facts["extractor_sha256"], facts["reference_sha256"]) == ("ab", "cd")
    Reference.moments = {"features": (np.zeros(4), np.eye(4))}
    quality, _ = frechet_to("reference.npz", 8, "inception", None)
    with pytest.raises(UserError, match="3 and 4 dimensions"):
        quality(pictures)


def test_prompts_are_the_captions_of_the_reference(digits_data: Path, digits: Digits) -> None:
    shards = f"{digits_data}/held_out-*.tar"
    prompts = items_of(digits.plain.config, "text_to_image", 600, shards)
    assert len(set(prompts[:297])) > 50
    assert prompts[0] != prompts[297]  # another wording of the same digit
    assert prompts[:4] == items_of(digits.plain.config, "text_to_image", 4, shards)
    assert items_of(digits.plain.config, TASK, 12, shards) == [*range(10), 0, 1]
    with pytest.raises(UserError, match="prompts from shards with captions"):
        items_of(digits.plain.config, "text_to_image", 4, "reference.npz")


def test_mistakes_of_the_command(
    digits_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked = ("eval", "frontier", "--reference", f"{digits_data}/train-*.tar", "-o", tmp_path / "o")
    for wrong, named in [
        (("--ar-steps", "1,two"), "--ar-steps 1,two: give numbers"),
        (("--task", "image_to_text"), "--task image_to_text: this model can class_to_image"),
        (("--schedulers", "heun"), "scheduler"),
        (("--schedulers", "euler"), "no point is left"),
        (("--features", "astrology"), "astrology"),
        (("--reference", tmp_path / "none-*.tar"), "none-*.tar"),
        (("--device", "tin"), "device 'tin'"),
        (("--model", tmp_path / "none"), "no such folder"),
    ]:
        assert run(*asked, *wrong) == 2
        error = capsys.readouterr().err
        assert named in error
        assert "Traceback" not in error
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without a launcher"):
        measure_frontier("digits", None, "x", tmp_path, Grid())
    assert not list(tmp_path.rglob("*.json"))
