"""Looks into shards: figures, a contact sheet, and documents as the decoder gets them."""

import io
import json
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mmfusion import files, jsonl
from mmfusion.codecs.image import AutoencoderCodec, patches
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Config, SourceConfig
from mmfusion.config.run import TaskName
from mmfusion.errors import CorruptSample, UserError
from mmfusion.rng import generator

from ..latents import check_latents
from ..shards import Shards
from .contact_sheet import Cell, Decode, draw_sheet, show
from .plot_rows import PlottedRow, plot_rows, plotted
from .statistics import some_documents, statistics

ROWS = ".rows.png"
TASKS: dict[TaskName, str] = {  # what samples must have to serve as a task
    "class_to_image": "label",
    "text_to_image": "captions",
    "image_to_text": "captions",
    "interleaved": "content",
}


def inspect(
    patterns: list[str],
    output: Path | None = None,
    config: Config | None = None,
    task: TaskName | None = None,
    count: int = 24,
    most: int = 100_000,
    pictures: int = 256,
    seed: int = 0,
) -> dict[str, Any]:
    """Figures of each pattern by itself, as JSON data.

    Args:
        patterns: globs, braces or URLs; without any, those of the config's sources.
        output: `x.png` for a contact sheet of `count` samples; `x.json` has the figures and, with a
            config, `x.rows.png` documents as packed rows.
        task: read the patterns as this task; default: all for which the samples have the facts.
        most, pictures: samples of a pattern of which facts are read, and pictures decoded.
    """
    if output:
        _check_beside(output)
    sources = [] if config is None or patterns else config.data.sources
    if not patterns and not sources:
        raise UserError("inspect: give shards, or --config to look at those of its sources")
    shards = {name: Shards(name) for name in patterns or [source.shards for source in sources]}
    tokenizer = Tokenizer(config.text.tokenizer) if config and config.text else None
    found = [statistics(s, most, pictures, seed, tokenizer) for s in shards.values()]
    result: dict[str, Any] = {"seed": seed, "patterns": found}
    rows: list[PlottedRow] = []
    if config:
        sources = sources or [s for facts in found for s in _sources(facts, task, config)]
        result["documents"] = []
        for source in sources:
            of = shards[source.shards]
            documents, figures = some_documents(config, source, of, tokenizer, seed)
            result["documents"].append(figures)
            rows += plotted(config, source, documents, tokenizer)
    if output:
        text = jsonl.dumps(result, indent=1, ensure_ascii=False)
        files.write(output.with_suffix(".json"), f"{text}\n".encode("utf-8", "replace"))
        each = max(1, count // len(shards))
        save(draw_sheet(dict(_section(s, config, each, seed) for s in shards.values())), output)
        if rows:
            save(plot_rows(rows), output.with_suffix(ROWS))
    return result


def _check_beside(output: Path) -> None:
    """Make sure that nothing of the user's stands under the names made of that of the sheet."""
    path = output.with_suffix(".json")
    ours = False
    with suppress(OSError, ValueError, RecursionError, AttributeError):
        ours = json.loads(path.read_bytes()).keys() >= {"seed", "patterns"}
    for beside in (path, output.with_suffix(ROWS)):
        files.check_free(beside, ours)


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, the same bytes each time."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # The font has Latin, Greek and Cyrillic letters; others show as boxes.
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        figure.savefig(file, format="png", dpi=100, metadata={"Software": None})
    files.write(path, file.getvalue())


def _sources(facts: dict[str, Any], task: TaskName | None, config: Config) -> list[SourceConfig]:
    """The tasks that a pattern's samples can serve, as sources."""
    tasks = [name for name, fact in TASKS.items() if facts["kinds"].get(fact)]
    if not config.text:
        tasks = [name for name in tasks if name == "class_to_image"]
    shards = facts["pattern"]
    return [SourceConfig(name=t, shards=shards, task=t) for t in ([task] if task else tasks)]


def _section(
    shards: Shards, config: Config | None, count: int, seed: int
) -> tuple[str, list[Cell]]:
    """A heading, and some samples of some shards as the sheet shows them."""
    numbers = generator("inspect", "sheet", seed).choice(
        len(shards), min(count, len(shards)), replace=False
    )
    decode = _decoder(config, shards.header)
    classes = list(config.classes) if config else []
    cells: list[Cell] = []
    for number in numbers.tolist():
        try:
            cells += show(shards[number], classes, decode)
        except CorruptSample as error:
            cells.append(Cell(str(error), below=[shards.place(number)[1]]))
    how = ""
    if any("moments.npy" in ext for ext in shards.extensions(int(numbers[0]))):
        how = ", latents decoded" if decode else ", latents in false colour"
    return f"{shards.pattern}: {len(numbers)} of {len(shards):,} samples{how}", cells


def _decoder(config: Config | None, header: dict[str, Any]) -> Decode | None:
    """What makes pictures of latents (c, h, w), where the config's autoencoder is at hand."""
    if config is None or config.image.codec != "vae" or not Path(str(config.image.vae)).is_dir():
        return None
    check_latents({"inspect": header}, config.image)
    codec, patch = AutoencoderCodec(config.image), config.image.patch
    return lambda latents: codec.decode(patches(np.asarray(latents), patch)[None])[0]


# The figures as lines for a terminal


def lines(result: dict[str, Any]) -> list[str]:
    """The figures of `inspect`."""
    said = [line for facts in result["patterns"] for line in _pattern(facts)]
    for source in result.get("documents", []):
        tokens, kinds = source["tokens"], source["mean_of_each_kind"]
        head = f"documents of {source['source']} ({source['task']})"
        if tokens:
            parts = ", ".join(f"{n:g} {k}" for k, n in kinds.items() if n and k != "tokens")
            said.append(f"{head}: {_spread(tokens)} tokens; on average {parts}")
            said.append(f"  {source['per_row']:g} of them fill a row")
        if source["too_long"]:
            said.append(f"  {source['too_long']} of {source['documents']} are longer than a row")
        if source["damage"]:
            said.append(f"{head}: cannot be used: {_lost(source['damage'])}")
            said.append(f"  the first: {source['first_damage']}")
    return said


def _pattern(facts: dict[str, Any]) -> list[str]:
    captions, labels, pictures = facts["captions"], facts["labels"], facts["pictures"]
    members = [(f"{m['count']:,} {e}", _bytes(m["bytes"])) for e, m in facts["members"].items()]
    kinds = ", ".join(f"{n:,} with {kind}" for kind, n in facts["kinds"].items())
    some = f"{pictures['decoded']} pictures of {pictures['samples']} random samples"
    table = {
        "members": _named(members),
        f"of {facts['read']:,} samples": kinds or "no facts",
        "captions of a sample": _spread(captions["per_sample"]),
        "captions' characters": _spread(captions["characters"]),
        "captions' tokens": _spread(captions["tokens"]),
        "parts of an interleaved sample": _spread(facts["content_parts"]),
        f"{labels['classes']:,} classes; most common": _named(labels["most"]),
        "  least common": _named(labels["least"]),
        f"{some}, {pictures['different_sizes']} sizes": _named(pictures["sizes"].items()),
        "  width": _spread(pictures["width"]),
        "  height": _spread(pictures["height"]),
        "  modes": _named(pictures["modes"].items()),
        "header": json.dumps(facts["header"], ensure_ascii=False) if facts["header"] else "",
        "damaged, of what was read": _lost(facts["damage"]) or "nothing",
    }
    return [
        facts["pattern"],
        f"  {facts['shards']:,} shards, {facts['samples']:,} samples, {_bytes(facts['bytes'])}",
        *(f"  {name}: {what}" for name, what in table.items() if what),
    ]


def _named(pairs: Iterable[Iterable[Any]]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in pairs)


def _lost(damage: dict[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in damage.items())


def _spread(figures: dict[str, float]) -> str:
    if not figures:
        return ""
    said = "mean {mean:,g}, median {median:,}, 99% up to {p99:,}, most {most:,}"
    return said.format(**figures)


def _bytes(count: int) -> str:
    power = min(3, max(0, count.bit_length() - 1) // 10)
    unit = ("bytes", "KiB", "MiB", "GiB")[power]
    return f"{count / 1024**power:,.1f} {unit}" if power else f"{count} bytes"
