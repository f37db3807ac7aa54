"""Configs as YAML files: found, read, overridden on the command line, and written."""

from pathlib import Path
from typing import Any

from mmfusion.classes import read_names
from mmfusion.config.evaluation import EvaluationConfig
from mmfusion.config.run import Config
from mmfusion.config.section import S, Section, build
from mmfusion.errors import UserError
from mmfusion.overrides import apply_override, read_yaml, write_yaml


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

    A number in an override's path picks a list entry: `data.sources.0.shards=...`. A file with
    `base: NAME` says only how it differs from that config: sections are merged, lists and values
    replaced.

    Raises:
        UserError: a missing file, an unknown key or a wrong value, with the key's path.
    """
    return _named(_load(Config, name, overrides))


def load_evaluation(name: str, overrides: list[str] | tuple[str, ...] = ()) -> EvaluationConfig:
    """Read what `mmfusion eval` is to measure, as `load` reads a run's config."""
    return _load(EvaluationConfig, name, overrides)


def _load(kind: type[S], name: str, overrides: list[str] | tuple[str, ...]) -> S:
    path = find(name)
    raw = _read(path)
    for override in overrides:
        apply_override(raw, override)
    return build(kind, raw, str(path))


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's plain data laid over those of its base, which is looked for beside it first."""
    if path in above:
        chain = " -> ".join(str(each) for each in (*above, path))
        raise UserError(f"{path}: is its own base ({chain})")
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable text file ({error})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a config is a mapping of keys to values")
    if "base" not in raw:
        return raw
    name = raw.pop("base")
    if not isinstance(name, str):
        raise UserError(f"{path}: base is {name!r}; expected the name of a config")
    beside = [path.parent / name, path.parent / f"{name}.yaml"]
    base = next((p for p in beside if p.is_file()), None) or find(name)
    return _merged(_read(base.resolve(), (*above, path.resolve())), raw)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if both else value
    return merged


def _named(config: Config) -> Config:
    """The config with the names of `classes_file`; one not made yet is left there, with numbers."""
    if config.classes_file is None:
        return config
    names = read_names(Path(config.classes_file), config.class_count)
    if names is None:  # training asks for the file; a dry run needs only how many there are
        numbers = [str(number) for number in range(config.class_count or 0)]
        return config.model_copy(update={"classes": numbers})
    return config.model_copy(update={"classes": names, "classes_file": None, "class_count": None})


def save(config: Section, path: Path) -> None:
    """Write a resolved config as YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(write_yaml(config.model_dump()), encoding="utf-8")
