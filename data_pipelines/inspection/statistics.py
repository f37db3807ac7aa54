"""What shards hold, in numbers.

Shards, samples, members and bytes are of all; they come from the indexes. What is inside of members
is counted over a random subset, and each figure says of how many samples it is.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from ..samples import FACTS, is_image, is_moments
from ..shards import Shards

EXTREMES = 5  # classes, or sizes, that are named


def subset(shards: Shards, most: int, seed: int, what: str) -> np.ndarray:
    """Numbers of at most so many random samples, in the order in which they lie."""
    if len(shards) <= most:
        return np.arange(len(shards))
    return np.sort(generator("inspect", what, seed).choice(len(shards), most, replace=False))


def spread(values: Sequence[int]) -> dict[str, float]:
    """Mean, median and 99th percentile (nearest rank) of some values; nothing of none."""
    if not len(values):
        return {}
    median, p99, most = np.percentile(values, [50, 99, 100], method="inverted_cdf").tolist()
    return {"mean": round(float(np.mean(values)), 2), "median": median, "p99": p99, "most": most}


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
    kinds = Counter[str]()
    labels = Counter[int]()
    per_sample, characters, tokens, parts = (array("q") for _ in range(4))
    for number in tqdm(numbers, desc="facts", unit="sample", disable=len(numbers) < 10_000):
        extensions = shards.extensions(int(number))
        kinds["pictures"] += any(map(is_image, extensions))
        kinds["latents"] += any(map(is_moments, extensions))
        with _counted(damage):
            sample = shards.sample(int(number), only=FACTS)
            facts = sample.json()
            if "label" in facts:
                with _counted(damage):
                    labels[sample.label()] += 1
                    kinds["label"] += 1
            if "captions" in facts:
                with _counted(damage):
                    captions = sample.captions()
                    kinds["captions"] += 1
                    per_sample.append(len(captions))
                    characters.extend(map(len, captions))
                    if tokenizer:
                        tokens.extend(len(tokenizer.encode(caption)) for caption in captions)
            if "content" in facts:
                with _counted(damage):
                    parts.append(len(sample.content()))
                    kinds["content"] += 1
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


@contextmanager
def _counted(damage: Counter) -> Iterator[None]:
    """What cannot be used is counted by its reason."""
    try:
        yield
    except CorruptSample as error:
        damage[error.reason] += 1


def _pictures(shards: Shards, numbers: np.ndarray, damage: Counter) -> dict[str, Any]:
    modes = Counter[str]()
    sizes: list[tuple[int, int]] = []
    for number in numbers.tolist():
        extensions = tuple(filter(is_image, shards.extensions(number)))
        with _counted(damage):
            sample = shards.sample(number, only=extensions)
            for ext in extensions:
                with _counted(damage):
                    picture = sample.picture(ext)
                    modes[picture.mode] += 1
                    sizes.append(picture.size)
    counts = Counter(f"{width} x {height}" for width, height in sizes)
    return {
        "samples": len(numbers),
        "decoded": modes.total(),
        "sizes": dict(counts.most_common(EXTREMES)),
        "different_sizes": len(counts),
        "width": spread([width for width, _ in sizes]),
        "height": spread([height for _, height in sizes]),
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
    mean = {
        name: round(float(np.mean([getattr(c, name) for c in counts])), 2)
        for name in (Counts._fields if counts else ())
    }
    tokens = spread([c.tokens for c in counts])
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
