"""YAML text and dotted overrides, as plain data: nothing in them is ever run."""

import re
from typing import Any

import yaml

from mmfusion.errors import UserError


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 3e-4 as a number, as YAML 1.2 does."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes the strings which that loader would read as numbers."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def read_yaml(text: str, name: str) -> Any:
    """Parse YAML; `name` is what the error calls the text. No two places share an object."""
    try:
        return _unshared(yaml.load(text, _Loader))  # a SafeLoader: builds plain data only
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{name}: not valid YAML: {error}") from error


def write_yaml(data: Any) -> str:
    """Plain data as YAML, in the order given."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


def _unshared(data: Any) -> Any:
    """A copy in which what one alias wrote twice is two things: an override changes one of them."""
    if isinstance(data, dict):
        return {key: _unshared(value) for key, value in data.items()}
    return [_unshared(value) for value in data] if isinstance(data, list) else data


def apply_override(raw: dict, override: str) -> None:
    """Set one value of plain data, in place; a number in the path picks a list entry.

    Raises:
        UserError: it is not key.path=value, or the path leads nowhere.
    """
    key, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"override {override!r}: write it as key.path=value")
    *parents, last = key.strip().split(".")
    node: Any = raw
    for depth, part in enumerate(parents):
        where = ".".join(parents[: depth + 1])
        node = node[_index(node, part, where)] if isinstance(node, list) else _child(node, part)
        if not isinstance(node, (dict, list)):
            raise UserError(f"override {override!r}: {where} is a value, not a section")
    node[_index(node, last, key) if isinstance(node, list) else last] = read_yaml(value, override)


def _child(node: dict, part: str) -> Any:
    if node.get(part) is None:
        node[part] = {}
    return node[part]


def _index(node: list, part: str, where: str) -> int:
    if not part.isdecimal() or int(part) >= len(node):
        raise UserError(f"override {where}: a list of {len(node)} entries has no entry {part}")
    return int(part)
