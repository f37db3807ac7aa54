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
from PIL import Image as PILImage

from mmfusion import Pipeline, export
from mmfusion.cli import main
from mmfusion.codecs.vocabulary import FILES
from mmfusion.config import Sampling
from mmfusion.errors import UserError
from mmfusion.eval import frontier as measuring
from mmfusion.eval.frontier import (
    Grid,
    Measurement,
    combinations,
    frechet_to,
    items_of,
    measure_frontier,
    page,
    passes,
)
from mmfusion.eval.metrics import frechet_distance
from mmfusion.export import CONFIG, SHIPPED, WEIGHTS, model_digest, weights_digest
from mmfusion.files import write
from mmfusion.generation.budget import (
    Dials,
    Frontier,
    Machine,
    Point,
    choose,
    kept_at,
    pareto,
    read,
)
from mmfusion.manifest import MANIFEST, seal, sha256

HERE = Machine(device="Tin Can 9", threads=2, dtype="float32")
TASK = "class_to_image"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's own measurements."""
    monkeypatch.setenv("MMFUSION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def point(milliseconds: float, distance: float, **changes: Any) -> Point:
    dials = {"ar_steps": 1, "scheduler": "ddim", "num_inference_steps": 4, "guidance": 1.0}
    return Point(
        options=Dials(**{**dials, **changes}),
        distance=distance,
        milliseconds=milliseconds,
        pictures_per_second=1000 / milliseconds,
    )


POINTS = [
    point(40, 3, num_inference_steps=20),
    point(10, 9, num_inference_steps=5),
    point(20, 5, num_inference_steps=10),
    point(30, 6, ar_steps=2, num_inference_steps=5),  # slower and worse than the one of 20 ms
    point(20, 7, scheduler="ddpm", num_inference_steps=10),  # as fast, worse
    point(55, 3, ar_steps=4),  # slower, as good
]


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
    assert pareto(POINTS[:1]) == POINTS[:1]
    assert pareto([]) == []


def test_the_frontier_is_the_definition_on_random_points() -> None:
    rng = np.random.default_rng(0)
    points = [point(float(a), float(b)) for a, b in rng.integers(1, 30, (60, 2))]
    for each in points:
        beaten = any(
            (p.milliseconds <= each.milliseconds and p.distance < each.distance)
            or (p.milliseconds < each.milliseconds and p.distance <= each.distance)
            for p in points
        )
        assert (each in pareto(points)) != beaten


@pytest.mark.parametrize(
    ("milliseconds", "bought"), [(10, 9), (19.9, 9), (20, 5), (39, 5), (40, 3), (1e9, 3)]
)
def test_a_budget_buys_the_nearest_point_within_it(milliseconds: float, bought: float) -> None:
    assert choose(frontier(), milliseconds).distance == bought


def test_a_budget_below_the_fastest_point_names_its_time() -> None:
    with pytest.raises(UserError, match=r"budget_ms 9: the fastest .* takes 10.0 ms on Tin Can 9"):
        choose(frontier(), 9)


# A pipeline with a budget


class Digits:
    """The shipped model, and where the measurements of it on this machine are kept."""

    def __init__(self) -> None:
        self.plain = Pipeline.from_pretrained("digits", "cpu")
        self.machine = Machine.of(self.plain.decoder.latent_in.weight)
        self.digest = model_digest(SHIPPED / "digits")

    def keep(self, task: str = TASK, **changes: Any) -> Path:
        facts = {"model_sha256": self.digest, "machine": self.machine, "task": task}
        return kept(kept_at(self.digest, self.machine, task), **{**facts, **changes})


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


def drawn(pipeline: Pipeline, **options: Any) -> bytes:
    return pipeline.class_to_image(3, seed=5, **options).tobytes()


def test_weights_are_known_by_their_manifest(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SHIPPED / "digits", tmp_path / "copy"))
    assert weights_digest(folder) == sha256(folder / WEIGHTS)
    for damaged in ("", "[]", "{}"):
        (folder / MANIFEST).write_text(damaged)
        for digest in (weights_digest, model_digest):
            with pytest.raises(UserError, match=r"model .*copy: has no readable manifest\.json"):
                digest(folder)


