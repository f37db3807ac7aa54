"""Figures as a page or a terminal shows them: a name, a number, and what the number depends on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmfusion import jsonl
from mmfusion.files import write

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
    **{f"bleu_{n}": f"BLEU-{n}" for n in range(1, 5)},
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr-D",
    "meteor": "METEOR",
    "perplexity": "perplexity of the references",
    "cycle_log_likelihood": "cycle: nats a token of the prompt",
    "cycle_gain": "cycle: gain over another's picture",
    "cycle_accuracy": "cycle: own picture likelier",
    "share": "name and style right, of what real pictures score",
    "cheat_other_style": "cheat: the name in another style",
    "cheat_other_name": "cheat: another name in the style",
    "cheat_copy_of_given": "cheat: the given picture again",
    "wordless_rule": "without the example: nearest training picture",
    "frechet": "Fréchet distance to the same cells' real pictures",
    "nearest_training": "median distance to the nearest training picture",
}
NAMED = {"value", "n", "warning", "source"}
"""Not among what a figure depends on: shown elsewhere, the answers' folder with its hash."""


class Row(NamedTuple):
    """A figure as it is shown; `depends` is what only this one of its table depends on."""

    title: str
    shown: str
    n: int
    depends: str
    warning: str = ""


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
        return "yes" if value is True else str(value)
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def hashes(entries: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of each file and data set that the figures among the entries name, once each."""
    found: dict[str, dict[str, None]] = {}
    for _, figure in figures(entries):
        for key, digest in figure.items():
            if key.endswith("_sha256") and digest:
                name = key.removesuffix("_sha256")
                found.setdefault(digest, {})[f"{name} {figure.get(name, '')}".strip()] = None
    return {", ".join(names): digest for digest, names in found.items()}


def tabulated(entries: dict[str, Any]) -> tuple[list[Row], list[str]]:
    """The figures among the entries, and lines about all: what they depend on, what is left out."""
    held = dict(figures(entries))
    depends = [
        {
            name.replace("_", " "): number(value)
            for name, value in figure.items()
            if not (name in NAMED or value in (None, "", False) or name.endswith("sha256"))
        }
        for figure in held.values()
    ]
    first = depends[0] if depends else {}
    common = {k: v for k, v in first.items() if all(other.get(k) == v for other in depends)}
    rows = []
    for (key, figure), facts in zip(held.items(), depends, strict=True):
        own = ", ".join(f"{k} {v}" for k, v in facts.items() if k not in common)
        value, warning = number(figure["value"]), figure.get("warning", "")
        rows.append(Row(title(key), value, figure["n"], own, warning))
    about = [f"{name}: {value}" for name, value in common.items()]
    about += [f"left out: {title(k)}: {why}" for k, why in entries.get("left_out", {}).items()]
    return rows, about


def table(entries: dict[str, Any]) -> str:
    """Figures as lines of a terminal."""
    rows, about = tabulated(entries)
    digests = [f"SHA-256 {digest[:12]}: {name}" for name, digest in hashes(entries).items()]
    return "\n".join([*columns(rows), *about, *digests])


def columns(rows: list[Row]) -> list[str]:
    """Rows as lines of a terminal, and below them the warnings, each once."""
    cells = [(row.title, row.shown, f"n = {row.n:,}", row.depends) for row in rows]
    widths = [max((len(cell[i]) for cell in cells), default=0) for i in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {value:>{widths[1]}}  {n:<{widths[2]}}  {own}".rstrip()
        for name, value, n, own in cells
    ]
    warnings: dict[str, list[str]] = {}
    for row in rows:
        if row.warning:
            warnings.setdefault(row.warning, []).append(row.title)
    return lines + [f"warning: {', '.join(names)}: {text}" for text, names in warnings.items()]


def save(path: Path, entries: dict[str, Any]) -> None:
    """Write figures as JSON; the file appears when it is complete."""
    text = jsonl.dumps(entries, indent=2, ensure_ascii=False) + "\n"
    write(path, text.encode("utf-8", "replace"))
