"""What shards hold, in numbers.

Shards, samples, members and bytes are of all; they come from the indexes. What is inside of members
is counted over a random subset, and each figure says of how many samples it is.
"""

from collections import Counter
from typing import Any

import numpy as np
from tqdm import tqdm

from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Config, SourceConfig
from mmfusion.errors import CorruptSample
from mmfusion.rng import generator
from mmfusion.sequence import Counts, Document, count

from ..documents import DocumentMaker
from ..index import open_index
from ..samples import Sample, is_image, is_moments
from ..shards import Shards

FACTS = ("json", "txt", "cls")
EXTREMES = 5  # classes, or sizes, that are named


def subset(shards: Shards, most: int, seed: int, what: str) -> np.ndarray:
    """Numbers of at most so many random samples, in the order in which they lie."""
    if len(shards) <= most:
        return np.arange(len(shards))
    return np.sort(generator("inspect", what, seed).choice(len(shards), most, replace=False))


def spread(values: Counter[int]) -> dict[str, float]:
    """Mean, median and 99th percentile (nearest rank) of counted values; nothing of none."""
    if not values:
        return {}
    found = np.array(sorted(values))
    ends = np.cumsum([values[v] for v in found.tolist()])
    total = int(ends[-1])
    mean = sum(v * n for v, n in values.items()) / total
    at = {name: int(np.searchsorted(ends, share * total)) for name, share in RANKS.items()}
    return {
        "mean": round(mean, 2),
        **{name: int(found[place]) for name, place in at.items()},
        "most": int(found[-1]),
    }


RANKS = {"median": 0.5, "p99": 0.99}


def statistics(
    shards: Shards, most: int, pictures: int, seed: int, tokenizer: Tokenizer | None = None
) -> dict[str, Any]:
    """All figures of some shards, as JSON data.

    Args:
        shards: of one kind.
        most: samples of which the facts are read.
        pictures: samples of which the pictures are decoded.
        seed: of the choice.
        tokenizer: for lengths in tokens.
    """
    damage = Counter(lost.reason for _, lost in shards.lost)
    return {
        "pattern": shards.pattern,
        "shards": len(shards.paths),
        "samples": len(shards),
        "bytes": sum(open_index(path).bytes for path in shards.paths),
        "members": {e: {"count": n, "bytes": b} for e, (n, b) in shards.tally().items()},
        "header": shards.header,
        **_facts(shards, subset(shards, most, seed, "facts"), tokenizer, damage),
        "pictures": _pictures(shards, subset(shards, pictures, seed, "pictures"), damage),
        "damage": dict(damage.most_common()),
    }


def _facts(
    shards: Shards, numbers: np.ndarray, tokenizer: Tokenizer | None, damage: Counter
) -> dict[str, Any]:
    kinds: Counter[str] = Counter()
    labels: Counter[int] = Counter()
    per_sample: Counter[int] = Counter()
    characters: Counter[int] = Counter()
    tokens: Counter[int] = Counter()
    parts: Counter[int] = Counter()
    for number in tqdm(numbers, desc="facts", unit="sample", disable=len(numbers) < 10_000):
        extensions = shards.extensions(int(number))
        kinds["pictures"] += any(map(is_image, extensions))
        kinds["latents"] += any(map(is_moments, extensions))
        try:
            sample = shards.sample(int(number), only=FACTS)
            facts = sample.json()
        except CorruptSample as error:
            damage[error.reason] += 1
            continue
        for kind, looks in (
            ("label", lambda s, f: labels.update([s.label(f)])),
            ("captions", lambda s, f: _texts(s, f, tokenizer, per_sample, characters, tokens)),
            ("content", lambda s, f: parts.update([len(s.content(f))])),
        ):
            if kind not in facts:
                continue
            try:
                looks(sample, facts)
                kinds[kind] += 1
            except CorruptSample as error:
                damage[error.reason] += 1
    ranked = labels.most_common()
    return {
        "read": len(numbers),
        "kinds": {kind: n for kind, n in kinds.items() if n},
        "captions": {
            "per_sample": spread(per_sample),
            "characters": spread(characters),
            "tokens": spread(tokens),
        },
        "labels": {
            "classes": len(labels),
            "most": [list(pair) for pair in ranked[:EXTREMES]],
            "least": [list(pair) for pair in ranked[EXTREMES:][-EXTREMES:]],
        },
        "content_parts": spread(parts),
    }


def _texts(
    sample: Sample,
    facts: dict[str, Any],
    tokenizer: Tokenizer | None,
    per_sample: Counter[int],
    characters: Counter[int],
    tokens: Counter[int],
) -> None:
    captions = sample.captions(facts)
    per_sample[len(captions)] += 1
    characters.update(map(len, captions))
    if tokenizer:
        tokens.update(len(tokenizer.encode(caption)) for caption in captions)


def _pictures(shards: Shards, numbers: np.ndarray, damage: Counter) -> dict[str, Any]:
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    widths: Counter[int] = Counter()
    heights: Counter[int] = Counter()
    for number in numbers:
        extensions = tuple(filter(is_image, shards.extensions(int(number))))
        if not extensions:
            continue
        try:
            sample = shards.sample(int(number), only=extensions)
        except CorruptSample as error:
            damage[error.reason] += 1
            continue
        for ext in extensions:
            try:
                picture = sample.picture(ext)
            except CorruptSample as error:
                damage[error.reason] += 1
                continue
            sizes[f"{picture.width} x {picture.height}"] += 1
            modes[picture.mode] += 1
            widths[picture.width] += 1
            heights[picture.height] += 1
    return {
        "samples": len(numbers),
        "decoded": modes.total(),
        "sizes": dict(sizes.most_common(EXTREMES)),
        "different_sizes": len(sizes),
        "width": spread(widths),
        "height": spread(heights),
        "modes": dict(modes.most_common()),
    }


def some_documents(
    source: SourceConfig, shards: Shards, maker: DocumentMaker, most: int, seed: int
) -> tuple[list[Document], list[CorruptSample]]:
    """Documents of random samples, as training would make them, and why others give none."""
    documents: list[Document] = []
    lost: list[CorruptSample] = []
    numbers = generator("inspect", "documents", seed).permutation(
        subset(shards, most, seed, "documents")
    )
    for number in numbers.tolist():
        rng = generator(seed, "document", source.name, 0, number, source.task)
        try:
            documents.append(maker.make(source, shards[number], rng))
        except CorruptSample as error:
            lost.append(error)
    return documents, lost


def document_lengths(
    config: Config, source: SourceConfig, documents: list[Document], lost: list[CorruptSample]
) -> dict[str, Any]:
    """How long the documents of a source are, and what of them a row holds."""
    counts = [count(document, config.decoder.label_tokens) for document in documents]
    lengths = Counter(counts_.tokens for counts_ in counts)
    mean = {
        name: round(float(np.mean([getattr(c, name) for c in counts])), 2)
        for name in (Counts._fields if counts else ())
    }
    tokens = spread(lengths)
    return {
        "source": source.name,
        "task": source.task,
        "documents": len(documents),
        "tokens": tokens,
        "mean_of_each_kind": mean,
        "per_row": round(config.row_length / tokens["mean"], 2) if tokens else 0,
        "too_long": sum(c.tokens > config.row_length for c in counts),
        "damage": dict(Counter(error.reason for error in lost).most_common()),
        "first_damage": str(lost[0]) if lost else "",
    }
