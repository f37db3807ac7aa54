"""Where a CLIP model's weights are, and which activation they were trained with.

OpenAI's weights, and some others, were trained with QuickGELU, x sigmoid(1.702 x). They load under
a model name with plain GELU as well, without a word, and give other embeddings. So weights are
identified: by open_clip's tag, by the config beside them, by the hash in the address that
open_clip's registry has, or by the code of a TorchScript archive. Tensors themselves do not tell.
"""

import difflib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import open_clip

from mmfusion.errors import UserError, first_line
from mmfusion.importers import checkpoint
from mmfusion.manifest import sha256

from .archive import is_archive, uses_quick_gelu

QUICK = "-quickgelu"
CONFIG = "open_clip_config.json"
HUB, FOLDER = "hf-hub:", "local-dir:"
ADDRESS = re.compile(r"/(?P<full>[0-9a-f]{64})/|-(?P<short>[0-9a-f]{8})\.pth?$")
PREPROCESS = "mean", "std", "interpolation", "resize_mode"
EXAMPLE = "for example ViT-L-14-quickgelu:openai, ViT-B-32:FILE or a folder that open_clip saved"


class Source(NamedTuple):
    """Weights that were found, and what open_clip needs to load them.

    Attributes:
        name: for figures: the model and where its weights are from, without folders.
        model: open_clip's model name, or `local-dir:` or `hf-hub:` and where.
        file: the weights.
        sha256: of the file.
        quick_gelu: whether that model has QuickGELU.
        known: whether the activation was identified; else it is what the name or config says.
        preprocess: mean, std, interpolation and resize mode, where they are not the model's own.
    """

    name: str
    model: str
    file: Path
    sha256: str
    quick_gelu: bool
    known: bool
    preprocess: dict[str, Any]


def find(spec: str) -> Source:
    """The weights that `MODEL:TAG`, `MODEL:FILE`, `MODEL:FOLDER`, a folder or a hub id names.

    Raises:
        UserError: there are none, they hold code, or they belong under another activation.
    """
    if spec.startswith(HUB):
        return _from_hub(spec)
    if os.path.isdir(spec) or spec.startswith(FOLDER):
        return _from_folder(Path(spec.removeprefix(FOLDER)))
    model, colon, rest = spec.partition(":")
    if not (model and colon and rest):
        raise UserError(f"CLIP model {spec}: expected MODEL:WEIGHTS or a folder, {EXAMPLE}")
    model = model.replace("/", "-")
    config = open_clip.get_model_config(model)
    if config is None:
        near = _near(model, open_clip.list_models())
        raise UserError(f"CLIP model {spec}: open_clip knows no model {model}{near}; {EXAMPLE}")
    quick = bool(config.get("quick_gelu"))
    if any(tag == _clean(rest) for _, tag, _ in published()):
        return _from_tag(model, _clean(rest), quick)
    path = Path(rest)
    if path.is_dir():
        found = _from_folder(path)
        _refuse(model, quick, found.quick_gelu, f"{path / CONFIG} says")
        return found
    if not path.is_file():
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise UserError(f"CLIP model {spec}: {rest} is no file and no tag{_near(rest, tags)}")
    return _from_file(model, path, quick)


def _from_tag(model: str, tag: str, quick: bool) -> Source:
    said = {name: cfg for name, t, cfg in published() if t == tag}
    own = said.get(model)
    if own is None:
        other = said.get(_counterpart(model))
        if other is None:
            raise UserError(
                f"CLIP model {model}:{tag}: no such weights of this model"
                f"{_near(tag, open_clip.list_pretrained_tags_by_model(model))}"
            )
        _refuse(model, quick, bool(other.get("quick_gelu")), f"{tag} is")
        own = other
    elif _counterpart(model) in open_clip.list_models():  # else it is the only name they have
        _refuse(model, quick, bool(own.get("quick_gelu")), f"the weights {tag} are")
    try:
        file = Path(open_clip.download_pretrained(own))
    except Exception as error:  # of networks and hubs
        told = first_line(error)
        raise UserError(f"CLIP model {model}:{tag}: cannot be downloaded ({told})") from None
    return Source(f"{model}:{tag}", model, file, _digest(file), quick, True, _preprocess(own))


def _from_file(model: str, path: Path, quick: bool) -> Source:
    digest = _digest(path)
    name, known = f"{model}:{path.name}", False
    preprocess = {}
    if (path.parent / CONFIG).is_file():
        beside = _config(path.parent / CONFIG)
        _refuse(model, quick, bool(beside["model_cfg"].get("quick_gelu")), f"{CONFIG} beside says")
        preprocess = _preprocess(beside.get("preprocess_cfg", {}))
    for tag, cfg in identify(path, digest):
        _refuse(model, quick, bool(cfg.get("quick_gelu")), f"{path} is the published {tag}:")
        known, preprocess = True, _preprocess(cfg)
    if is_archive(path):
        trained = uses_quick_gelu(path)
        _refuse(model, quick, trained, f"the TorchScript archive {path} is")
        known = True
    # A model whose published weights all take their pictures in one way takes its others so too.
    ways = [_preprocess(cfg) for name_, _, cfg in published() if name_ == model]
    if not preprocess and ways and all(way == ways[0] for way in ways):
        preprocess = ways[0]
    return Source(name, model, path, digest, quick, known, preprocess)


