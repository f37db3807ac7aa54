"""Looks into shards: figures, a contact sheet, and documents as the decoder gets them."""

import io
import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import numpy as np

from mmfusion import files
from mmfusion.codecs.image import AutoencoderCodec, patches
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Config, SourceConfig
from mmfusion.config.run import TaskName
from mmfusion.errors import CorruptSample, UserError
from mmfusion.rng import generator
from mmfusion.sequence import Row

from ..documents import DocumentMaker
from ..latents import check_latents
from ..shards import Shards
from .contact_sheet import Decode, Shown, draw_sheet, show
from .plot_rows import PlottedRow, packed, plot_rows, told
from .statistics import document_lengths, some_documents, statistics

DOCUMENTS = 200  # of a source, for the estimate of their length
DRAWN = 4  # documents of a row that is drawn
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
    """Figures of each pattern by itself, as JSON data; with `output`, sheets beside them.

    Args:
        patterns: globs, braces or URLs; without any, those of the config's sources.
        output: `x.png` for the contact sheet; `x.json` has the figures and, with a config,
            `x.rows.png` documents as packed rows.
        config: says how samples become documents.
        task: read the patterns as this task; default: all for which the samples have the facts.
        count: samples on the sheet, over all patterns.
        most: samples of a pattern of which the facts are read.
        pictures: samples of a pattern of which the pictures are decoded.
        seed: of what is chosen.
    """
    sources = [] if config is None or patterns else config.data.sources
    if not patterns and not sources:
        raise UserError("inspect: give shards, or --config to look at those of its sources")
    patterns = list(dict.fromkeys(patterns or [source.shards for source in sources]))
    shards = {pattern: Shards(pattern) for pattern in patterns}
    tokenizer = Tokenizer(config.text.tokenizer) if config and config.text else None
    found = [statistics(s, most, pictures, seed, tokenizer) for s in shards.values()]
    result: dict[str, Any] = {"seed": seed, "patterns": found}
    rows: list[PlottedRow] = []
    if config:
        chosen = list(sources) or [
            source for facts in found for source in _sources(facts, task, config)
        ]
        result["documents"] = []
        for source in chosen:
            lengths, row = _documents(config, source, shards[source.shards], tokenizer, seed)
            result["documents"].append(lengths)
            rows += [row] if row else []
    if output:
        sections = [
            _section(s, config, max(1, count // len(shards)), seed) for s in shards.values()
        ]
        save(draw_sheet(sections), output)
        if rows:
            save(plot_rows(rows), output.with_suffix(".rows.png"))
        text = json.dumps(result, indent=1, ensure_ascii=False)
        files.write(output.with_suffix(".json"), f"{text}\n".encode("utf-8", "replace"))
    return result


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
    fitting = [name for name in get_args(TaskName) if facts["kinds"].get(TASKS[name])]
    if not config.text:
        fitting = [name for name in fitting if name == "class_to_image"]
    tasks = [task] if task else fitting
    return [SourceConfig(name=name, shards=facts["pattern"], task=name) for name in tasks]


def _documents(
    config: Config, source: SourceConfig, shards: Shards, tokenizer: Tokenizer | None, seed: int
) -> tuple[dict[str, Any], PlottedRow | None]:
    """How long a source's documents are, and a row of some of them."""
    check_latents({f"data source {source.name}": shards.header}, config.image)
    maker = DocumentMaker(config, tokenizer)
    documents, lost = some_documents(source, shards, maker, DOCUMENTS, seed)
    lengths = document_lengths(config, source, documents, lost)
    empty = Row.of(config, config.row_length)
    row, taken = packed(documents, empty, DRAWN)
    if not taken:
        return lengths, None
    name = source.name if source.name == source.task else f"{source.name}: {source.task}"
    heading = f"{name}, {len(taken)} documents in {row.used} of {row.length} tokens"
    lines = [f"doc {n}: {told(document, tokenizer)}" for n, document in enumerate(taken)]
    return lengths, PlottedRow(row, heading, lines)


def _section(
    shards: Shards, config: Config | None, count: int, seed: int
) -> tuple[str, list[Shown]]:
    """Some samples of some shards, as the sheet shows them, and a heading."""
    numbers = generator("inspect", "sheet", seed).choice(
        len(shards), min(count, len(shards)), replace=False
    )
    decode = _decoder(config, shards.header)
    classes = config.classes if config else []
    shown = [_shown(shards, int(number), classes, decode) for number in numbers]
    how = ""
    if any("moments.npy" in ext for ext in shards.extensions(int(numbers[0]))):
        how = ", latents decoded" if decode else ", latents in false colour"
    return f"{shards.pattern}: {len(numbers)} of {len(shards):,} samples{how}", shown


def _shown(shards: Shards, number: int, classes: list[str], decode: Decode | None) -> Shown:
    try:
        sample = shards[number]
    except CorruptSample as error:
        return Shown(shards.place(number)[1], f"damaged, {error.reason}", [(str(error), False)])
    return show(sample, list(classes), decode)


def _decoder(config: Config | None, header: dict[str, Any]) -> Callable | None:
    """What makes pictures of latents (c, h, w), where the config's autoencoder is at hand."""
    if config is None or config.image.codec != "vae" or not Path(str(config.image.vae)).is_dir():
        return None
    check_latents({"inspect": header}, config.image)
    codec, patch = AutoencoderCodec(config.image), config.image.patch
    return lambda latents: codec.decode(patches(np.asarray(latents), patch)[None])[0]


def lines(result: dict[str, Any]) -> list[str]:
    """The figures as lines for a terminal."""
    said = [line for facts in result["patterns"] for line in _pattern_lines(facts)]
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


def _pattern_lines(facts: dict[str, Any]) -> list[str]:
    captions, labels, pictures = facts["captions"], facts["labels"], facts["pictures"]
    members = {f"{m['count']:,} {e}": _bytes(m["bytes"]) for e, m in facts["members"].items()}
    kinds = ", ".join(f"{n:,} with {kind}" for kind, n in facts["kinds"].items())
    some = f"{pictures['decoded']} pictures of {pictures['samples']} random samples"
    header = json.dumps(facts["header"], ensure_ascii=False) if facts["header"] else ""
    table = {
        "members": _named(members.items()),
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
        "header": header,
        "damaged, of what was read": _lost(facts["damage"]) or "nothing",
    }
    return [
        facts["pattern"],
        f"  {facts['shards']:,} shards, {facts['samples']:,} samples, {_bytes(facts['bytes'])}",
        *(f"  {name}: {what}" for name, what in table.items() if what),
    ]


def _named(pairs: Iterable[tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in pairs)


def _lost(damage: dict[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in damage.items())


def _spread(figures: dict[str, float]) -> str:
    if not figures:
        return ""
    return (
        f"mean {figures['mean']:,g}, median {figures['median']:,}, 99% up to {figures['p99']:,}, "
        f"most {figures['most']:,}"
    )


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} bytes"
