"""The dial: quality against time over AR steps, scheduler, inference steps and guidance.

Quality is a Fréchet distance from real pictures; times are measured in this process, with nothing
else of ours running.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Picture

from mmfusion import __version__, launcher
from mmfusion.config import ModelConfig
from mmfusion.data_pipelines.samples import FACTS
from mmfusion.data_pipelines.shards import Shards
from mmfusion.errors import UserError
from mmfusion.export import locate, model_digest
from mmfusion.files import write
from mmfusion.generation.frontier import FILE, Frontier, describe, known, measurable
from mmfusion.pipeline import Pipeline

from ..distances.frechet import frechet_distance
from ..distribution import POOL
from ..extractors import default_features, make_extractor
from ..features import extract
from ..pictures import open_pictures
from .points import Grid, Measurement, Quality, combinations

FEW = 2000
"""Pictures below which the distance is far above that of many, so that only its order counts."""


def frechet_to(
    reference: str, size: int, spec: str, device: str | None
) -> tuple[Quality, dict[str, Any]]:
    """What measures pictures against a reference's, and what its distances depend on.

    Args:
        reference: a folder of pictures, shards, or an npz of the ADM suite.
        size: side in pixels that the reference's pictures are brought to.
        spec: of the extractor, such as "pixels" or "inception".
        device: of the extractor.

    Raises:
        UserError: a reference or extractor that cannot be had.
    """
    extractor, real = make_extractor(spec, device), open_pictures(reference, size)
    facts = {
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "reference": reference,
        "reference_sha256": real.digest,
        "n_reference": len(real),
    }
    moments = real.moments if extractor.kind == "inception" else None
    if moments and len(moments.mu) != POOL:
        raise UserError(
            f"{reference}: its moments have {len(moments.mu)} dimensions and Inception's features "
            f"{POOL}; they are of another network"
        )
    target = np.empty(0) if moments else extract(real, extractor).features

    def quality(pictures: list[Picture.Image]) -> float:
        pixels = [np.asarray(picture.convert("RGB")) for picture in pictures]
        parts = [pixels[i : i + extractor.batch] for i in range(0, len(pixels), extractor.batch)]
        made = np.concatenate([extractor(part)["features"] for part in parts]).astype(np.float64)
        if moments is None:
            return frechet_distance(made, target)
        return frechet_distance(made, (moments.mu, moments.sigma))

    return quality, facts


def items_of(config: ModelConfig, task: str, count: int, reference: str) -> list[Any]:
    """What `count` pictures show: the classes in turn, or the reference's captions in turn.

    Raises:
        UserError: the reference is no shards, or a sample has no caption.
    """
    if task == "class_to_image":
        return [number % len(config.classes) for number in range(count)]
    if reference.endswith(".npz"):
        raise UserError(f"{reference}: text_to_image takes its prompts from shards with captions")
    shards = Shards(reference, "text_to_image takes its prompts from shards with captions")
    prompts = []
    for number in range(count):
        turn, place = divmod(number, len(shards))
        sample = shards.sample(place, FACTS)
        captions = sample.captions(sample.json())
        prompts.append(captions[(turn + place) % len(captions)])
    return prompts


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
    tell: Callable[[str], None] = print,
) -> tuple[Frontier, list[bytes]]:
    """Measure a model's points, going on with those that lie in `output`, and keep them.

    The frontier is written to `output` and to where `Pipeline(budget_ms=...)` finds it.

    Args:
        model: as `Pipeline.from_pretrained` takes it.
        task: default: classes where the model has them.
        reference: a folder of pictures, shards or an npz; shards with captions for text_to_image.
        extractor: default: that of `default_features`.
        device: default: the GPU where there is one.
        tell: told what is left out, and how long it will take.

    Returns:
        The frontier, and a PNG of the first pictures of each of its points.

    Raises:
        UserError: a launcher's rank, a model, reference or grid that cannot be measured.
    """
    if launcher.place().world > 1:
        raise UserError(
            "eval frontier: times are only right with nothing else running; start it without a "
            "launcher, as one process"
        )
    folder = locate(model)
    pipeline = Pipeline.from_pretrained(folder, device)
    config, weight = pipeline.config, pipeline.decoder.latent_in.weight
    can = measurable(config)
    if not can or (task and task not in can):
        raise UserError(f"--task {task}: this model can {' and '.join(can) or 'not be measured'}")
    task = task or can[0]
    samplings, left_out = combinations(config, task, grid)
    for line in left_out:
        tell(f"left out: {line}")
    spec = extractor or default_features(config.image.size)
    quality, facts = frechet_to(reference, config.image.size, spec, str(weight.device))
    digest, machine = model_digest(folder), describe(weight)
    versions = {"torch": torch.__version__, "mmfusion": __version__}
    depends = facts | {
        "model_sha256": digest,
        "machine": machine.model_dump(),
        "versions": versions,
    }
    depends.pop("reference")  # another way to write the same path
    items = items_of(config, task, count, reference)
    batch_size = min(batch_size, count)
    run = Measurement(pipeline, task, items, quality, depends, output / "points", seed, batch_size)
    estimates = run.estimates(samplings)
    missing = sum(seconds > 0 for seconds in estimates)
    if missing:
        tell(f"{missing} of {len(samplings)} points to measure, about {sum(estimates):.0f} s")
    points = run.points(samplings, estimates if missing else None)
    figure = {"name": "Fréchet distance", "n": count} | facts
    if count < FEW:
        figure["warning"] = (
            f"{count} pictures: the distance itself is too high; only compare points of this file"
        )
    frontier = Frontier(
        model=model, model_sha256=digest, task=task, machine=machine, versions=versions,
        seed=seed, batch_size=batch_size, quality=figure, points=points, left_out=left_out,
    )  # fmt: skip
    data = frontier.model_dump_json(indent=1).encode()
    write(output / FILE, data)
    write(known(digest, machine, task), data)
    return frontier, [run.sheet(sampling).read_bytes() for sampling in samplings]