def _from_folder(folder: Path) -> Source:
    if not (folder / CONFIG).is_file():
        raise UserError(f"CLIP model {folder}: has no {CONFIG}; give MODEL:FILE for bare weights")
    quick = bool(_config(folder / CONFIG)["model_cfg"].get("quick_gelu"))
    file = open_clip.factory._find_checkpoint_in_dir(folder)  # the one that open_clip will read
    if file is None:
        raise UserError(
            f"CLIP model {folder}: has no weights; put open_clip_model.safetensors there"
        )
    digest = _digest(Path(file))
    known = _agree(Path(file), digest, quick, str(folder))
    return Source(folder.resolve().name, f"{FOLDER}{folder}", Path(file), digest, quick, known, {})


def _from_hub(spec: str) -> Source:
    repository = spec.removeprefix(HUB)
    try:
        file = Path(open_clip.pretrained.download_pretrained_from_hf(repository))
        said = open_clip.pretrained.download_pretrained_from_hf(repository, filename=CONFIG)
    except Exception as error:  # the hub's many errors all mean: could not be had
        raise UserError(f"CLIP model {spec}: the hub gave: {first_line(error)}") from None
    quick = bool(_config(Path(said))["model_cfg"].get("quick_gelu"))
    digest = _digest(file)
    known = _agree(file, digest, quick, spec)
    return Source(spec, spec, file, digest, quick, known, {})


def _agree(file: Path, digest: str, quick: bool, where: str) -> bool:
    """Whether the weights beside a config are published ones, under the activation it says."""
    known = False
    for tag, cfg in identify(file, digest):
        known = True
        if bool(cfg.get("quick_gelu")) != quick:
            raise UserError(
                f"CLIP model {where}: its config says {_called(quick)}, but {file.name} is the "
                f"published {tag}; mend `quick_gelu` in {CONFIG}, or load {tag}"
            )
    return known


def published() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """All weights that open_clip's registry has: model, tag and what it says of them."""
    for model, tag in open_clip.list_pretrained():
        yield model, tag, open_clip.get_pretrained_cfg(model, tag)


def identify(file: Path, digest: str) -> list[tuple[str, dict[str, Any]]]:
    """The published weights that a file is, as (`MODEL:TAG`, what the registry says).

    By the SHA-256 in a download's address (OpenAI's have all of it, open_clip's own the first 8
    digits), or by the file's name where an address has none.
    """
    found = []
    for model, tag, cfg in published():
        address = cfg.get("url", "")
        hashed = ADDRESS.search(address)
        if hashed:
            same = digest.startswith(hashed["full"] or hashed["short"])
        else:
            same = bool(address) and address.rpartition("/")[2] == file.name
        quick = bool((open_clip.get_model_config(model) or {}).get("quick_gelu"))
        if same and quick == bool(cfg.get("quick_gelu")):
            found.append((f"{model}:{tag}", cfg))
    return found


def check(source: Source) -> None:
    """Make sure that open_clip will find nothing but tensors and plain data in the weights.

    open_clip tries `torch.load` a second time, without `weights_only`, after a TypeError, which a
    pickle can bring about. What has been read here once gives none.

    Raises:
        UserError: the file holds code, is damaged, or has no format that is read here.
    """
    if source.file.suffix in (".npz", ".npy"):
        raise UserError(f"{source.file}: NumPy weights are not read; save them as safetensors")
    if source.file.suffix != ".safetensors":  # which holds nothing else
        checkpoint.read(source.file)


def _refuse(model: str, asked: bool, trained: bool, what: str) -> None:
    if asked == trained:
        return
    right = _counterpart(model)
    remedy = (
        f"the right model name is {right}"
        if right in open_clip.list_models()
        else f"and open_clip has no such model of the name {right}"
    )
    raise UserError(
        f"CLIP model {model}: {what} {_called(trained)}, this name means {_called(asked)}, which "
        f"gives wrong embeddings without a word; {remedy}"
    )


def _called(quick: bool) -> str:
    return "QuickGELU" if quick else "plain GELU"


def _counterpart(model: str) -> str:
    return model.removesuffix(QUICK) if model.endswith(QUICK) else model + QUICK


def _clean(tag: str) -> str:
    return tag.lower().replace("-", "_")


def _preprocess(cfg: dict[str, Any]) -> dict[str, Any]:
    return {key: cfg[key] for key in PREPROCESS if key in cfg}


def _near(word: str, words: list[str]) -> str:
    near = difflib.get_close_matches(word, words, 3, 0.4)
    return f" (there is {', '.join(near)})" if near else ""


def _digest(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"CLIP weights {path}: no such file")
    return sha256(path)


def _config(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_bytes())
        if not isinstance(held["model_cfg"], dict):
            raise TypeError("`model_cfg` is no object")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: not a config that open_clip saved ({first_line(error)})"
        ) from None
    if "trust_remote_code" in json.dumps(held):  # would be handed on to the tokenizer's loader
        raise UserError(f"{path}: asks for `trust_remote_code`; code from a model is never run")
    return held
