"""What is measured where nobody says: the tasks of a run's sources, on held-out shards if any are.

Data folders name their parts as people do, `train-*.tar` beside `held_out-*.tar` or `coco-train/`
beside `coco-val/`, and latents lie beside their pictures (`x-latents/` beside `x/`).
"""

import logging
import re
from contextlib import suppress
from typing import Any

from mmfusion.config import Config, EvaluationConfig, ModelConfig
from mmfusion.config.evaluation import Digits
from mmfusion.data_pipelines.preflight import LATENTS
from mmfusion.data_pipelines.samples import PICTURES
from mmfusion.data_pipelines.shards import Shards
from mmfusion.data_pipelines.storage import expand
from mmfusion.errors import UserError

from .digits.suite import unfit
from .extractors import default_features

log = logging.getLogger("mmfusion")
COUNT = 1000
"""Answers of each direction: minutes of a small model on a CPU."""
TRAINING = re.compile(r"(?<![a-z])train(ing)?(?![a-z])")
HELD_OUT = "held_out", "held-out", "val", "validation", "test"
READ_FROM = {"class_to_image": "reference", "text_to_image": "data", "image_to_text": "data"}
WANTED = (
    "give --config NAME.yaml that names shards with pictures as class_to_image.reference, "
    "text_to_image.data or image_to_text.data (configs/eval/coco.yaml is an example; the shipped "
    "emoji model's is --config eval/emoji)"
)


def own_evaluation(name: str, model: ModelConfig, run: Config | None) -> EvaluationConfig:
    """What to measure of a model by its run's config: its `evaluation`, or else its sources.

    Each task is measured on the first of its sources that leads to pictures. A digits model
    without a run gets the digits suite.

    Raises:
        UserError: nothing can be measured without being told more; the message says what.
    """
    if run is None:
        if not unfit(model):
            return EvaluationConfig(digits=Digits(data="runs/digits/data"))
        raise UserError(f"{name}: no run's folder, so nothing says what to measure; {WANTED}")
    if run.evaluation:
        return run.evaluation
    asked: dict[str, dict[str, Any]] = {}
    tried: dict[str, list[str]] = {}
    for source in run.data.sources:
        if source.task in READ_FROM and source.task not in asked:
            shards = with_pictures(source.shards)
            if shards:
                asked[source.task] = {
                    READ_FROM[source.task]: shards,
                    "training_shards": shards == without_latents(source.shards),
                    "pictures": COUNT,
                }
            else:
                tried.setdefault(source.task, []).append(source.shards)
    if not asked:
        every = ", ".join(source.shards for source in run.data.sources)
        raise UserError(f"{name}: its data.sources lead to no pictures ({every}); {WANTED}")
    for task in tried.keys() - asked.keys():
        log.warning("%s is left out: no pictures at %s", task, ", ".join(tried[task]))
    for task in asked.keys() - {"image_to_text"}:
        asked[task]["features"] = [default_features(model.image.size)]
    if "text_to_image" in asked:
        asked["text_to_image"]["cycle"] = "image_to_text" in asked
    return EvaluationConfig.model_validate(asked)


def with_pictures(pattern: str) -> str | None:
    """Shards with pictures for the shards that a source trains on: held-out ones, or the same."""
    pattern = without_latents(pattern)
    places = [match.span() for match in TRAINING.finditer(pattern)]
    beside = [pattern[:a] + word + pattern[b:] for word in HELD_OUT for a, b in places[-1:]]
    trained = _files(pattern)
    for candidate in [*beside, pattern]:
        found = _files(candidate)
        apart = candidate == pattern or not found & trained  # as of {train,more}-*.tar
        if found and apart and Shards(candidate).tally().keys() & {*PICTURES}:
            return candidate
    return None


def _files(pattern: str) -> set[str]:
    """What a pattern names, if all of its parts name something."""
    with suppress(UserError):
        return {*expand(pattern)}
    return set()


def without_latents(pattern: str) -> str:
    """The shards of which latents were made."""
    return pattern.replace(f"{LATENTS}/", "/")
