"""Quality against time: each setting that a model can draw with, measured once and kept.

Quality is a Fréchet distance from real pictures; times are measured in this process, with nothing
else of ours running. A point is a file named by all that it depends on, so a run that was stopped
goes on where it was, and one with other weights, data, options or versions starts anew.
"""

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image as PILImage
from tqdm import tqdm

from mmfusion import __version__, launcher
from mmfusion.codecs.image import encoded
from mmfusion.config import ModelConfig, Sampling, build
from mmfusion.data_pipelines.samples import FACTS
from mmfusion.data_pipelines.shards import Shards
from mmfusion.errors import UserError, resumable
from mmfusion.export import locate, model_digest
from mmfusion.files import check_free, write
from mmfusion.generation.budget import FILE, Dials, Frontier, Machine, Point, kept_at, pareto, read
from mmfusion.pipeline import Pipeline
from mmfusion.split import even_sizes
from mmfusion.training.image_grid import grid as image_grid

from .extractors import default_features, make_extractor
from .features import extract
from .image_sets import open_images
from .metrics import frechet_distance
from .pages import render, scatter

Quality = Callable[[list[PILImage.Image]], float]
PAGE = "frontier.html"
REPEATS = 7
"""Pictures drawn one by one for a point's time, after one that warms up; their median counts."""
SHOWN, SMALLEST, LARGEST = 10, 48, 96
"""Pictures on a point's sheet, and the pixels of their sides."""
FEW = 2000
"""Pictures below which the distance is far above that of many, so that only its order counts."""
DIALS = {
    "ar_steps": "S = {}", "scheduler": "{}", "num_inference_steps": "{} steps",
    "guidance": "guidance {:g}",
}  # fmt: skip
IDLE = {"model", "reference", "quality", "name", "n", "warning"}
"""Facts that a point's file is not named by: paths, of which the contents are, and words."""


class Grid(NamedTuple):
    """Values of each dial; all their combinations are measured."""

    ar_steps: Sequence[int] = (1, 2, 4)
    schedulers: Sequence[str] = ()
    """None: the model's default one and dpmsolver++."""
    steps: Sequence[int] = (5, 10, 20)
    guidance: Sequence[float] = ()
    """None: the model's own."""


def combinations(config: ModelConfig, task: str, grid: Grid) -> tuple[list[Sampling], list[str]]:
    """The grid's settings that this model can draw with, and why the others are left out."""
    base: Sampling = getattr(config.generation, task)
    tokens, default = config.image.tokens, config.diffusion.schedulers[0]
    schedulers = grid.schedulers or (default, "dpmsolver++")
    dials = (grid.ar_steps, schedulers, grid.steps, grid.guidance or (base.guidance,))
    made: list[Sampling] = []
    left_out: dict[str, None] = {}  # in order, each reason once
    for values in product(*(dict.fromkeys(dial) for dial in dials)):
        changed = dict(zip(DIALS, values, strict=True))
        sampling = build(Sampling, base.model_dump() | changed, f"options of {task}")
        why = config.refusal(sampling)
        if sampling.ar_steps > tokens and not why:
            why = f"ar_steps {sampling.ar_steps}: an image has {tokens} tokens"
        if why:
            left_out[why] = None
        else:
            sizes = even_sizes(tokens, sampling.ar_steps) if base.ar_sizes else None
            made.append(sampling.model_copy(update={"ar_sizes": sizes}))
    if not made:
        raise UserError("eval frontier: no point is left to measure\n  " + "\n  ".join(left_out))
    return made, list(left_out)


def name_of(options: Sampling | Dials) -> str:
    """A point in a few words."""
    return ", ".join(shown.format(getattr(options, name)) for name, shown in DIALS.items())


