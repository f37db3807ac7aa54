"""Configs as YAML files: found, read, overridden on the command line, and written."""

import json
from copy import deepcopy
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from mmfusion.config.evaluation import EvaluationConfig
from mmfusion.config.run import Config
from mmfusion.config.section import Key, S, Section, build
from mmfusion.errors import UserError, first_line
from mmfusion.files import write
from mmfusion.overrides import apply_override, read_yaml, write_yaml
from mmfusion.texts import read_text


def find(name: str) -> Path:
    """The file of a config: a path, or a bare name (with or without .yaml) looked up in configs/.

    Raises:
        UserError: there is no such file; the message lists the shipped names.
    """
    shipped = Path(__file__).resolve().parents[1] / "configs"
    for path in (Path(name), shipped / name, shipped / f"{name}.yaml"):
        if path.is_file():
            return path
    names = ", ".join(sorted(p.relative_to(shipped).as_posix() for p in shipped.rglob("*.yaml")))
    raise UserError(f"config {name}: no such file, and no config of that name (shipped: {names})")


def load(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a config by path or bare name and apply dotted overrides such as `train.lr=3e-4`.

    A number in an override's path picks a list entry: `data.sources.0.shards=...`; a value that is
    text is taken as it is written. A file with `base: NAME` says only how it differs from that
    config: sections are merged, lists and values replaced, and what is the base's own (`OWN`) is
    left out. Without `train.output` the run's folder is `runs/` and the file's name.

    Raises:
        UserError: a missing file, an unknown key or a wrong value, with the key's path and where
            it was given.
    """
    path = find(name)
    default = Layer(str(path), {"train": {"output": f"runs/{path.stem}"}})
    return _named(_load(Config, path, [default, *_layers(path)], overrides))


def load_evaluation(name: str, overrides: list[str] | tuple[str, ...] = ()) -> EvaluationConfig:
    """Read what `mmfusion eval` is to measure, as `load` reads a run's config."""
    path = find(name)
    return _load(EvaluationConfig, path, _layers(path), overrides)


def _load(
    kind: type[S], path: Path, layers: list["Layer"], overrides: list[str] | tuple[str, ...]
) -> S:
    raw: dict[str, Any] = deepcopy(reduce(_merged, (layer.raw for layer in layers)))
    for override in overrides:
        key = apply_override(raw, override, kind)
        layers.append(Layer("the command line", _nested(key), override))

    def origin(key: Key) -> tuple[str, str]:
        return _origin(raw, layers, key)

    return build(kind, raw, str(path), origin)


class Layer(NamedTuple):
    """Some of a config's data, from one place.

    Attributes:
        where: a file, or the command line.
        raw: the data; of an override only the path is held.
        override: what was written, of an override.
    """

    where: str
    raw: dict[str, Any]
    override: str = ""


OWN = ("data.pipeline", "text.tokenizer", "classes", "classes_file", "class_count",
       "train.sheet_prompts", "evaluation")  # fmt: skip
"""What belongs to a base's data: a config that reads none of its shards does not inherit it."""


def _layers(path: Path, above: tuple[Path, ...] = ()) -> list[Layer]:
    """A file's plain data above those of its base, which is looked for beside it first."""
    if path in above:
        chain = " -> ".join(str(each) for each in (*above, path))
        raise UserError(f"{path}: is its own base ({chain})")
    try:
        raw = read_yaml(read_text(path), str(path))
    except OSError as error:
        raise UserError(f"{path}: not a readable text file ({first_line(error)})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a config is a mapping of keys to values")
    if "base" not in raw:
        return [Layer(str(path), raw)]
    name = raw.pop("base")
    if not isinstance(name, str):
        raise UserError(f"{path}: base is {name!r}; expected the name of a config")
    beside = [path.parent / name, path.parent / f"{name}.yaml"]
    base = next((p for p in beside if p.is_file()), None) or find(name)
    below = _layers(base.resolve(), (*above, path.resolve()))
    own, theirs = _shards(raw), {shards for layer in below for shards in _shards(layer.raw)}
    for layer in below:
        for key in ("train.output", *(OWN if own and not own & theirs else ())):
            _forget(layer.raw, key)
    return [*below, Layer(str(path), raw)]


def _shards(raw: dict[str, Any]) -> set[str]:
    """What a file's own `data.sources` read."""
    data = raw.get("data")
    sources = data.get("sources") if isinstance(data, dict) else None
    entries = [s for s in sources if isinstance(s, dict)] if isinstance(sources, list) else []
    return {str(entry.get("shards")) for entry in entries}


def _forget(raw: dict[str, Any], key: str) -> None:
    """Leave a key out, and its section if nothing else is in there."""
    first, _, rest = key.partition(".")
    if rest and isinstance(raw.get(first), dict):
        _forget(raw[first], rest)
        if not raw[first]:
            del raw[first]
    elif not rest:
        raw.pop(first, None)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if both else value
    return merged


def _nested(key: tuple[str, ...]) -> dict[str, Any]:
    return {key[0]: _nested(key[1:]) if key[1:] else None}


def _origin(raw: dict[str, Any], layers: list[Layer], key: Key) -> tuple[str, str]:
    """Where a key was given last, or a section's parts were; and the overrides that gave them."""
    whole = key
    while (value := _at(raw, key)) is MISSING:  # not given, or a word of pydantic's
        key = key[:-1]
    found = [layer for layer in layers if _at(layer.raw, key) is not MISSING]
    if not isinstance(value, dict):
        return found[-1].where, ""
    if key != whole:  # of what gave the section, not of what only changed something in it
        gave = [layer for layer in found if not layer.override or _at(layer.raw, key) is None]
        return (gave or found)[-1].where, ""
    given = ", ".join(layer.override for layer in found if layer.override)
    told = " and ".join(dict.fromkeys(layer.where for layer in found))
    return told, f" (from {given})" if given else ""


MISSING = object()


def _at(node: Any, key: Key) -> Any:
    """What is at a key of plain data, in which overrides write numbers as text; or MISSING."""
    for part in key:
        if isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        elif isinstance(node, dict) and (part in node or str(part) in node):
            node = node[part] if part in node else node[str(part)]
        else:
            return MISSING
    return node


def _named(config: Config) -> Config:
    """The config with the names of `classes_file`; one not made yet is left there, with numbers."""
    if config.classes_file is None:
        return config
    names = read_names(Path(config.classes_file), config.class_count)
    if names is None:  # training asks for the file; a dry run needs only how many there are
        numbers = [str(number) for number in range(config.class_count or 0)]
        return config.model_copy(update={"classes": numbers})
    return config.model_copy(update={"classes": names, "classes_file": None, "class_count": None})


def is_run(path: Path) -> bool:
    """Whether a file is the config of a run, of this version or another."""
    try:
        found = read_yaml(read_text(path), str(path))
    except (OSError, UserError):
        return False
    return isinstance(found, dict) and found.keys() >= {"image", "decoder", "data", "train"}


def read_names(path: Path, count: int | None) -> list[str] | None:
    """The names in a JSON list of `count` class names; None when there is no such file.

    Raises:
        UserError: the file holds something else, or another number of names.
    """
    try:
        names = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"classes_file {path}: not readable JSON ({error})") from None
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise UserError(f"classes_file {path}: expected a JSON list of class names")
    if count and len(names) != count:
        raise UserError(f"classes_file {path}: has {len(names)} names; class_count says {count}")
    return names


def save(config: Section, path: Path) -> None:
    """Write a resolved config as YAML."""
    write(path, write_yaml(config.model_dump()).encode())
