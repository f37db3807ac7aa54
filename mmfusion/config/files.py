"""Configs as YAML files: found, read, overridden on the command line, and written."""

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

from mmfusion.config.evaluation import EvaluationConfig
from mmfusion.config.run import Config
from mmfusion.config.section import S, Section, build
from mmfusion.errors import UserError, user_error
from mmfusion.files import write
from mmfusion.overrides import Key, read_override, read_yaml, replaced, write_yaml
from mmfusion.texts import read_text

SHIPPED = Path(__file__).resolve().parents[1] / "configs"


def find(name: str, folder: Path = Path()) -> Path:
    """The file of a config: a path, or a bare name (with or without .yaml) of one in configs/.

    A file `digits` hides none of that name; `./digits` is always a file.
    """
    bare = [SHIPPED / f"{name}.yaml"] * ("/" not in name)
    for path in (*bare, folder / name, SHIPPED / name, SHIPPED / f"{name}.yaml"):
        if path.is_file():
            return path
    names = ", ".join(sorted(p.relative_to(SHIPPED).as_posix() for p in SHIPPED.rglob("*.yaml")))
    raise UserError(f"config {name}: no such file, and no config of that name (shipped: {names})")


def load(name: str, overrides: Sequence[str] = ()) -> Config:
    """Read a config by path or bare name and apply dotted overrides such as `train.lr=3e-4`.

    A number in an override's path picks a list entry: `data.sources.0.shards=...`; a value that is
    text is taken as it is written. A file with `base: NAME` says only how it differs from that
    config: sections are merged, lists and values replaced, and what is the base's own (`OWN`) is
    left out. Without `train.output` the run's folder is `runs/` and the file's name.
    """
    path = find(name)
    called = path.name.removesuffix(".yaml").removesuffix(".yml")  # of lr.0.5 all is the name
    default = (str(path), {"train": {"output": f"runs/{called}"}})
    return _named(_load(Config, [default, *_layers(path)], overrides))


def load_evaluation(name: str) -> EvaluationConfig:
    """Read what `mmfusion eval` is to measure, as `load` reads a run's config."""
    return _load(EvaluationConfig, _layers(find(name)))


Layer = tuple[str, dict]
"""Where some of a config's data are from, and the data."""


USES: dict[Any, str] = {
    Config: "what to train, as digits does",
    EvaluationConfig: "what to measure, as eval/digits does",
}


def _load(kind: type[S], layers: list[Layer], overrides: Sequence[str] = ()) -> S:
    _check_use(kind, *layers[-1])
    raw: dict = reduce(_merged, (layer for _, layer in layers))
    for override in overrides:
        key, value = read_override(override, kind)
        raw = replaced(raw, key, value, f"override {override}")
        layers.append((f"the command line, {override}", _nested(key, value)))

    def origin(key: Key) -> str:
        """Who gave a key last, or a section's parts; of what is missing, its section's."""
        while (value := _at(raw, key)) is MISSING:
            key = key[:-1]
        found = [where for where, layer in layers if _at(layer, key) is not MISSING]
        return " and ".join(dict.fromkeys(found if isinstance(value, dict) else found[-1:]))

    return build(kind, raw, origin)


def _check_use(kind: type[Section], where: str, own: dict) -> None:
    """Refuse a file that is a whole config, but of the other kind."""
    for other, use in USES.items():
        if own.keys() <= other.model_fields.keys() and own.keys() - kind.model_fields.keys():
            raise UserError(f"{where}: says {use}; here it is to say {USES[kind]}")


OWN = ("data.pipeline", "text", "image.linear", "classes", "classes_file", "class_count",
       "train.max_minutes", "train.sheet_prompts", "evaluation")  # fmt: skip
"""What belongs to a base's data: a config that reads none of its shards does not inherit it."""


def _layers(path: Path, above: tuple[Path, ...] = ()) -> list[Layer]:
    """A file's plain data above those of its base, which is looked for beside it first."""
    if path in above:
        chain = " -> ".join(str(each) for each in (*above, path))
        raise UserError(f"{path}: is its own base ({chain})")
    with user_error(f"{path}: not a readable text file", OSError):
        raw = read_yaml(read_text(path), str(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a config is a mapping of keys to values")
    if "base" not in raw:
        return [(str(path), raw)]
    name = raw.pop("base")
    if not isinstance(name, str):
        raise UserError(f"{path}: base is {name!r}; expected the name of a config")
    below = _layers(_base(name, path).resolve(), (*above, path.resolve()))
    own, theirs = _shards(raw), {shards for _, layer in below for shards in _shards(layer)}
    for _, layer in below:
        for key in ("train.output", *(OWN if own and not own & theirs else ())):
            *sections, last = key.split(".")
            section = _at(layer, (*sections,))
            if isinstance(section, dict) and last in section:
                del section[last]
                if sections:
                    raw.setdefault(sections[0], {})  # what is missing there is this file's doing
    return [*below, (str(path), raw)]


def _base(name: str, path: Path) -> Path:
    """The config of that name: beside a file, but not itself; in configs/; where one works."""
    beside = path.parent / f"{name}.yaml"
    if beside.is_file() and not beside.samefile(path):
        return beside
    for folder in (path.parent, Path()):
        with suppress(UserError):
            return find(name, folder)
    if beside.is_file():
        return beside  # which is refused
    raise UserError(f"{path}: base: config {name}: no such file, and no config of that name")


def _shards(raw: dict) -> set[str]:
    """What a file's own `data.sources` read."""
    sources = _at(raw, ("data", "sources"))
    entries = sources if isinstance(sources, list) else []
    return {str(entry.get("shards")) for entry in entries if isinstance(entry, dict)}


def _merged(base: dict, changes: dict) -> dict:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if both else value
    return merged


def _nested(key: Key, value: Any) -> dict:
    return {key[0]: _nested(key[1:], value) if key[1:] else value}


MISSING = object()


def _at(node: Any, key: Key) -> Any:
    """What is at a key of plain data, or MISSING."""
    for part in key:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
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
    """The names in a JSON list of `count` class names; None when there is no such file."""
    if not path.exists():
        return None
    with user_error(f"classes_file {path}: not readable JSON", OSError, ValueError, RecursionError):
        names = json.loads(path.read_bytes())
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise UserError(f"classes_file {path}: expected a JSON list of class names")
    if count and len(names) != count:
        raise UserError(f"classes_file {path}: has {len(names)} names; class_count says {count}")
    return names


def save(config: Section, path: Path) -> None:
    """Write a resolved config as YAML."""
    write(path, write_yaml(config.model_dump()).encode())