def reconfigured(folder: Path, **changes: Any) -> Path:
    """Write single keys of an exported model's config anew, and seal it."""
    described = json.loads((folder / CONFIG).read_text())
    for name, value in changes.items():
        section, key = name.split("__")
        described[section][key] = value
    (folder / CONFIG).write_text(json.dumps(described))
    seal(folder)
    return folder


def test_a_model_is_all_that_its_answers_depend_on(digits: Digits, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SHIPPED / "digits", tmp_path / "copy"))
    (folder / "README.md").write_text("no part of the model")
    seal(folder)
    assert model_digest(folder) == digits.digest != weights_digest(folder)
    found = {digits.digest}
    for change in ({"diffusion__prediction": "sample"}, {"diffusion__prediction": "epsilon"}):
        found.add(model_digest(reconfigured(folder, **change)))
    classes = json.loads((folder / CONFIG).read_text())["classes"]
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), "classes": classes[::-1]}))
    seal(folder)
    found.add(model_digest(folder))
    tokenizer = next(folder / name for name in FILES.values() if (folder / name).is_file())
    tokenizer.write_bytes(tokenizer.read_bytes() + b"\n")
    seal(folder)
    found.add(model_digest(folder))
    assert len(found) == 5
    assert weights_digest(folder) == weights_digest(SHIPPED / "digits")
    path.write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        model_digest(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"config\.json: not readable"):
        model_digest(folder)


def test_an_autoencoder_outside_the_folder_is_part_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(SHIPPED / "digits", tmp_path / "copy"))
    vae = {"codec": "vae", "vae": "some/autoencoder", "size": 64, "channels": 3, "patch": 1}
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), "image": vae}))
    seal(folder)
    for scale in (1.0, 2.0):
        monkeypatch.setattr(export, "fingerprint", lambda c, s=scale: {"vae": c.vae, "scale": s})
        vae[str(scale)] = model_digest(folder)
    assert vae["1.0"] != vae["2.0"]


def test_a_model_of_another_config_does_not_find_the_measurements(
    digits: Digits, tmp_path: Path
) -> None:
    digits.keep()
    folder = Path(shutil.copytree(SHIPPED / "digits", tmp_path / "copy"))
    assert Pipeline.from_pretrained(folder, "cpu", budget_ms=25).budget.digest == digits.digest
    reconfigured(folder, diffusion__prediction="epsilon")
    with pytest.raises(UserError, match="class_to_image of this model was not measured"):
        Pipeline.from_pretrained(folder, "cpu", budget_ms=25)
    kept(tmp_path / "f.json", model_sha256=digits.digest)
    with pytest.raises(UserError, match=r"f\.json: measured for class_to_image with digits"):
        Pipeline.from_pretrained(folder, "cpu", budget_ms=25, frontier=tmp_path / "f.json")


def test_a_pipeline_draws_with_the_point_that_its_budget_buys(digits: Digits) -> None:
    digits.keep()
    pipeline = Pipeline.from_pretrained("digits", "cpu", budget_ms=25)
    bought = {"ar_steps": 1, "scheduler": "ddim", "num_inference_steps": 10, "guidance": 1.0}
    assert drawn(pipeline) == drawn(digits.plain, **bought) != drawn(digits.plain)
    assert drawn(pipeline, scheduler=None, order="raster") == drawn(
        digits.plain, order="raster", **bought
    )
    few = {**bought, "num_inference_steps": 5}
    assert drawn(pipeline, budget_ms=10) == drawn(digits.plain, **few)
    assert drawn(pipeline, budget_ms=None) == drawn(digits.plain)


