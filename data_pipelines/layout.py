"""Whether the data of two runs are the same: what a loader's `layout` says of each."""

from collections.abc import Iterator
from typing import Any


def differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """A line for each thing by which a run would not go on with the data of another's layout."""
    for key, name in (("seed", "seed"), ("block", "data.block")):
        if before[key] != now[key]:
            was = f"the checkpoint was trained with {before[key]}"
            yield f"{name}: {was}, the config has {now[key]}"
    if before.get("tokenizer", now["tokenizer"]) != now["tokenizer"]:  # older ones do not say
        yield "text.tokenizer: the checkpoint was trained with a file of other contents"
    if before["columns"] != now["columns"]:
        yield (
            f"data.sources: the checkpoint was trained on {list(before['sources'])}, the config "
            f"has {list(now['sources'])}; the same ones are needed, in their order"
        )
    for name in [name for name in before["sources"] if name in now["sources"]]:
        was, is_now = before["sources"][name], now["sources"][name]
        source = f"data source {name}"
        for key in ("task", "flip"):
            if was[key] != is_now[key]:
                yield (
                    f"{source}: the checkpoint was trained with {key} {was[key]}, the config has "
                    f"{is_now[key]}"
                )
        if was["samples"] != is_now["samples"]:
            yield (
                f"{source}: has {is_now['samples']} samples, but had {was['samples']} when the "
                "checkpoint was written; put the same shards there"
            )
        elif was["shards"] != is_now["shards"]:
            yield (
                f"{source}: its shards have other names or contents than when the checkpoint was "
                "written; put the same shards there"
            )
