"""YAML text and dotted overrides, as plain data: nothing in them is ever run."""

import re
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from mmfusion.errors import UserError, first_line


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 3e-4 as a number, as YAML 1.2 does, and refuses a key given twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number] and key != "<<":
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} is there twice",
                    problem_mark=node.value[number][0].start_mark,
                )
        return super().construct_mapping(node, deep)


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
        told = first_line(error)
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            at = error.problem_mark
            told = f"line {at.line + 1}, column {at.column + 1}: {error.problem}"
        raise UserError(f"{name}: not valid YAML: {told}") from error


def write_yaml(data: Any) -> str:
    """Plain data as YAML, in the order given."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


def _unshared(data: Any) -> Any:
    """A copy in which what one alias wrote twice is two things: an override changes one of them."""
    if isinstance(data, dict):
        return {key: _unshared(value) for key, value in data.items()}
    return [_unshared(value) for value in data] if isinstance(data, list) else data


def apply_override(raw: dict, override: str, kind: Any) -> tuple[str, ...]:
    """Set one value of plain data, in place; a number in the path picks a list entry.

    Args:
        raw: the data of a `kind`.
        override: key.path=value; the value is read as `typed` reads it.
        kind: a section of the configuration, which says of what type the value is.

    Returns:
        The path.

    Raises:
        UserError: it is not key.path=value, or the path leads nowhere.
    """
    key, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"override {override!r}: write it as key.path=value")
    path = tuple(key.strip().split("."))
    node: Any = raw
    for depth, part in enumerate(path[:-1]):
        where = ".".join(path[: depth + 1])
        node = node[_index(node, part, where)] if isinstance(node, list) else _child(node, part)
        if not isinstance(node, (dict, list)):
            raise UserError(f"override {override!r}: {where} is a value, not a section")
        kind = _inside(kind, part)
    made = typed(_inside(kind, path[-1]), value, override)
    node[_index(node, path[-1], key) if isinstance(node, list) else path[-1]] = made
    return path


def read_option(kind: Any, given: str, what: str) -> tuple[str, Any]:
    """One option of a flat section, given as name=value; a wrong name or value is left to `build`.

    Args:
        kind: the section, such as `Sampling`.
        given: name=value; the value is read as `typed` reads it.
        what: what the user calls such an option, such as `--set`.

    Raises:
        UserError: it is not name=value.
    """
    name, equals, value = given.partition("=")
    if not equals:
        raise UserError(f"{what} {given}: write it as name=value")
    name = name.strip()
    return name, typed(_inside(kind, name), value, f"{what} {given}")


def typed(kind: Any, text: str, name: str) -> Any:
    """A value as its type wants it: text stays as it is written, all else is read as YAML.

    Where text is wanted nothing in it means anything: not `#`, quotes, brackets, `1e3` or `yes`;
    only white space around it is left out. Where it may also be absent, `null` says so. In a list
    of texts, `[a, "b, c"]`, quotes and commas are YAML's, and each entry is text.

    Raises:
        UserError: it is no YAML, told with `name`, what the user wrote.
    """
    text = text.strip()
    members = _members(kind)
    if text == "null" and type(None) in members:
        return None
    lists = [get_args(member)[0] for member in members if get_origin(member) is list]
    if lists and text.startswith("["):
        made = read_yaml(text, name)
        if not any(map(_is_text, lists)) or not isinstance(made, list):
            return made
        # What each entry was before YAML made a number or a date of it.
        written = getattr(yaml.compose(text, _Loader), "value", ())
        pairs = zip(written, made, strict=True)
        return [node.value if isinstance(node, yaml.ScalarNode) else m for node, m in pairs]
    return text if any(map(_is_text, [*members, *lists])) else read_yaml(text, name)


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


def _inside(kind: Any, part: str) -> Any:
    """The type of what `part` names in a `kind`; text where it names nothing, which is refused."""
    for member in _members(kind):
        fields = getattr(member, "model_fields", {})
        if part in fields:
            return fields[part].annotation
        if get_origin(member) in (list, dict):
            return get_args(member)[-1]
    return str


def _child(node: dict, part: str) -> Any:
    if node.get(part) is None:
        node[part] = {}
    return node[part]


def _index(node: list, part: str, where: str) -> int:
    if not part.isdecimal() or int(part) >= len(node):
        raise UserError(f"override {where}: a list of {len(node)} entries has no entry {part}")
    return int(part)