def test_a_budget_of_one_call(digits: Digits) -> None:
    digits.keep("text_to_image")
    few = {"ar_steps": 1, "scheduler": "ddim", "num_inference_steps": 5, "guidance": 1.0}
    asked = digits.plain.text_to_image("a handwritten six", budget_ms=12)
    assert asked.tobytes() == digits.plain.text_to_image("a handwritten six", **few).tobytes()
    with pytest.raises(UserError, match="class_to_image of this model was not measured"):
        digits.plain.class_to_image(3, budget_ms=12)


def test_a_dial_that_a_call_turns_itself(digits: Digits, caplog: pytest.LogCaptureFixture) -> None:
    digits.keep(points=[point(10, 5, ar_sizes=[16])])
    pipeline = Pipeline.from_pretrained("digits", "cpu", budget_ms=25)
    bought = {"ar_steps": 1, "scheduler": "ddim", "num_inference_steps": 4, "guidance": 1.0}
    drawn(pipeline)
    assert "not kept" not in caplog.text
    # Against the pipeline's budget it wins, and takes along what belongs to it.
    own = {**bought, "guidance": 3.0, "ar_steps": 2}
    assert drawn(pipeline, guidance=3.0, ar_steps=2) == drawn(digits.plain, **own)
    assert "budget_ms 25 is not kept: the call gives ar_steps, guidance itself" in caplog.text
    # In one call there is no telling which of both is meant.
    for name, value in {**bought, "ar_sizes": [16]}.items():
        for asked in (pipeline, digits.plain):
            with pytest.raises(UserError, match=f"budget_ms: it is kept by choosing {name}; "):
                drawn(asked, budget_ms=25, **{name: value})
    assert drawn(pipeline, budget_ms=None, ar_steps=2) == drawn(digits.plain, ar_steps=2)


def test_a_budget_is_shared_by_the_candidates(digits: Digits) -> None:
    digits.keep("text_to_image")
    plain = digits.plain
    few = {"ar_steps": 1, "scheduler": "ddim", "num_inference_steps": 5, "guidance": 1.0}
    asked = plain.text_to_image("a handwritten six", best_of=3, budget_ms=30)
    assert asked.tobytes() == plain.text_to_image("a handwritten six", 3, **few).tobytes()
    more = few | {"num_inference_steps": 10}
    asked = plain.text_to_image("a handwritten six", best_of=3, budget_ms=60)
    assert asked.tobytes() == plain.text_to_image("a handwritten six", 3, **more).tobytes()
    with pytest.raises(UserError, match=r"with best_of 3 takes 30\.0 ms .* give at least 31"):
        plain.text_to_image("a handwritten six", best_of=3, budget_ms=29)
    with pytest.raises(UserError, match="best_of: 0; give a whole number"):
        plain.text_to_image("a handwritten six", best_of=0, budget_ms=29)


def test_a_budget_leaves_the_other_tasks_alone(digits: Digits) -> None:
    digits.keep()
    pipeline = Pipeline.from_pretrained("digits", "cpu", budget_ms=25)
    picture = digits.plain.class_to_image(3)
    assert pipeline.image_to_text(picture) == digits.plain.image_to_text(picture)
    edited = pipeline.edit(picture, "bottom", label=4)
    assert edited.tobytes() == digits.plain.edit(picture, "bottom", label=4).tobytes()
    with pytest.raises(UserError, match="budget_ms: only for class_to_image and text_to_image"):
        pipeline.image_to_text(picture, budget_ms=25)
    with pytest.raises(UserError, match="budget_ms"):
        pipeline.edit(picture, "bottom", label=4, budget_ms=25)


def test_without_a_measurement_the_command_is_named(digits: Digits) -> None:
    with pytest.raises(UserError, match=r"not measured on .*\n  mmfusion eval frontier --model"):
        Pipeline.from_pretrained("digits", "cpu", budget_ms=50)
    bare = Pipeline(digits.plain.config, digits.plain.decoder, digits.plain.tokenizer)
    with pytest.raises(UserError, match=r"came from no exported folder.*frontier=PATH"):
        bare.class_to_image(3, budget_ms=50)