@dataclass(frozen=True)
class Measurement:
    """How points are measured; `about` are the frontier's fields but its points."""

    pipeline: Pipeline
    items: list[Any]  # the class or prompt of each picture
    quality: Quality
    about: dict[str, Any]
    folder: Path

    def points(self, samplings: list[Sampling]) -> list[Point]:
        """All points, measured where they are not there yet; those of the frontier are marked."""
        points = []
        bar = tqdm(samplings, unit="point", delay=2)
        for sampling in bar:
            bar.set_description(name_of(sampling))
            path = self.path(sampling)
            if not (path.is_file() and path.with_suffix(".png").is_file()):
                self._measure(sampling, path)
            points.append(read(Point, path))
        best = pareto(points)
        return [p.model_copy(update={"on_frontier": p in best}) for p in points]

    def path(self, sampling: Sampling) -> Path:
        """A point's file, named by all that it depends on; its first pictures are a PNG beside."""
        facts = {**self.about, **self.about["quality"]}
        depends = {name: fact for name, fact in facts.items() if name not in IDLE}
        depends |= {"sampling": sampling.model_dump(), "pictures": len(self.items)}
        key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{key[:16]}.json"

    def _measure(self, sampling: Sampling, path: Path) -> None:
        self._draw(sampling, 0, 1)
        alone = statistics.median(self._draw(sampling, 0, 1)[1] for _ in range(REPEATS))
        pictures: list[PILImage.Image] = []
        rates: list[float] = []
        batch = self.about["batch_size"]
        for first in range(0, len(self.items), batch):
            made, seconds = self._draw(sampling, first, batch)
            pictures += made
            if len(made) == batch or not rates:
                rates.append(len(made) / seconds)
        point = Point(
            options=Dials(**sampling.model_dump(include=set(Dials.model_fields))),
            distance=self.quality(pictures),
            milliseconds=1000 * alone,
            pictures_per_second=statistics.median(rates),
        )
        side = min(LARGEST, pictures[0].width)
        small = [p if p.width <= side else p.resize((side, side)) for p in pictures[:SHOWN]]
        sheet = image_grid(small, columns=SHOWN, side=SMALLEST)
        write(path.with_suffix(".png"), encoded(sheet))
        write(path, point.model_dump_json(indent=1).encode())

    def _draw(
        self, sampling: Sampling, first: int, count: int
    ) -> tuple[list[PILImage.Image], float]:
        """Pictures, and the seconds from prompt to pixels; they lie on the CPU when it ends."""
        start = time.perf_counter()
        made = getattr(self.pipeline, self.about["task"])(
            self.items[first : first + count],
            seed=self.about["seed"] + first,
            batch_size=self.about["batch_size"],
            **sampling.model_dump(exclude_none=True),
        )
        return made, time.perf_counter() - start


def frechet_to(
    reference: str, size: int, spec: str, device: str | None
) -> tuple[Quality, dict[str, Any]]:
    """What measures pictures of a size against a reference's, and what its distances depend on."""
    extractor, real = make_extractor(spec, device), open_images(reference, size)
    facts = {
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "reference": reference,
        "reference_sha256": real.digest,
        "n_reference": len(real),
    }
    moments = real.moments.get("features") if extractor.kind == "inception" else None
    target = moments or extract(real, extractor)["features"]

    def quality(pictures: list[PILImage.Image]) -> float:
        pixels = [np.asarray(picture.convert("RGB")) for picture in pictures]
        parts = [pixels[i : i + extractor.batch] for i in range(0, len(pixels), extractor.batch)]
        made = np.concatenate([extractor(part)["features"] for part in parts]).astype(np.float64)
        return frechet_distance(made, target)

    return quality, facts


def items_of(config: ModelConfig, task: str, count: int, reference: str) -> list[Any]:
    """What `count` pictures show: the classes in turn, or the reference's captions in turn."""
    if task == "class_to_image":
        return [number % len(config.classes) for number in range(count)]
    shards = Shards(reference, "text_to_image takes its prompts from shards with captions")
    prompts = []
    for number in range(count):
        turn, place = divmod(number, len(shards))
        captions = shards.sample(place, FACTS).captions()
        prompts.append(captions[(turn + place) % len(captions)])
    return prompts


