"""Figures as a page or a terminal shows them: a name, a number, and what the number depends on."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfusion.files import write

DIRECTIONS = {
    "class_to_image": "Class → image",
    "text_to_image": "Text → image",
    "image_to_text": "Image → text",
}
TITLES = {
    "fid": "FID",
    "sfid": "sFID",
    "is": "Inception Score",
    "precision": "precision",
    "recall": "recall",
    "kid": "KID",
    "fd": "Fréchet distance",
    "cosine": "CLIP cosine",
    "clip_score": "CLIP score (100 cos)",
    "clip_s": "CLIP-S (2.5 max(0, cos))",
    "ref_clip_s": "RefCLIP-S",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr-D",
    "meteor": "METEOR",
    "perplexity": "perplexity of the references",
    "cycle_log_likelihood": "cycle: nats a token of the prompt",
    "cycle_gain": "cycle: gain over another's picture",
    "cycle_accuracy": "cycle: own picture likelier",
}
NAMED = {"value", "n", "warning", "source"}
"""Not among what a figure depends on: shown elsewhere, the answers' folder with its hash."""
DIGITS_OF_HASH = 12


def figures(entries: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The figures among a report's entries, with their keys; of groups, `group.key`."""
    for key, entry in entries.items():
        if isinstance(entry, dict) and "value" in entry and "n" in entry:
            yield path + key, entry
        elif isinstance(entry, dict):
            yield from figures(entry, f"{path}{key}.")


def title(key: str) -> str:
    """A figure's name for people: `fd_dinov2` is a Fréchet distance by DINOv2's features."""
    group, _, last = key.rpartition(".")
    metric, _, extractor = last.partition("_")
    if last in TITLES:
        name = TITLES[last]
    elif metric in TITLES:
        name = f"{TITLES[metric]} ({extractor})"
    else:
        name = last.replace("_", " ")
    return f"{group}: {name}" if group else name


def number(value: Any) -> str:
    """Four significant digits, and no fewer than the whole ones."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def facts(figure: dict[str, Any]) -> dict[str, str]:
    """What a figure depends on, for people; without hashes, see `hashes`."""
    return {
        key.replace("_", " "): "yes" if value is True else number(value)
        for key, value in figure.items()
        if not (key in NAMED or value in (None, "", False) or key.endswith("sha256"))
    }


def hashes(entries: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of each file and data set that the figures among the entries name, once each."""
    found: dict[str, dict[str, None]] = {}
    for _, figure in figures(entries):
        for key, digest in figure.items():
            if key.endswith("_sha256") and digest:
                name = key.removesuffix("_sha256")
                found.setdefault(digest, {})[f"{name} {figure.get(name, '')}".strip()] = None
    return {", ".join(names): digest for digest, names in found.items()}


@dataclass(frozen=True)
class Row:
    """A figure as it is shown; `depends` is what only this one of its table depends on."""

    title: str
    shown: str
    n: int
    depends: str
    warning: str


def rows(entries: dict[str, Any]) -> tuple[list[Row], dict[str, str]]:
    """The figures among the entries, and what all of them depend on."""
    held = dict(figures(entries))
    told = {key: facts(figure) for key, figure in held.items()}
    first = next(iter(told.values()), {})
    common = {k: v for k, v in first.items() if all(other.get(k) == v for other in told.values())}
    found = []
    for key, figure in held.items():
        own = ", ".join(f"{k} {v}" for k, v in told[key].items() if k not in common)
        value, warning = number(figure["value"]), figure.get("warning", "")
        found.append(Row(title(key), value, figure["n"], own, warning))
    return found, common


def directions(
    report: dict[str, Any], sheets: dict[str, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """What the page shows of each direction: figures, and cells {picture, alt, text, lines}."""
    found = []
    for key, name in DIRECTIONS.items():
        entries = report.get("figures", {}).get(key, {})
        figures, common = rows(entries)
        cells = sheets.get(f"{key}_answers", [])
        if figures or cells:
            found.append(
                {
                    "title": f"{name}: figures and answers",
                    "figures": figures,
                    "common": common,
                    "left_out": {title(k): why for k, why in entries.get("left_out", {}).items()},
                    "cells": cells,
                    "wide": key != "class_to_image",
                }
            )
    return found


def table(entries: dict[str, Any]) -> str:
    """Figures as lines of a terminal."""
    lines = columns(*rows(entries))
    lines += [f"SHA-256 {d[:DIGITS_OF_HASH]}: {name}" for name, d in hashes(entries).items()]
    lines += [f"left out: {title(k)}: {why}" for k, why in entries.get("left_out", {}).items()]
    return "\n".join(lines)


def columns(found: list[Row], common: dict[str, str] | None = None) -> list[str]:
    """Rows as lines of a terminal; what all of them depend on is said once, below."""
    cells = [(row.title, row.shown, f"n = {row.n:,}", row.depends) for row in found]
    widths = [max((len(cell[i]) for cell in cells), default=0) for i in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {value:>{widths[1]}}  {n:<{widths[2]}}  {own}".rstrip()
        for name, value, n, own in cells
    ]
    lines += [f"{name}: {value}" for name, value in (common or {}).items()]
    warnings: dict[str, list[str]] = {}
    for row in found:
        if row.warning:
            warnings.setdefault(row.warning, []).append(row.title)
    return lines + [f"warning: {', '.join(names)}: {text}" for text, names in warnings.items()]


def save(path: Path, entries: dict[str, Any]) -> None:
    """Write figures as JSON; the file appears when it is complete.

    Raises:
        UserError: it cannot be written.
    """
    text = json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write(path, text.encode("utf-8", "replace"))
