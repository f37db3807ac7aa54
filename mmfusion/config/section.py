"""What every part of the configuration is: strict, typed, and refused with the key's path."""

import os
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from itertools import groupby
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from mmfusion.errors import UserError

Positive = Field(gt=0)
Key = tuple[int | str, ...]
"""The path to a value: names of sections and keys, numbers of a list's entries."""


def home(path: str) -> str:
    """A path with its leading `~` or `~user` as the folder that it stands for.

    Raises:
        ValueError: it is empty, or there is no such folder; pydantic makes it the key's error.
    """
    if not path:
        raise ValueError("is empty; give a name")
    name = path.split("/")[0]
    if not name.startswith("~"):
        return path
    folder = os.path.expanduser(name)
    if not os.path.isabs(folder) or (name == "~" and not os.environ.get("HOME", folder)):
        raise ValueError(
            f"{name} stands for a home folder, and none is known (for ~ it is $HOME); write the "
            f"path in full, or ./{path} for what is called so"
        )
    return os.path.expanduser(path)


PathName = Annotated[str, AfterValidator(home)]
"""A file, a folder, a pattern or an address; `~` is the home folder."""


class Section(BaseModel):
    """A part of the configuration: no unknown keys, no silent conversions, never changed later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


def build(
    kind: type[S], raw: Any, name: str, origin: Callable[[Key], tuple[str, str]] | None = None
) -> S:
    """Validate plain data as a config section.

    Args:
        kind: the section.
        raw: the data.
        name: where they are from, for the message.
        origin: where a key is from, and what is told of it beside, if not all are from `name`.

    Raises:
        UserError: naming every wrong key, what is wrong with it and where it is from.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        found = [
            (*(origin(key) if origin else (name, "")), told) for key, told in faults(kind, error)
        ]
        lines = []
        for where, each in groupby(sorted(found, key=lambda f: f[0]), lambda f: f[0]):
            lines += [f"{where}:", *(f"  {told}{beside}" for _, beside, told in each)]
        raise UserError("\n".join(lines)) from None


def faults(kind: type[Section], error: ValidationError) -> Iterator[tuple[Key, str]]:
    """Each wrong key of a section's data, and a line about it."""
    for fault in error.errors():
        key, given = fault["loc"], fault["input"]
        told = fault["msg"].removeprefix("Value error, ")
        shown = f" (got {given!r})" if isinstance(given, (str, int, float)) else ""
        if fault["type"] == "extra_forbidden":
            while isinstance(given, dict) and len(given) == 1:  # an unknown section's one key
                key, given = (*key, *given), next(iter(given.values()))
            told, shown = _unknown(kind, key), ""
        yield key, f"{dotted(key) or '(top)'}: {told}{shown}"


def dotted(key: Key) -> str:
    """A key as it is written on the command line."""
    return ".".join(map(str, key))


def keys(kind: Any, along: Key = (), above: Key = ()) -> Iterator[Key]:
    """All keys of a type, with the list entries that `along` goes through, the first ones else."""
    for argument in getattr(kind, "__args__", ()):  # of a list, a union, what is Annotated
        if getattr(kind, "__origin__", None) is list:
            number = along[0] if along and isinstance(along[0], int) else 0
            yield from keys(argument, along[1:], (*above, number))
        else:
            yield from keys(argument, along, above)
    for name, field in getattr(kind, "model_fields", {}).items():
        yield (*above, name)
        yield from keys(field.annotation, along[1:] if along[:1] == (name,) else (), (*above, name))


def _unknown(kind: type[Section], key: Key) -> str:
    """What is said of a key that there is not: the nearest one, and those beside it."""
    known = list(keys(kind, key))
    beside = [str(each[-1]) for each in known if each[:-1] == key[:-1]]
    near = [dotted((*key[:-1], n)) for n in get_close_matches(str(key[-1]), beside, 1)]
    if not near:
        same = [dotted(each) for each in known if each[-1] == key[-1]]
        near = get_close_matches(dotted(key), same, 1, 0.0)
    if not near:
        near = get_close_matches(dotted(key), map(dotted, known), 1, 0.75)
    meant = f"; did you mean {near[0]}?" if near else ""
    choices = f" (choose one of {', '.join(beside)})" if beside else ""
    return f"there is no such key{meant}{choices}"
