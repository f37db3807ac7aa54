"""The paper's comparisons at small size: runs of the digits' config that differ in one thing each.

    python -m benchmarks.ablations [--arms raster decay-0.9] [--seeds 3] [key.path=value ...]

An arm is a list of overrides of the config. Each arm and seed is a run like any other, in
OUTPUT/ARM-SEED, and a second start goes on where the first was stopped. All arms of a seed have the
same number of steps and read the same samples in the same order. The digits suite scores them at 1,
2, 4 and 8 AR steps, without guidance and from the same noise. Other overrides need another OUTPUT.
"""

import logging
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import options
from mmfusion import Pipeline, files
from mmfusion.config import Config, load
from mmfusion.config.evaluation import Digits
from mmfusion.data_pipelines.converters.digits import write_digits
from mmfusion.data_pipelines.loader import Loader
from mmfusion.eval.digits.suite import Suite
from mmfusion.eval.sample_store import SampleStore
from mmfusion.export import model_digest
from mmfusion.training.loop import Trainer

STEPS = (1, 2, 4, 8)
"""AR steps that models are sampled at."""
ARMS = {
    **{f"steps-{steps}": [f"diffusion.ar_steps={steps}"] for steps in STEPS},
    **{f"decay-{ratio}": [f"diffusion.ar_decay={ratio}"] for ratio in (1.0, 0.95, 0.9)},
    "raster": ["diffusion.order=raster"],
    **{f"weight-{weight}": [f"diffusion.weight_start={weight}"] for weight in (2, 3)},
}
RECIPE = [
    "decoder.width=64", "decoder.depth=3", "diffusion.weight_start=1", "train.steps=400",
    "train.max_minutes=null", "train.lr=3e-3", "train.ema=0.99", "train.sheet_prompts=[]",
]  # fmt: skip
"""What all arms change: a smaller model, fewer steps, and the loss weight 1 -> 1."""
SAMPLING = {"guidance": 1.0, "num_inference_steps": 8}
Figures = dict[str, dict[str, float]]
"""Of a run: by table, then by column."""


def config(output: Path, arm: str, seed: int, overrides: Iterable[str]) -> Config:
    """The config of a run."""
    data = output / "data"
    places = [f"data.sources.{i}.shards={data}/train-*.tar" for i in range(3)] + [
        f"data.sources.3.shards={data}/interleaved-*.tar", f"text.tokenizer={data}/tokenizer.model",
        f"seed={seed}", f"train.output={output / arm}-{seed}",
    ]  # fmt: skip
    return load("digits", [*RECIPE, *places, *overrides, *ARMS[arm]])


def figures_of(pictures: int, settings: Config) -> Figures:
    """Train what is missing of a run, and score it: figures by the heads of their columns."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    Trainer(settings, Loader).run()
    folder = Path(settings.train.output)
    answers = SampleStore(
        Pipeline.from_pretrained(folder), folder / "answers", model_digest(folder / "model")
    )
    suite = Suite(answers, Digits(data=str(folder.parent / "data"), pictures=pictures))
    distances, accuracies = {}, {}
    for steps in STEPS:
        report, _ = suite.class_to_image(ar_steps=steps, **SAMPLING)
        distances[f"S = {steps}"] = report["frechet_pixel"]["value"]
        accuracies[f"S = {steps}"] = report["class_to_image"]["accuracy"]
    drawn = suite.text_to_image(**SAMPLING)[0]["text_to_image"]
    told = suite.image_to_text()[0]["image_to_text"]
    texts = {
        "text → image": drawn["accuracy"],
        "image → text": told["accuracy"],
        "CIDEr": told["cider"],
    }
    return {"Fréchet distance": distances, "accuracy": accuracies, "accuracy with text": texts}


def table(title: str, found: dict[str, list[Figures]]) -> str:
    """A Markdown table of all arms: mean ± standard deviation over the seeds."""
    heads = [*next(iter(found.values()))[0][title]]
    lines = [[title, *heads], ["---"] * (1 + len(heads))]
    for arm, runs in found.items():
        line = [arm]
        for head in heads:
            values = [run[title][head] for run in runs]
            spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
            line.append(f"{np.mean(values):.2f}{spread}")
        lines.append(line)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: list[str] | None = None) -> None:
    """Train and score what is missing, then print and write the tables."""
    parser = options("ablations", __doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--arms", nargs="+", choices=[*ARMS], default=[*ARMS], metavar="ARM")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=500, help="drawn for each figure")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs side by side")
    parser.add_argument("overrides", nargs="*", help="key.path=value, for all arms")
    given = parser.parse_intermixed_args(arguments)
    write_digits(given.output / "data")
    runs = list(product(given.arms, range(given.seeds)))
    settings = [config(given.output, arm, seed, given.overrides) for arm, seed in runs]
    found: dict[str, list[Figures]] = {arm: [] for arm in given.arms}
    threads = max(1, (os.cpu_count() or 1) // given.workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.workers, context, torch.set_num_threads, (threads,)) as pool:
        done = pool.map(partial(figures_of, given.pictures), settings)
        for (arm, _), figures in zip(runs, tqdm(done, "runs", len(runs)), strict=True):
            found[arm].append(figures)
    first = settings[0]
    about = (
        f"{first.train.steps} steps of {first.data.rows} rows, seeds: {given.seeds}, "
        f"{first.diffusion.prediction}; {given.pictures} pictures a figure, "
        f"{SAMPLING['num_inference_steps']} denoising steps, no guidance. Mean ± standard "
        "deviation over seeds."
    )
    titles = next(iter(found.values()))[0]
    text = "\n".join([about + "\n", *(table(title, found) for title in titles)])
    files.write(given.output / "tables.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
