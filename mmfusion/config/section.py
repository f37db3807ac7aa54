"""What every part of the configuration is: strict, typed, and refused with the key's path."""

import os
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from mmfusion.errors import UserError, shown
from mmfusion.overrides import Key

Positive = Field(gt=0)


def home(path: str) -> str:
    """A path with its leading `~` or `~user` as the folder that it stands for."""
    if not path:
        raise ValueError("is empty; give a name")
    name = path.split("/")[0]
    if not name.startswith("~"):
        return path
    folder = os.path.expanduser(name)
    if not os.path.isabs(folder) or (name == "~" and not os.environ.get("HOME", folder)):
        told = f"{name}: no home folder is known ($HOME); write the path in full, or ./{path}"
        raise ValueError(told)
    return os.path.expanduser(path)


PathName = Annotated[str, AfterValidator(home)]
"""A file, a folder, a pattern or an address; `~` is the home folder."""


class Section(BaseModel):
    """A part of the configuration: no unknown keys, no silent conversions, never changed later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


def build(kind: type[S], raw: Any, origin: str | Callable[[Key], str]) -> S:
    """Plain data as a config section; all that is wrong is named, a line each.

    `origin` is where the data are from, or says so of a key.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = [
            f"{origin if isinstance(origin, str) else origin(key)}: {told}"
            for key, told in faults(kind, error)
        ]
        raise UserError("\n".join(lines)) from None


def faults(kind: type[Section], error: ValidationError) -> Iterator[tuple[Key, str]]:
    """Each wrong key of a section's data, and a line about it."""
    found: dict[Key, tuple[list[str], str]] = {}
    for fault in error.errors():
        key, given = fault["loc"], fault["input"]
        told = fault["msg"].removeprefix("Value error, ")
        got = f" (got {shown(given)})" if isinstance(given, (str, int, float)) else ""
        if fault["type"] == "extra_forbidden":
            while isinstance(given, dict) and len(given) == 1:  # an unknown section's one key
                key, given = (*key, *given), next(iter(given.values()))
            told, got = _unknown(kind, key), ""
        else:
            key = _given(kind, key)
        found.setdefault(key, ([], got))[0].append(told)
    for key, ((first, *others), got) in found.items():
        either = "".join(f", or {told.removeprefix('Input should be ')}" for told in others)
        yield key, f"{dotted(key) or '(top)'}: {first}{either}{got}"


def _given(kind: type[Section], key: Key) -> Key:
    """A key as it was given: pydantic adds the member of a union that it speaks of."""
    known, plain = {*keys(kind)}, tuple(0 if isinstance(part, int) else part for part in key)
    ends = (
        n for n, part in enumerate(key) if isinstance(part, str) and plain[: n + 1] not in known
    )
    return key[: next(ends, len(key))]


def dotted(key: Key) -> str:
    """A key as it is written on the command line."""
    return ".".join(map(str, key))


def keys(kind: Any, above: Key = ()) -> Iterator[Key]:
    """All keys of a type; of a list's entries the first one's."""
    below = (*above, 0) if getattr(kind, "__origin__", None) is list else above
    for argument in getattr(kind, "__args__", ()):  # of a list, a union, what is Annotated
        yield from keys(argument, below)
    for name, field in getattr(kind, "model_fields", {}).items():
        yield (*above, name)
        yield from keys(field.annotation, (*above, name))


def _unknown(kind: type[Section], key: Key) -> str:
    """What is said of a key that there is not: the nearest one, and those beside it."""
    *section, name = (0 if isinstance(part, int) else part for part in key)
    known = list(keys(kind))
    beside = [str(each[-1]) for each in known if each[:-1] == (*section,)]
    near = [dotted((*key[:-1], each)) for each in get_close_matches(str(name), beside, 1)]
    near = near or [dotted(each) for each in known if each[-1] == name]
    near = near or get_close_matches(dotted(key), map(dotted, known), 1, 0.75)
    meant = f"; did you mean {near[0]}?" if near else ""
    choices = f" (choose one of {', '.join(beside)})" if beside else ""
    return f"there is no such key{meant}{choices}"