def _task(config: ModelConfig, task: str | None) -> str:
    """What is measured of this model: the task that is asked for, or the first that it can."""
    can = {"class_to_image": bool(config.classes), "text_to_image": config.text is not None}
    able = [name for name in can if can[name]]
    if not able or (task and task not in able):
        raise UserError(f"--task {task}: this model can {' and '.join(able) or 'not be measured'}")
    return task or able[0]


@resumable("points that are measured")
def measure_frontier(
    model: str,
    task: str | None,
    reference: str,
    output: Path,
    grid: Grid,
    count: int = 500,
    extractor: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
    device: str | None = None,
) -> Frontier:
    """Measure a model's points, going on with those that lie in `output`, and keep them.

    Page and points are written to `output`, the points also to where `Pipeline(budget_ms=...)`
    finds them. The arguments are those of `mmfusion eval frontier`.
    """
    if launcher.place().world > 1:
        raise UserError(
            "eval frontier: times are only right with nothing else running; start it without a "
            "launcher, as one process"
        )
    if (output / FILE).exists():
        read(Frontier, output / FILE)  # or it is not ours to replace
    check_free(output / PAGE, (output / FILE).exists())
    folder = locate(model)
    pipeline = Pipeline.from_pretrained(folder, device)
    config, weight = pipeline.config, pipeline.decoder.latent_in.weight
    task = _task(config, task)
    samplings, left_out = combinations(config, task, grid)
    spec = extractor or default_features(config.image.size)
    quality, figure = frechet_to(reference, config.image.size, spec, str(weight.device))
    figure = {"name": "Fréchet distance", "n": count, **figure}
    if count < FEW:
        figure["warning"] = (
            f"{count} pictures: the distance itself is too high; only compare points of this file"
        )
    digest, machine = model_digest(folder), Machine.of(weight)
    about: dict[str, Any] = {
        "model": model,
        "model_sha256": digest,
        "task": task,
        "machine": machine.model_dump(),
        "versions": {"torch": torch.__version__, "mmfusion": __version__},
        "seed": seed,
        "batch_size": min(batch_size, count),
        "quality": figure,
    }
    items = items_of(config, task, count, reference)
    run = Measurement(pipeline, items, quality, about, output / "points")
    frontier = Frontier(**about, points=run.points(samplings), left_out=left_out)
    data = frontier.model_dump_json(indent=1).encode()
    sheets = [run.path(sampling).with_suffix(".png").read_bytes() for sampling in samplings]
    for path in (output / FILE, kept_at(digest, machine, task)):
        write(path, data)
    write(output / PAGE, page(frontier, sheets))
    return frontier


def page(frontier: Frontier, sheets: list[bytes]) -> bytes:
    """The page: curves, the frontier's points with their PNGs of first pictures, all points."""
    points, best = frontier.points, pareto(frontier.points)

    def places(some: list[Point]) -> list[tuple[float, float]]:
        return [(point.milliseconds, point.distance) for point in some]

    def chart(groups: dict[str, list[Point]]) -> bytes:
        lines = {name: places(some) for name, some in groups.items()}
        return scatter(lines, places(best), "milliseconds for one picture", "Fréchet distance")

    charts = []
    for dial, shown in DIALS.items():
        groups: dict[Any, list[Point]] = {}
        for point in points:
            groups.setdefault(getattr(point.options, dial), []).append(point)
        if len(groups) > 1:
            charts.append(chart({shown.format(v): pareto(groups[v]) for v in sorted(groups)}))
    return render(
        "frontier.html.j2",
        f=frontier,
        rows=[(point, sheets[points.index(point)]) for point in best],
        whole=chart({"": points}),
        charts=charts,
        about={
            **frontier.quality,
            **frontier.machine.model_dump(),
            **frontier.model_dump(include={"batch_size", "seed", "model_sha256"}),
            **frontier.versions,
        },
    )
