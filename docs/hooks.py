"""Writes the tables of config keys and of commands from the code, when the site is built.

Pages of docs/reference hold marks that are replaced: `<!-- keys of Config -->`,
`<!-- commands -->`, `<!-- public names -->`.
"""

import ast
import html
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mmfusion import __all__, config
from mmfusion.cli import app
from mmfusion.config import Section

LIMITS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}  # of annotated_types


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with each page's text."""
    made: dict[str, Callable[..., str]] = {
        r"<!-- keys of (\w+) -->": lambda found: "\n".join(keys(getattr(config, found[1]))),
        r"<!-- public names -->": lambda _: "\n".join(f"::: mmfusion.{n}\n" for n in __all__),
        r"<!-- commands -->": lambda _: "\n".join(commands(typer.main.get_command(app))),
    }
    for mark, make in made.items():
        markdown = re.sub(mark, make, markdown)
    return markdown


def keys(kind: type[Section]) -> Iterator[str]:
    """A table for each section of a config; each key is an anchor by its dotted name."""
    for section, paths in sections(kind).items():
        title = ", ".join(f"`{path}`" for path in paths if path) or "Top level"
        anchor = next((path for path in paths if path), kind.__name__)
        others = "".join(f'<a id="{path}"></a>' for path in paths if path not in ("", anchor))
        yield f"\n### {title} {{ #{anchor} }}\n\n{others}{inspect.getdoc(section)}\n"
        yield "| key | type | default | |\n|---|---|---|---|"
        about = docstrings(section)
        for name, field in section.model_fields.items():
            names = [".".join(filter(None, (path, name))) for path in paths]
            if section_of(field.annotation):  # whose anchor is its heading
                cell = f"[`{name}`](#{names[0]})"
            else:
                cell = "".join(f'<a id="{each}"></a>' for each in names) + f"`{name}`"
            cells = cell, type_of(field), default_of(field), about.get(name, "")
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def sections(kind: type[Section], path: str = "") -> dict[type[Section], list[str]]:
    """The sections of a config, each with the dotted names under which it stands."""
    found = {kind: [path]}
    for name, field in kind.model_fields.items():
        for below in section_of(field.annotation):
            for section, paths in sections(below, ".".join(filter(None, (path, name)))).items():
                found.setdefault(section, []).extend(paths)
    return found


def section_of(annotation: Any) -> list[type[Section]]:
    """The section that a key holds, by itself, in a list or optionally."""
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return [annotation]
    return [each for argument in get_args(annotation) for each in section_of(argument)]


def docstrings(section: type[Section]) -> dict[str, str]:
    """What stands below each key in the source; for a section, its own docstring's first lines."""
    found = {
        name: inspect.getdoc(below[0]).split("\n\n")[0]
        for name, field in section.model_fields.items()
        if (below := section_of(field.annotation))
    }
    for kind in reversed([k for k in section.__mro__ if issubclass(k, Section)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                found[field.target.id] = ast.literal_eval(text.value)
    return {name: html.escape(" ".join(text.split()), quote=False) for name, text in found.items()}


def type_of(field: FieldInfo) -> str:
    """A key's type in words, with the limits of its value."""
    limits = [
        f"{sign} {getattr(limit, name):g}"
        for limit in field.metadata
        for name, sign in LIMITS.items()
        if hasattr(limit, name)
    ]
    return ", ".join([words(field.annotation), *limits])


def words(annotation: Any) -> str:
    """A type in words."""
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is Annotated:
        return words(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(words(each) for each in arguments)
    if origin is list:
        return f"list of {words(arguments[0])}"
    if section_of(annotation):
        return "section"
    return {NoneType: "null", str: "text", dict: "mapping"}.get(origin or annotation) or (
        annotation.__name__
    )


def default_of(field: FieldInfo) -> str:
    """A key's default as YAML has it; of a section its own keys say it."""
    if field.default is PydanticUndefined:
        return "*required*"
    if isinstance(field.default, Section):
        return ""
    return f"`{json.dumps(field.default)}`"


def commands(command: Any, path: str = "mmfusion") -> Iterator[str]:
    """A section for each command: what it does, its arguments and its options."""
    below = getattr(command, "commands", {})
    if command.callback and (not below or command.params):
        yield f"\n## {path} {{ #{path.replace(' ', '-')} }}\n\n{inspect.cleandoc(command.help)}\n"
        yield "| | | default |\n|---|---|---|"
        for given in command.params:
            names = given.opts if given.param_type_name == "option" else [given.name.upper()]
            shown = ", ".join(f"`{name}`" for name in names)
            default = "*required*" if given.required else shown_default(given.default)
            yield f"| {shown} | {html.escape(given.help or '')} | {default} |"
    for name, each in below.items():
        yield from commands(each, f"{path} {name}")


def shown_default(default: Any) -> str:
    """An option's default; nothing where it is off or absent."""
    return "" if default is None or default is False else f"`{default}`"
