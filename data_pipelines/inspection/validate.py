"""What of a sample no task could use, by the same code that the loader reads it with."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from mmfusion.codecs.image import flat
from mmfusion.errors import CorruptSample

from ..samples import Sample, is_image, is_moments, moments_name, shown_members


def findings(sample: Sample, whole: bool = True) -> Iterator[CorruptSample]:
    """What of a sample could not be used by any task; unless `whole`, members are known to lack."""
    facts: dict[str, Any] = {}
    members: list[Callable[[], Any]] = [partial(_picture, sample, e) for e in _pictures(sample)]
    members += [partial(sample.moments, ext) for ext in sample if is_moments(ext)]
    try:
        facts = sample.json()
    except CorruptSample as damage:
        yield damage
    if "label" in facts:
        members.append(partial(sample.label, facts))
    if "captions" in facts:
        members.append(partial(sample.captions, facts))
    if "content" in facts:
        members.append(partial(_content, sample, facts, whole))
    for look in members:
        try:
            look()
        except CorruptSample as damage:
            yield damage
    pictured = any("." not in ext for ext in _pictures(sample)) or moments_name() in sample
    needed = "content" not in facts and ("label" in facts or "captions" in facts)
    if whole and needed and not pictured:
        lacking = f"no picture in this sample{shown_members(sample.extensions)}"
        yield CorruptSample("picture", f"{sample.where}: {lacking}")


def _pictures(sample: Sample) -> list[str]:
    return [ext for ext in sample if is_image(ext)]


def _picture(sample: Sample, ext: str) -> None:
    try:
        flat(sample.picture(ext))
    except CorruptSample as damage:
        raise damage.at(f"{sample.where}.{ext}") from None


def _content(sample: Sample, facts: dict[str, Any], whole: bool) -> None:
    for part in sample.content(facts):
        there = part.value in sample or moments_name(part.value) in sample
        if whole and part.kind == "image" and not there:
            raise CorruptSample(
                "picture", f"{sample.where}: no picture {part.value} in this sample"
            )