def test_a_budget_that_cannot_be_kept_is_refused_before_anything_is_drawn(digits: Digits) -> None:
    digits.keep()
    with pytest.raises(UserError, match=r"takes 10\.0 ms"):
        Pipeline.from_pretrained("digits", "cpu", budget_ms=3)
    for wrong in (0, -1, float("nan"), "50", True):
        with pytest.raises(UserError, match="budget_ms"):
            digits.plain.class_to_image(3, budget_ms=wrong)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b"\xff\xfe\x00",
        lambda b: b.replace(b'"milliseconds":10.0', b'"milliseconds":-1.0'),
        lambda b: re.sub(rb'"points":\[.*\]', b'"points":[]', b),
        lambda b: b"[" * 100_000,
    ],
)
def test_a_damaged_frontier_is_named(digits: Digits, damage: Any) -> None:
    path = digits.keep()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    with pytest.raises(UserError, match=re.escape(str(path))):
        Pipeline.from_pretrained("digits", "cpu", budget_ms=50)


def test_a_frontier_of_other_weights_under_this_name_is_refused(digits: Digits) -> None:
    path = digits.keep(model_sha256="ef" * 32)
    with pytest.raises(UserError, match=str(path)):
        Pipeline.from_pretrained("digits", "cpu", budget_ms=50)


