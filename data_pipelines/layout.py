"""Whether the data of two runs are the same: what a loader's `layout` says of each."""

from collections.abc import Iterator
from typing import Any


def differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """A line for each thing by which a run would not go on with the data of another's layout."""
    was = "the checkpoint was trained"
    for key, name in (("seed", "seed"), ("block", "data.block")):
        if before[key] != now[key]:
            yield f"{name}: {was} with {before[key]}, the config has {now[key]}"
    for key, name in (("tokenizer", "text.tokenizer"), ("linear", "image.linear")):
        if before.get(key, now[key]) != now[key]:  # older ones do not say
            yield f"{name}: {was} with a file of other contents"
    old, new = before["sources"], now["sources"]
    if before["columns"] != now["columns"]:
        yield (
            f"data.sources: {was} on {list(old)}, the config has {list(new)}; the same ones are "
            "needed, in their order"
        )
    for name in [name for name in old if name in new]:
        source, a, b = f"data source {name}", old[name], new[name]
        for key in ("task", "flip"):
            if a[key] != b[key]:
                yield f"{source}: {was} with {key} {a[key]}, the config has {b[key]}"
        if a["samples"] != b["samples"]:
            changed = f"has {b['samples']} samples, but had {a['samples']} when the"
        elif a["shards"] != b["shards"]:
            changed = "its shards have other names or contents than when the"
        else:
            continue
        yield f"{source}: {changed} checkpoint was written; put the same shards there"
