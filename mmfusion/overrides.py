"""YAML text and dotted overrides, as plain data: nothing in them is ever run."""

import re
from functools import reduce
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from mmfusion.errors import UserError, first_line

OVERRIDE = "override"
Key = tuple[int | str, ...]
"""The path to a value: names of sections and keys, numbers of a list's entries."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 3e-4 as a number, as YAML 1.2 does, and refuses a key given twice.

    Nor are 010 and 1:30 numbers, of which YAML 1.1 makes 8 and 90.
    """

    def construct_document(self, node: Any) -> Any:
        self.deep_construct = True  # inside out: what is inside of itself is refused
        return super().construct_document(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number] and key != "<<":
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} is there twice",
                    problem_mark=node.value[number][0].start_mark,
                )
        return super().construct_mapping(node, deep)


class _TextLoader(yaml.SafeLoader):
    """SafeLoader to which every word is text."""


_TextLoader.yaml_implicit_resolvers = {}


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes the strings which `_Loader` would read as numbers."""


NUMBERS = {
    "tag:yaml.org,2002:float": re.compile(
        r"^[-+]?((\d[\d_]*\.[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf)$|^\.nan$"
    ),
    "tag:yaml.org,2002:int": re.compile(r"^[-+]?(0|[1-9][\d_]*|0x[\da-fA-F]+|0b[01]+)$"),
}
_Loader.yaml_implicit_resolvers = {
    first: [known for known in forms if known[0] not in NUMBERS]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _form in NUMBERS.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(_tag, _form, list("-+.0123456789"))


def read_yaml(text: str, name: str, words: bool = False) -> Any:
    """Parse YAML that errors call `name`; with `words`, what is not quoted is text all the same."""
    try:
        return yaml.load(text, _TextLoader) if words else yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = first_line(error)
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            at = error.problem_mark
            told = f"line {at.line + 1}, column {at.column + 1}: {error.problem}"
        raise UserError(f"{name}: not valid YAML: {told}") from error


def write_yaml(data: Any) -> str:
    """Plain data as YAML, in the order given."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


def read_override(given: str, kind: Any, what: str = OVERRIDE) -> tuple[Key, Any]:
    """The path and the value of key.path=value, a value for data of this `kind`, a `Section`.

    Where text is wanted nothing in it means anything: not `#`, quotes, brackets, `1e3` or `yes`;
    only white space around it is left out. Where it may also be absent, `null` says so. In a list
    of texts, `[a, "b, c"]`, quotes and commas are YAML's, and each entry is text. All else is YAML.
    """
    key, equals, text = given.partition("=")
    if not equals:
        config = "; the name of a config goes after --config" if what == OVERRIDE else ""
        raise UserError(f"{what} {given}: write it as key=value{config}")
    path = tuple(int(part) if part.isdecimal() else part for part in key.strip().split("."))
    members, text = _members(reduce(_inside, path, kind)), text.strip()
    if text == "null" and NoneType in members:
        return path, None
    entries = [get_args(member)[0] for member in members if get_origin(member) is list]
    if entries and text.startswith("["):
        return path, read_yaml(text, f"{what} {given}", any(map(_is_text, entries)))
    if any(map(_is_text, [*members, *entries])):
        return path, text
    if not text:
        raise UserError(
            f"{what} {given}: give the value after the =, without a space; null leaves it out"
        )
    return path, read_yaml(text, f"{what} {given}")


def replaced(node: Any, path: Key, value: Any, where: str) -> Any:
    """A copy of plain data with another value at a path; sections on the way are made.

    It is a copy, since one YAML alias may have written several sections.
    """
    if not path:
        return value
    part, *rest = path
    if isinstance(node, list):
        if not isinstance(part, int) or part >= len(node):
            raise UserError(f"{where}: a list of {len(node)} entries has no entry {part}")
        return [*node[:part], replaced(node[part], (*rest,), value, where), *node[part + 1 :]]
    if node is None and isinstance(part, int):
        raise UserError(f"{where}: no list is given there to pick an entry of; write it whole")
    if not isinstance(node, (dict, NoneType)):
        raise UserError(f"{where}: {part} is not in a section, but in a value")
    node = node or {}
    return {**node, part: replaced(node.get(part), (*rest,), value, where)}


def _members(kind: Any) -> list[Any]:
    """What a type may be: str and None of `Annotated[str, ...] | None`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _members(arguments[0])
    if origin in (Union, UnionType):
        return [member for argument in arguments for member in _members(argument)]
    return [kind]


def _is_text(kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return all(isinstance(choice, str) for choice in get_args(kind))
    return str in _members(kind)


def _inside(kind: Any, part: int | str) -> Any:
    """The type of what `part` names in a `kind`; text where it names nothing, which is refused."""
    for member in _members(kind):
        fields = getattr(member, "model_fields", {})
        if part in fields:
            return fields[part].annotation
        if get_origin(member) in (list, dict):
            return get_args(member)[-1]
    return str