def test_a_frontier_given_by_its_path(
    digits: Digits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = kept(tmp_path / "out/frontier.json", model_sha256=digits.digest)
    asked = {"budget_ms": 10, "frontier": path.parent}
    pipeline = Pipeline.from_pretrained("digits", "cpu", **asked)
    assert "measured on Tin Can 9" in caplog.text
    assert drawn(pipeline) == drawn(digits.plain, scheduler="ddim", num_inference_steps=5,
                                    guidance=1.0)  # fmt: skip
    with pytest.raises(UserError, match=r"class_to_image .* not for text_to_image"):
        pipeline.text_to_image("a six")
    kept(path)
    with pytest.raises(UserError, match="out: measured for class_to_image with digits"):
        Pipeline.from_pretrained("digits", "cpu", **asked)
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        Pipeline.from_pretrained("digits", "cpu", budget_ms=10, frontier=tmp_path / "none.json")


def test_another_torch_is_warned_of(digits: Digits, caplog: pytest.LogCaptureFixture) -> None:
    digits.keep(versions={"torch": "1.0"})
    Pipeline.from_pretrained("digits", "cpu", budget_ms=50)
    assert "with torch 1.0" in caplog.text
    assert torch.__version__ in caplog.text


def test_where_measurements_are_kept(cache: Path) -> None:
    name = f"{'ab' * 8}-tin-can-9-2-threads-float32-{TASK}.json"
    assert kept_at("ab" * 32, HERE, TASK) == cache / "frontiers" / name


# The grid


def test_the_grid_leaves_out_what_the_model_cannot_do() -> None:
    config = model_config(diffusion={"prediction": "sample", "dropout": 0.0})
    grid = Grid([1, 4, 17], ["ddim", "euler"], [1, 3, 3], [1.0, 2.0])
    made, left_out = combinations(config, TASK, grid)
    assert [(s.ar_steps, s.scheduler, s.num_inference_steps, s.guidance) for s in made] == [
        (1, "ddim", 3, 1.0), (4, "ddim", 3, 1.0),
    ]  # fmt: skip
    told = "\n".join(left_out)
    for why in ("num_inference_steps: 1 with ddim", "guidance 2.0", "euler does not sample",
                "ar_steps 17: an image has 16 tokens"):  # fmt: skip
        assert told.count(why) == 1
    with pytest.raises(UserError, match="no point is left to measure"):
        combinations(config, TASK, Grid(guidance=[2.0]))
    with pytest.raises(UserError, match="options of class_to_image:\n  scheduler"):
        combinations(config, TASK, Grid(schedulers=["heun"]))


def test_a_flow_model_gets_the_schedulers_of_its_path() -> None:
    config = model_config(diffusion={"path": "flow", "prediction": "v_prediction"})
    made, left_out = combinations(config, TASK, Grid(ar_steps=[1], steps=[2]))
    assert [s.scheduler for s in made] == ["euler", "dpmsolver++"]
    assert not left_out
    assert "ddpm does not sample" in combinations(
        config, TASK, Grid(schedulers=["ddpm", "unipc"]))[1][0]  # fmt: skip


def test_sizes_of_the_model_make_way_for_the_dial() -> None:
    config = model_config(generation={TASK: {"ar_sizes": [4, 12]}})
    made, _ = combinations(config, TASK, Grid(ar_steps=[4], schedulers=["ddim"], steps=[2]))
    assert made[0].ar_sizes == [4, 4, 4, 4]


def test_passes_count_twins() -> None:
    assert passes(Sampling(num_inference_steps=9)) == 10
    assert passes(Sampling(num_inference_steps=9, ar_steps=2, guidance=1.5)) == 40


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

    return Measurement(stub, TASK, list(range(5)), shade, facts, folder, batch_size=2)  # type: ignore[arg-type]


SAMPLINGS = [Sampling(num_inference_steps=n, scheduler="ddim") for n in (2, 3, 4)]


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    whole = Stub()
    points = stubbed(tmp_path / "whole", whole).points(SAMPLINGS)
    assert [p.distance for p in points] == [2, 3, 4]
    each = len(whole.calls) // 3
    stopped = Stub(dies_after=each + 2)  # in the midst of the second point
    with pytest.raises(KeyboardInterrupt):
        stubbed(tmp_path / "on", stopped).points(SAMPLINGS)
    goes_on = Stub()
    assert [p.distance for p in stubbed(tmp_path / "on", goes_on).points(SAMPLINGS)] == [2, 3, 4]
    assert {steps for steps, _ in goes_on.calls} == {3, 4}
    again = Stub(dies_after=0)
    measurement = stubbed(tmp_path / "on", again)
    first, second = measurement.points(SAMPLINGS), measurement.points(SAMPLINGS)
    assert first == second  # the times, too, are those of the files
    bare = [p.model_copy(update={"on_frontier": False}) for p in first]
    assert [p.on_frontier for p in first] == [p in pareto(bare) for p in bare]
    assert not list((tmp_path / "on").glob(".*"))


def test_pictures_are_drawn_in_batches_and_times_one_by_one(tmp_path: Path) -> None:
    stub = Stub()
    stubbed(tmp_path, stub).points(SAMPLINGS[:1])
    sizes = [count for _, count in stub.calls]
    assert sizes[-3:] == [2, 2, 1]
    assert set(sizes[:-3]) == {1}
    assert len(sizes) > 5  # a warm-up, and several of which the median is taken


def test_another_model_seed_or_reference_is_measured_anew(tmp_path: Path) -> None:
    stubbed(tmp_path, Stub(), weights="a").points(SAMPLINGS)
    assert stubbed(tmp_path, Stub(), weights="a").found(SAMPLINGS[0])
    assert stubbed(tmp_path, Stub(), weights="b").found(SAMPLINGS[0]) is None
    other = SAMPLINGS[0].model_copy(update={"order": "raster"})
    assert stubbed(tmp_path, Stub(), weights="a").found(other) is None


def test_a_damaged_point_is_named(tmp_path: Path) -> None:
    measurement = stubbed(tmp_path, Stub())
    measurement.points(SAMPLINGS[:1])
    (path,) = tmp_path.glob("*.json")
    for damaged in ("{", "{}", '{"distance": "near"}'):
        path.write_text(damaged)
        with pytest.raises(UserError, match=f"{path}: not a measured point; delete it"):
            measurement.points(SAMPLINGS[:1])
    path.unlink()
    assert measurement.points(SAMPLINGS[:1])


# The page


PNG = b"\x89PNG made up"


def test_the_page_loads_nothing_and_shows_every_dial_that_was_turned() -> None:
    marked = [p.model_copy(update={"on_frontier": p in pareto(POINTS)}) for p in POINTS]
    strange = frontier(marked, model="<script>alert(1)</script>", left_out=["euler & more"])
    made = page(strange, [PNG] * len(POINTS))
    assert made == page(strange, [PNG] * len(POINTS))  # the same bytes again
    text = made.decode()
    loads = re.findall(r'(?:src|href|srcset|action)="([^"]*)"', text)
    assert all(load.startswith("data:image/") for load in loads)
    assert sum(load.startswith("data:image/png") for load in loads) == 3  # the frontier's sheets
    assert sum(load.startswith("data:image/svg") for load in loads) == 4  # guidance was not turned
    assert "<script" not in text
    assert "url(" not in text
    for shown in ("euler &amp; more", "Tin Can 9", "cd" * 32):
        assert shown in text
    assert text.count('<td class="star">frontier</td>') == 3


@pytest.mark.parametrize("points", [[point(5, 0)], [point(5, 1), point(5, 1, ar_steps=2)],
                                    [point(0.01, 1e-7), point(1e6, 1e5)]])  # fmt: skip
def test_a_page_of_odd_points(points: list[Point]) -> None:
    text = page(frontier(points), [PNG] * len(points)).decode()
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text)


