"""Points of the dial: settings that a model can draw with, each measured once and kept.

A point is a file named by all that it depends on, so a run that was stopped goes on where it was,
and one with other weights, data, options or versions starts anew.
"""

import hashlib
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image as Picture
from tqdm import tqdm

from mmfusion.config import ModelConfig, Sampling, build
from mmfusion.errors import UserError
from mmfusion.files import write
from mmfusion.generation.frontier import Dials, Point, pareto
from mmfusion.pipeline import Pipeline
from mmfusion.split import even_sizes
from mmfusion.training.sheet import grid as sheet_of

Quality = Callable[[list[Picture.Image]], float]
"""Pictures to their Fréchet distance from a reference."""
REPEATS = 7
"""Pictures drawn one by one for a point's time, after one that warms up; their median counts."""
SHOWN, SMALLEST, LARGEST = 10, 48, 96
"""Pictures on a point's sheet, and the pixels of their sides."""
PROBED = 5
"""Inference steps that are timed for the estimate."""


@dataclass(frozen=True)
class Grid:
    """Values of each dial; all their combinations are measured."""

    ar_steps: Sequence[int] = (1, 2, 4)
    schedulers: Sequence[str] = ()
    """None: the model's default one and dpmsolver++."""
    steps: Sequence[int] = (5, 10, 20)
    guidance: Sequence[float] = ()
    """None: the model's own for the task."""


def combinations(config: ModelConfig, task: str, grid: Grid) -> tuple[list[Sampling], list[str]]:
    """The grid's settings that this model can draw with, and why the others are left out.

    Raises:
        UserError: a value that no model knows, or nothing is left.
    """
    base: Sampling = getattr(config.generation, task)
    tokens, fitting = config.image.tokens, config.diffusion.schedulers
    schedulers = grid.schedulers or dict.fromkeys((fitting[0], "dpmsolver++"))
    made: list[Sampling] = []
    left_out: dict[str, None] = {}  # in order, each reason once
    dials = (grid.ar_steps, schedulers, grid.steps, grid.guidance or [base.guidance])
    for ar_steps, scheduler, steps, guidance in product(*(dict.fromkeys(d) for d in dials)):
        changed = {
            "ar_steps": ar_steps,
            "scheduler": scheduler,
            "num_inference_steps": steps,
            "guidance": guidance,
        }
        sampling = build(Sampling, base.model_dump() | changed, f"options of {task}")
        if why := config.refusal(sampling):
            left_out[why] = None
        elif sampling.ar_steps > tokens:
            left_out[f"ar_steps {ar_steps}: an image has {tokens} tokens"] = None
        else:
            sizes = even_sizes(tokens, sampling.ar_steps) if base.ar_sizes else None
            made.append(sampling.model_copy(update={"ar_sizes": sizes}))
    if not made:
        raise UserError("eval frontier: no point is left to measure\n  " + "\n  ".join(left_out))
    return made, list(left_out)


def passes(sampling: Sampling) -> int:
    """Passes of the decoder for a picture, twins counted: what a point costs, roughly."""
    guided = 1 + (sampling.guidance != 1)
    return sampling.ar_steps * (sampling.num_inference_steps + 1) * guided


def name_of(options: Sampling | Dials) -> str:
    """A point in a few words."""
    return (
        f"S={options.ar_steps} {options.scheduler} {options.num_inference_steps} steps, "
        f"guidance {options.guidance:g}"
    )


