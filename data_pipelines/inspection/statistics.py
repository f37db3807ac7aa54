"""What shards hold, in numbers.

Shards, samples, members and bytes are of all; they come from the indexes. What is inside of members
is counted over a random subset, and each figure says of how many samples it is.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

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

T = TypeVar("T")
EXTREMES = 5  # classes, or sizes, that are named
DOCUMENTS = 200  # of a source, for the estimate of their length


def spread(values: Sequence[int]) -> dict[str, float]:
    """Mean, median and 99th percentile (nearest rank) of some values; nothing of none."""
    if not len(values):
        return {}
    median, p99, most = np.percentile(values, [50, 99, 100], method="inverted_cdf").tolist()
    return {"mean": round(float(np.mean(values)), 2), "median": median, "p99": p99, "most": most}


def statistics(
    shards: Shards, most: int, pictures: int, seed: int, tokenizer: Tokenizer | None = None
) -> dict[str, Any]:
    """All figures of some shards, as JSON data; facts of `most` samples, pictures of `pictures`."""
    damage = Counter(lost.reason for _, lost in shards.lost)
    return {
        "pattern": shards.pattern,
        "shards": len(shards.paths),
        "samples": len(shards),
        "bytes": sum(open_index(path).bytes for path in shards.paths),
        "members": {e: {"count": n, "bytes": b} for e, (n, b) in shards.tally().items()},
        "header": shards.header,
        **_facts(shards, _subset(shards, most, seed, "facts"), tokenizer, damage),
        "pictures": _pictures(shards, _subset(shards, pictures, seed, "pictures"), damage),
        "damage": dict(damage.most_common()),
    }


def _subset(shards: Shards, most: int, seed: int, what: str) -> list[int]:
    """Numbers of at most so many random samples, in the order in which they lie."""
    if len(shards) <= most:
        return list(range(len(shards)))
    chosen = generator("inspect", what, seed).choice(len(shards), most, replace=False)
    return np.sort(chosen).tolist()


def _usable(damage: Counter, look: Callable[..., T], *arguments: Any) -> T | None:
    """What is looked at; None, and counted by its reason, where it cannot be used."""
    try:
        return look(*arguments)
    except CorruptSample as error:
        damage[error.reason] += 1
        return None


def _facts(
    shards: Shards, numbers: list[int], tokenizer: Tokenizer | None, damage: Counter
) -> dict[str, Any]:
    pictured = latents = 0
    labels = Counter[int]()
    groups: list[list[str]] = []
    parts: list[int] = []
    for number in tqdm(numbers, desc="facts", unit="sample", disable=len(numbers) < 10_000):
        extensions = shards.extensions(number)
        pictured += any(map(is_image, extensions))
        latents += any(map(is_moments, extensions))
        sample = _usable(damage, shards.sample, number, FACTS)
        if sample is None or not (facts := _usable(damage, sample.json)):
            continue
        if "label" in facts and (label := _usable(damage, sample.label)) is not None:
            labels[label] += 1
        if "captions" in facts and (captions := _usable(damage, sample.captions)):
            groups.append(captions)
        if "content" in facts and (content := _usable(damage, sample.content)):
            parts.append(len(content))
    texts = [caption for captions in groups for caption in captions]
    kinds = {
        "pictures": pictured, "latents": latents, "label": labels.total(),
        "captions": len(groups), "content": len(parts),
    }  # fmt: skip
    ranked = [list(pair) for pair in labels.most_common()]
    return {
        "read": len(numbers),
        "kinds": {kind: n for kind, n in kinds.items() if n},
        "captions": {
            "per_sample": spread([*map(len, groups)]),
            "characters": spread([*map(len, texts)]),
            "tokens": spread([len(tokenizer.encode(t)) for t in texts] if tokenizer else []),
        },
        "labels": {
            "classes": len(labels),
            "most": ranked[:EXTREMES],
            "least": ranked[EXTREMES:][-EXTREMES:],
        },
        "content_parts": spread(parts),
    }


def _pictures(shards: Shards, numbers: list[int], damage: Counter) -> dict[str, Any]:
    modes, sizes = Counter[str](), Counter[tuple[int, int]]()
    for number in numbers:
        extensions = [*filter(is_image, shards.extensions(number))]
        sample = _usable(damage, shards.sample, number, extensions)
        if sample is None:
            continue
        for ext in extensions:
            if picture := _usable(damage, sample.picture, ext):
                modes[picture.mode] += 1
                sizes[picture.size] += 1
    return {
        "samples": len(numbers),
        "decoded": modes.total(),
        "sizes": {f"{w} x {h}": n for (w, h), n in sizes.most_common(EXTREMES)},
        "different_sizes": len(sizes),
        "width": spread([width for width, _ in sizes.elements()]),
        "height": spread([height for _, height in sizes.elements()]),
        "modes": dict(modes.most_common()),
    }


def some_documents(
    config: Config, source: SourceConfig, shards: Shards, tokenizer: Tokenizer | None, seed: int
) -> tuple[list[Document], dict[str, Any]]:
    """Documents of random samples, as training would make them, and their figures."""
    maker = DocumentMaker(config, tokenizer)
    documents: list[Document] = []
    lost: list[CorruptSample] = []
    numbers = _subset(shards, DOCUMENTS, seed, "documents")
    for number in generator("inspect", "documents", seed).permutation(numbers).tolist():
        rng = generator(seed, "document", source.name, 0, number, source.task)
        try:
            documents.append(maker.make(source, shards[number], rng))
        except CorruptSample as error:
            lost.append(error)
    counts = [count(document, config.decoder.label_tokens) for document in documents]
    means = [round(float(mean), 2) for mean in (np.mean(counts, 0) if counts else ())]
    tokens = spread([c.tokens for c in counts])
    return documents, {
        "source": source.name,
        "task": source.task,
        "documents": len(documents),
        "tokens": tokens,
        "mean_of_each_kind": dict(zip(Counts._fields, means, strict=False)),
        "per_row": round(config.row_length / tokens["mean"], 2) if tokens else 0,
        "too_long": sum(c.tokens > config.row_length for c in counts),
        "damage": dict(Counter(error.reason for error in lost).most_common()),
        "first_damage": str(lost[0]) if lost else "",
    }
