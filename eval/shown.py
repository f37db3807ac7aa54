"""Figures as a page or a terminal shows them: a name, a number, and what the number depends on."""

from collections.abc import Iterator
from typing import Any

DIRECTIONS = {
    "class_to_image": "Class → image",
    "text_to_image": "Text → image",
    "image_to_text": "Image → text",
}
TITLES = {
    "fid": "FID",
    "sfid": "sFID",
    "is": "Inception Score",
    "precision": "Precision",
    "recall": "Recall",
    "kid": "KID",
    "clip_cosine": "CLIP cosine, mean",
    "clip_score": "CLIP score, × 100",
    "clip_s": "CLIP-S, 2.5 · max(0, cos)",
    "ref_clip_score": "RefCLIPScore",
    "retrieval": "Right prompt first",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr-D",
    "meteor": "METEOR",
    "spice": "SPICE",
    "perplexity": "Perplexity of the references, a token",
    "cycle_log_likelihood": "Cycle: log-likelihood of the prompt, nats a token",
    "cycle_gain": "Cycle: gain over another's picture, nats a token",
    "cycle_accuracy": "Cycle: own picture likelier than another's",
}
HIDDEN = {"value", "n", "warning"}
DIGITS_OF_HASH = 12


def figures(entries: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The figures among a report's entries, with their keys; of groups, `group.key`."""
    for key, entry in entries.items():
        if isinstance(entry, dict) and "value" in entry and "n" in entry:
            yield path + key, entry
        elif isinstance(entry, dict):
            yield from figures(entry, f"{path}{key}.")


def title(key: str) -> str:
    """A figure's name for people."""
    group, _, last = key.rpartition(".")
    name = TITLES.get(last, last.replace("_", " "))
    return f"{name}, {group}" if group else name


def number(value: Any) -> str:
    """Four significant digits, and no fewer than the whole ones."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def depends(figure: dict[str, Any]) -> str:
    """What a figure depends on, in one line, hashes cut short."""
    parts = []
    for key, value in figure.items():
        if key in HIDDEN or value in (None, "") or isinstance(value, (dict, list)):
            continue
        if key.endswith("sha256"):
            parts.append(f"{key.removesuffix('_sha256').removesuffix('sha256') or 'file'} "
                         f"SHA-256 {str(value)[:DIGITS_OF_HASH]}")  # fmt: skip
        else:
            parts.append(f"{key.replace('_', ' ')} {number(value)}")
    return "; ".join(parts)


def directions(
    report: dict[str, Any], sheets: dict[str, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """What the page shows of each direction: figures, and cells {picture, alt, text, lines}."""
    found = []
    for key, name in DIRECTIONS.items():
        rows = [
            {
                "title": title(key),
                "shown": number(figure["value"]),
                "n": figure["n"],
                "depends": depends(figure),
                "warning": figure.get("warning"),
            }
            for key, figure in figures(report.get("figures", {}).get(key, {}))
        ]
        cells = sheets.get(f"{key}_answers", [])
        if rows or cells:
            found.append(
                {"title": name, "figures": rows, "cells": cells, "wide": key != "class_to_image"}
            )
    return found


def table(entries: dict[str, Any]) -> str:
    """Figures as lines of a terminal."""
    rows = [
        (title(key), number(figure["value"]), f"n = {figure['n']:,}", figure)
        for key, figure in figures(entries)
    ]
    width = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    lines = []
    for name, value, n, figure in rows:
        lines.append(f"{name:<{width[0]}}  {value:>{width[1]}}  {n:<{width[2]}}  {depends(figure)}")
        if figure.get("warning"):
            lines.append(f"  note: {figure['warning']}")
    return "\n".join(lines)