@dataclass(frozen=True)
class Measurement:
    """How points are measured, and all that they have in common."""

    pipeline: Pipeline
    task: str
    items: list[Any]
    """The class or prompt of each picture."""
    quality: Quality
    facts: dict[str, Any]
    """What every point depends on besides its sampling."""
    folder: Path
    """For the points' files."""
    seed: int = 0
    batch_size: int = 64

    def found(self, sampling: Sampling) -> Point | None:
        """A point that was measured before.

        Raises:
            UserError: its file is damaged.
        """
        path = self._path(sampling)
        if not (path.is_file() and self.sheet(sampling).is_file()):
            return None
        name = f"{path}: not a measured point; delete it, and it is measured anew"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name} ({error})") from None
        return build(Point, raw, name)

    def sheet(self, sampling: Sampling) -> Path:
        """A PNG of a measured point's first pictures."""
        return self._path(sampling).with_suffix(".png")

    def estimates(self, samplings: list[Sampling]) -> list[float]:
        """Seconds that each point will take, roughly; 0 for one that is there.

        A few steps are timed at each number of AR steps, which say how many tokens a pass has.
        """
        left = [s for s in samplings if self.found(s) is None]
        first = self.items[: self.batch_size]
        rates: dict[int, float] = {}
        for sampling in left:
            if sampling.ar_steps not in rates:
                few = min(PROBED, sampling.num_inference_steps)
                probe = sampling.model_copy(update={"num_inference_steps": few})
                self._draw(probe, 0, 1)
                alone, batch = (self._timed(probe, 0, n)[1] for n in (1, len(first)))
                seconds = alone * (REPEATS + 1) + batch * len(self.items) / len(first)
                rates[sampling.ar_steps] = seconds / passes(probe)
        return [rates[s.ar_steps] * passes(s) if s in left else 0.0 for s in samplings]

    def points(
        self, samplings: list[Sampling], estimates: list[float] | None = None
    ) -> list[Point]:
        """All points, measured where they are not there yet; those of the frontier are marked.

        Args:
            estimates: of `estimates`; with them a bar shows the time left.
        """
        shown = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
        bar = tqdm(total=sum(estimates or []), bar_format=shown, disable=estimates is None)
        points = []
        with bar:
            for sampling, cost in zip(samplings, estimates or [0] * len(samplings), strict=True):
                point = self.found(sampling)
                if point is None:
                    bar.set_description(name_of(sampling))
                    point = self._measure(sampling, bar, cost / len(self.items))
                points.append(point)
        best = pareto(points)
        return [p.model_copy(update={"on_frontier": p in best}) for p in points]

    def _measure(self, sampling: Sampling, bar: "tqdm", cost: float) -> Point:
        self._draw(sampling, 0, 1)
        alone = statistics.median(self._timed(sampling, 0, 1)[1] for _ in range(REPEATS))
        pictures: list[Picture.Image] = []
        rates: list[float] = []
        for first in range(0, len(self.items), self.batch_size):
            count = min(self.batch_size, len(self.items) - first)
            made, seconds = self._timed(sampling, first, count)
            pictures += made
            bar.update(min(cost * count, bar.total - bar.n))  # sums of floats may differ by a hair
            if count == self.batch_size or not rates:
                rates.append(count / seconds)
        point = Point(
            options=Dials(**sampling.model_dump(include=set(Dials.model_fields))),
            distance=self.quality(pictures),
            milliseconds=1000 * alone,
            pictures_per_second=statistics.median(rates),
        )
        write(self.sheet(sampling), _png(pictures[:SHOWN]))
        write(self._path(sampling), point.model_dump_json(indent=1).encode())
        return point

    def _timed(
        self, sampling: Sampling, first: int, count: int
    ) -> tuple[list[Picture.Image], float]:
        """Pictures, and the seconds from prompt to pixels; they lie on the CPU when it ends."""
        start = time.perf_counter()
        made = self._draw(sampling, first, count)
        return made, time.perf_counter() - start

    def _draw(self, sampling: Sampling, first: int, count: int) -> list[Picture.Image]:
        return getattr(self.pipeline, self.task)(
            self.items[first : first + count],
            seed=self.seed + first,
            batch_size=self.batch_size,
            **sampling.model_dump(exclude_none=True),
        )

    def _path(self, sampling: Sampling) -> Path:
        """A point's file: named by all that it depends on."""
        depends = self.facts | {
            "task": self.task,
            "sampling": sampling.model_dump(),
            "pictures": len(self.items),
            "seed": self.seed,
            "batch_size": self.batch_size,
        }
        key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{key[:16]}.json"


def _png(pictures: list[Picture.Image]) -> bytes:
    side = min(LARGEST, pictures[0].width)
    small = [p if p.width <= side else p.resize((side, side)) for p in pictures]
    file = io.BytesIO()
    sheet_of(small, columns=SHOWN, side=SMALLEST).save(file, "png")
    return file.getvalue()
