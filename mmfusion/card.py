"""The model card: README.md of an exported model, which a user may edit.

The first one is made of the model's config and of what its run's folder tells: config, steps,
scores, the newest sample sheet. From then on the card goes where the model goes, as it is.
"""

import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mmfusion.config import Config, ModelConfig, is_run, load
from mmfusion.errors import UserError, user_error
from mmfusion.overrides import write_yaml
from mmfusion.texts import read_text

CARD, PICTURE = "README.md", "samples.png"
RUN, REPORT, FACTS, SHEETS = "config.yaml", "report.json", "training.json", "samples"
SHEET = re.compile(r"step-(\d{8,})\.png", re.ASCII)
TAGS = "class_to_image", "text_to_image", "image_to_text", "interleaved"
HUB_TASKS = {
    "class_to_image": "unconditional-image-generation",  # the hub has no nearer one
    "text_to_image": "text-to-image",
    "image_to_text": "image-to-text",
    "interleaved": "any-to-any",
}
TRAIN = "steps", "lr", "betas", "weight_decay", "warmup", "decay", "grad_clip", "ema", "text_weight"


class Score(NamedTuple):
    """One figure of a report."""

    task: str
    metric: str
    value: float
    n: int
    data: str


class Run(NamedTuple):
    """What is known of how a model came to be."""

    config: Config
    facts: dict[str, Any]
    """training.json: steps and seconds."""
    scores: list[Score]
    sheet: Path | None


def find_run(folder: Path | None) -> Run | None:
    """The run of which a folder holds the model, if it lies in one."""
    config = _run_config(folder)
    if folder is None or config is None:
        return None
    above = folder.resolve().parent
    there = (above / SHEETS).iterdir() if (above / SHEETS).is_dir() else ()
    sheets = {int(found[1]): path for path in there if (found := SHEET.fullmatch(path.name))}
    with user_error(f"{above / REPORT}: not a report of mmfusion eval", AttributeError, TypeError):
        scores = [*_scores(_json(above / REPORT))]
    return Run(config, _json(above / FACTS), scores, sheets[max(sheets)] if sheets else None)


def _run_config(folder: Path | None) -> Config | None:
    path = folder.resolve().parent / RUN if folder else None
    if path is None or not is_run(path):
        return None
    try:
        return load(str(path))
    except UserError:  # of another version
        return None


def examples(folder: Path | None) -> list[str]:
    """Prompts of what the model in a folder draws: its card's, under `widget`, or its run's."""
    from huggingface_hub import ModelCard

    if folder and (folder / CARD).is_file():
        with suppress(Exception):  # whoever wrote it: a model can be used without examples
            header = ModelCard(read_text(folder / CARD)).data
            texts = [entry["text"] for entry in header.get("widget") or ()]
            if texts and all(isinstance(text, str) for text in texts):
                return texts
    config = _run_config(folder)
    return config.train.sheet_prompts if config else []


def pages(
    name: str,
    config: ModelConfig,
    parameters: int,
    folder: Path | None,
    license: str | None = None,
    datasets: list[str] | None = None,
) -> dict[str, bytes]:
    """The card of a model that was loaded from `folder`, and its picture: files by name.

    Where there is a card already it is kept, but for `license` (a key of the hub's, such as mit)
    and `datasets` (hub ids), if they are given.
    """
    from huggingface_hub import ModelCard

    made: dict[str, bytes] = {}
    kept = folder / CARD if folder else None
    if folder and kept and kept.is_file():
        with user_error(f"{kept}: not a model card", OSError, ValueError):
            text = read_text(kept)
        if (folder / PICTURE).is_file():
            made[PICTURE] = (folder / PICTURE).read_bytes()
    else:
        run = find_run(folder)
        text = describe(name, config, parameters, run)
        if run and run.sheet:
            made[PICTURE] = run.sheet.read_bytes()
    if license or datasets:
        with user_error(f"{kept or CARD}: its YAML header cannot be read", Exception):
            card = ModelCard(text)
            card.data["license"] = license or card.data.get("license")
            card.data["datasets"] = datasets or card.data.get("datasets")
            text = str(card)
    return {CARD: text.encode(), **made}


def describe(name: str, config: ModelConfig, parameters: int, run: Run | None) -> str:
    """The text of a card: YAML header and Markdown."""
    prompts = run.config.train.sheet_prompts if run else []
    parts = [_head(name, config, parameters)]
    if run and run.sheet:
        what = ["its first classes"] * bool(config.classes) + ["; ".join(prompts)] * bool(prompts)
        parts.append(
            f"![What the model draws]({PICTURE})\n\n*Drawn at the run's newest checkpoint, not "
            f"picked: {', then '.join(what)}.*"
        )
    parts += [_use(config, prompts[0] if prompts else "what you want to see")]
    if run:
        parts += [_training(run), _table(run.scores)]
    parts.append(_limits(config))
    return f"---\n{_header(name, config, run)}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"


def _tasks(config: ModelConfig, run: Run | None) -> list[str]:
    """The tasks that a model was trained for, or as its config tells, may have been."""
    if run:
        asked = {source.task for source in run.config.data.sources}
        return [task for task in TAGS if task in asked]
    return [*TAGS[:1] * bool(config.classes), *TAGS[1:] * bool(config.text)]


