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
    pictures = [ext for ext in sample if is_image(ext)]
    members: list[Callable[[], Any]] = [partial(_picture, sample, ext) for ext in pictures]
    members += [partial(sample.moments, ext) for ext in sample if is_moments(ext)]
    try:
        facts = sample.json()
    except CorruptSample as damage:
        yield damage
    kinds: dict[str, Callable[[], Any]] = {
        "label": sample.label,
        "captions": sample.captions,
        "content": partial(_content, sample, whole),
    }
    for look in members + [look for kind, look in kinds.items() if kind in facts]:
        try:
            look()
        except CorruptSample as damage:
            yield damage
    pictured = any("." not in ext for ext in pictures) or moments_name() in sample
    needed = "content" not in facts and ("label" in facts or "captions" in facts)
    if whole and needed and not pictured:
        lacking = f": no picture in this sample{shown_members(sample.extensions)}"
        yield sample.corrupt("picture", lacking)


def _picture(sample: Sample, ext: str) -> None:
    try:
        flat(sample.picture(ext))
    except CorruptSample as damage:
        raise damage.at(f"{sample.where}.{ext}") from None


def _content(sample: Sample, whole: bool) -> None:
    for part in sample.content():
        there = part.value in sample or moments_name(part.value) in sample
        if whole and part.kind == "image" and not there:
            raise sample.corrupt("picture", f": no picture {part.value} in this sample")