# A real run


def command(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


QUICK = ("--pictures", 12, "--ar-steps", "1,2", "--schedulers", "ddim", "--steps", "2",
         "--batch-size", 8)  # fmt: skip


def test_the_digits_model_is_measured_and_kept_for_budgets(
    digits_data: Path, digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    asked = ("eval", "frontier", "--reference", f"{digits_data}/train-*.tar", *QUICK, "-o", out)
    assert command(*asked, "--device", "cpu") == 0
    said = capsys.readouterr().out
    assert "warning: 12 pictures" in said
    found = read(out)
    assert [p.options.ar_steps for p in found.points] == [1, 2]
    assert any(p.on_frontier for p in found.points)
    assert found.quality["n"] == 12
    assert found.quality["n_reference"] == 1500
    assert found.model_sha256 == digits.digest
    assert read(kept_at(digits.digest, digits.machine, TASK)) == found
    assert "data:image/svg" in (out / "frontier.html").read_text("utf-8")
    # The distance is that of the very pictures that the pipeline draws.
    items = [i % 10 for i in range(12)]
    made = digits.plain.class_to_image(items, batch_size=8, **found.points[0].options.model_dump())
    quality, _ = frechet_to(f"{digits_data}/train-*.tar", 8, "pixels", "cpu")
    assert quality(made) == pytest.approx(found.points[0].distance, rel=1e-6)
    # And a budget finds it.
    slowest = max(p.milliseconds for p in found.points)
    best = choose(found, slowest).options.model_dump(exclude_none=True)
    pipeline = Pipeline.from_pretrained("digits", "cpu", budget_ms=slowest)
    assert drawn(pipeline) == drawn(digits.plain, **best)
    # Nothing is measured twice.
    monkeypatch.setattr(Measurement, "_measure", None)
    assert command(*asked, "--device", "cpu") == 0
    assert read(out) == found


def test_text_to_image_is_measured_from_captions(
    digits_data: Path, digits: Digits, tmp_path: Path
) -> None:
    asked = ("eval", "frontier", "--reference", f"{digits_data}/held_out-*.tar", *QUICK)
    task = "text_to_image"
    assert command(*asked, "--task", task, "--device", "cpu", "-o", tmp_path / "out") == 0
    found = read(kept_at(digits.digest, digits.machine, task))
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
    with pytest.raises(UserError, match=r"reference\.npz: its moments have 4 dimensions"):
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
        (("--device", "tin"), "device tin"),
        (("--model", tmp_path / "none"), "no such folder"),
    ]:
        assert command(*asked, *wrong) == 2
        error = capsys.readouterr().err
        assert named in error
        assert "Traceback" not in error
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without a launcher"):
        measure_frontier("digits", None, "x", tmp_path, Grid())
    assert not list(tmp_path.rglob("*.json"))