def _header(name: str, config: ModelConfig, run: Run | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    tasks, scores = _tasks(config, run), run.scores if run else []
    prompts = run.config.train.sheet_prompts if run else []
    hub = {HUB_TASKS[task] for task in tasks or TAGS[:1]}
    results = [
        EvalResult(
            task_type=HUB_TASKS.get(score.task, "other"), task_name=score.task,
            dataset_type="other", dataset_name=score.data,
            metric_type=score.metric, metric_name=f"{score.metric}, n = {score.n}",
            metric_value=score.value,
        )
        for score in scores
    ]  # fmt: skip
    data = ModelCardData(
        license="unknown",
        library_name="mmfusion",
        pipeline_tag=hub.pop() if len(hub) == 1 else "any-to-any",
        tags=[task.replace("_", "-") for task in tasks],
        widget=[{"text": prompt} for prompt in prompts] if config.text and prompts else None,
        metrics=sorted({score.metric for score in scores}) or None,
        model_name=name,
        eval_results=results or None,
    )
    if not results:
        del data.model_name
    return data.to_yaml()


def spans(config: ModelConfig) -> str:
    """What a model knows, in a few words."""
    image = config.image
    colour = "grey" if image.channels == 1 else "colour"
    knows = [f"{image.size} x {image.size} pictures in {colour}"]
    knows += [f"{len(config.classes)} classes"] if config.classes else []
    knows += ["text"] if config.text else []
    return ", ".join(knows)


def _head(name: str, config: ModelConfig, parameters: int) -> str:
    return (
        f"# {name}\n\nOne decoder-only transformer of {parameters / 1e6:.2f}M parameters: "
        f"{spans(config)}. Text is learned by next-token prediction, pictures by causal "
        "diffusion ([CausalFusion](https://arxiv.org/abs/2412.12095))."
    )


def _use(config: ModelConfig, prompt: str) -> str:
    calls = []
    if config.classes:
        calls.append(f"picture = pipeline.class_to_image({json.dumps(config.classes[0])}, seed=0)")
    if config.text:
        calls.append(f"picture = pipeline.text_to_image({json.dumps(prompt)}, seed=0)")
        calls.append("caption = pipeline.image_to_text(picture)")
    code = "\n".join(calls)
    return (
        "## Use\n\n```python\nfrom mmfusion import Pipeline\n\n"
        f'pipeline = Pipeline.from_pretrained("FOLDER OR HUB ID")\n{code}\n```'
    )


def _training(run: Run) -> str:
    config, facts = run.config, run.facts
    sources = "\n".join(
        f"| {s.name} | {s.task} | {s.weight:g} | {Path(s.shards).name} |"
        for s in config.data.sources
    )
    parts: dict[str, Any] = {
        "decoder": config.decoder.model_dump(),
        "diffusion": config.diffusion.model_dump(),
        "train": {"rows": config.data.rows} | {key: getattr(config.train, key) for key in TRAIN},
    }
    done = ""
    if facts:
        steps, seconds = facts.get("steps"), facts.get("seconds")
        done = f"{steps} steps of {config.data.rows} rows of {config.row_length} tokens"
        if isinstance(seconds, (int, float)):
            done += f" in {seconds / 60:.0f} minutes"
        done += f" ({facts.get('ranks')} ranks, {facts.get('device')}).\n\n"
    return (
        f"## How it was trained\n\n{done}| source | task | weight | shards |\n|---|---|---|---|\n"
        f"{sources}\n\n```yaml\n{write_yaml(parts).strip()}\n```"
    )


def _table(scores: list[Score]) -> str:
    if not scores:
        return ""
    rows = "\n".join(
        f"| {s.task} | {s.metric} | {s.value:.4g} | {s.n} | {s.data} |" for s in scores
    )
    head = "| task | figure | value | n | measured on |\n|---|---|---|---|---|"
    return f"## Scores\n\nMeasured by `mmfusion eval`.\n\n{head}\n{rows}"


def _limits(config: ModelConfig) -> str:
    size = config.image.size
    known = "It draws and describes what its training data show, and little else."
    text = (
        f" A prompt and its answers have at most {config.row_length} tokens together."
        if config.text
        else " It reads and writes no text."
    )
    return (
        f"## Limits\n\nPictures are {size} x {size} pixels, no other size. {known}{text} Nothing "
        "filters what goes in or comes out."
    )


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _scores(report: dict[str, Any]) -> Iterator[Score]:
    """The figures of a report.json: of the digits suite, and of each direction."""
    for task in TAGS if "judge" in report else ():
        entry = report.get(task, {})
        for metric in ("accuracy", "cider"):
            yield from _score(task, metric, {**entry, "value": entry.get(metric)}, "digits")
    for task, entries in report.get("figures", {}).items():
        settings = report.get("settings", {}).get(task) or {}
        data = Path(str(settings.get("data") or settings.get("reference"))).name
        data += " (training data)" if settings.get("training_shards") else ""
        yield from _figures(task, "", entries, data)


def _figures(task: str, group: str, entries: dict[str, Any], data: str) -> Iterator[Score]:
    for key, entry in entries.items():
        if isinstance(entry, dict) and "value" in entry:
            yield from _score(task, group + key, entry, data)
        elif isinstance(entry, dict):
            yield from _figures(task, f"{group}{key}.", entry, data)


def _score(task: str, metric: str, entry: dict[str, Any], data: str) -> Iterator[Score]:
    value, n = entry.get("value"), entry.get("n")
    if isinstance(value, (int, float)) and isinstance(n, int) and math.isfinite(value):
        yield Score(task, metric, float(value), n, data)
