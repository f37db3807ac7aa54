"""Exported models: a folder of config.json, model.safetensors, a tokenizer and a manifest.

Weights above a size lie in several files with an index, named as transformers names them. Nothing
in it is ever run or unpickled, so a folder from somebody else is safe to load.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from functools import reduce
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmfusion import launcher
from mmfusion.card import CARD, PICTURE
from mmfusion.codecs.image import VAE_FILES, fingerprint
from mmfusion.codecs.text import Tokenizer
from mmfusion.codecs.vocabulary import FILES, kind
from mmfusion.config import ModelConfig, build
from mmfusion.decoder import Decoder
from mmfusion.errors import UserError, first_line, shown, user_error
from mmfusion.hub import USUAL, Source, download, may_be_hub_id
from mmfusion.manifest import (  # fmt: skip
    MANIFEST,
    check,
    digests,
    edited,
    listed,
    replacing,
    settled,
    sha256,
    verify,
)
from mmfusion.texts import read_text

CONFIG, WEIGHTS, VAE, LINEAR = "config.json", "model.safetensors", "vae", "codec.safetensors"
INDEX, PART = "model.safetensors.index.json", "model-*-of-*.safetensors"  # of several files
PAGES = CARD, PICTURE
FREE = CONFIG, *PAGES
"""What a user may edit; the manifest vouches for all other files."""
OURS = {"decoder", "diffusion", "image"}  # sections of a config
MOST = "5GB"
EXPORTED = "exported model"
DEVICES = "cpu", "cuda", "mps"
TAKEN = "cpu, cuda, cuda:1 (the second GPU) or mps"
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
SHIPPED = Path(__file__).resolve().parent / "models"


def export(
    config: ModelConfig,
    weights: dict[str, Tensor],
    folder: Path,
    most: int | str = MOST,
    pages: Mapping[str, bytes] = {},
) -> None:
    """Write an exported model into a folder that is absent, empty, or an exported model.

    Its files replace those of the model that is there; what else lies in the folder stays, and so
    do those of the `pages` (files by name, of `PAGES`) that a user has written or edited. Weights
    of more than `most` bytes are cut into several files.
    """
    with replacing(folder, EXPORTED, CONFIG) as part:
        described = config.model_dump()
        if config.text:
            name = FILES[kind(config.text.tokenizer)]
            shutil.copyfile(config.text.tokenizer, part / name)
            described["text"]["tokenizer"] = name
        if config.image.vae and Path(config.image.vae).is_dir():
            (part / VAE).mkdir()
            for name in VAE_FILES:  # its training, or weights in other formats, may lie there too
                shutil.copyfile(Path(config.image.vae) / name, part / VAE / name)
            described["image"]["vae"] = VAE
        if config.image.linear:
            shutil.copyfile(config.image.linear, part / LINEAR)
            described["image"]["linear"] = LINEAR
        (part / CONFIG).write_text(json.dumps(described, indent=1), encoding="utf-8")
        _save(weights, part, most)
        for name, data in pages.items():
            if not edited(folder, name):
                (part / name).write_bytes(data)


def _save(weights: dict[str, Tensor], folder: Path, most: int | str) -> None:
    """Write weights as one file, or as several with an index."""
    from huggingface_hub import split_torch_state_dict_into_shards

    with user_error(f"max_shard_size {shown(most)}: give a size as 5GB", ValueError, TypeError):
        cut = split_torch_state_dict_into_shards(weights, max_shard_size=most)
    for file, names in cut.filename_to_tensors.items():
        save_file({n: weights[n].contiguous() for n in names}, folder / file, {"format": "pt"})
        (folder / file).chmod(0o644)  # written for its owner alone otherwise
    if cut.is_sharded:
        index = {"metadata": cut.metadata, "weight_map": cut.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def check_folder(folder: Path) -> None:
    """Make sure that a model may be exported there, before hours are spent on making it."""
    check(folder, EXPORTED, CONFIG)


def locate(name: str | Path, source: Source = USUAL, subfolder: str = "") -> Path:
    """The folder of a model: one that is here, the name of a shipped model, or a hub id.

    In this order: a folder of the model itself, a run's folder, the shipped name, the hub id. So a
    folder without a model hides no shipped one. A `Path` is always a folder. With a `subfolder`
    the model is in there, of a folder or of a repository.
    """
    if not isinstance(name, (str, Path)) or not str(name):
        raise UserError(f"model {name!r}: give a folder, the name of a shipped model or a hub id")
    inner = PurePosixPath(subfolder) if isinstance(subfolder, (str, Path)) else None
    if inner is None or inner.is_absolute() or ".." in inner.parts:
        raise UserError(
            f"subfolder {shown(subfolder)}: give the name of a folder inside the model's"
        )
    path = Path(os.path.expanduser(name), subfolder)
    called = f"{name}/{subfolder}" if subfolder else name
    with user_error(f"model {called}: cannot be read", OSError):
        for folder in (path, path / "model"):  # of a run
            if CONFIG in listed(folder) or _has_lost_its_manifest(folder):
                return folder
        is_folder = path.is_dir()
    there = sorted(found.parent.name for found in SHIPPED.glob(f"*/{CONFIG}"))
    if name in there and not subfolder:
        return SHIPPED / name
    if is_folder:
        raise UserError(
            f"model {called}: no model in the folder ({CONFIG}, {WEIGHTS}, {MANIFEST}); give that "
            "of a run that has trained, or an exported one"
        )
    if isinstance(name, Path) or not may_be_hub_id(name):
        raise UserError(
            f"model {called}: no such folder, no shipped model ({', '.join(there)}), and no id on "
            "the hub (ORGANISATION/NAME)"
        )
    files = [*FREE, WEIGHTS, INDEX, PART, LINEAR, *FILES.values(), MANIFEST, f"{VAE}/*"]
    inside = [str(PurePosixPath(subfolder, file)) for file in files]
    folder = download(name, "model", inside, source) / subfolder
    if CONFIG not in listed(folder):
        where = f"{name}, {subfolder}" if subfolder else name
        raise UserError(f"model {where}: the repository has no model of mmfusion there")
    return folder


def _has_lost_its_manifest(folder: Path) -> bool:
    """Whether a folder holds a model that is damaged, and none of another library."""
    there = [name for name in (CONFIG, WEIGHTS, INDEX) if (folder / name).is_file()]
    with suppress(ValueError, RecursionError, AttributeError):
        return len(there) > 1 and json.loads((folder / CONFIG).read_bytes()).keys() >= OURS
    return False


def model_digest(folder: Path) -> str:
    """The SHA-256 of all that an exported model's answers depend on.

    That is its config, weights, tokenizer and autoencoder, also one that lies on the hub: with the
    same weights, another of these makes another model.
    """
    known, config = digests(folder, "model"), _config(folder)
    known.pop(CONFIG, None)  # it may have been edited
    names = (CONFIG, *_weight_files(folder), LINEAR, *FILES.values())
    paths = [*(folder / name for name in names), *(folder / VAE).rglob("*")]
    inside = sorted(path.relative_to(folder).as_posix() for path in paths if path.is_file())
    parts: dict[str, Any] = {name: known.get(name) or sha256(folder / name) for name in inside}
    if config.image.vae and config.image.vae != VAE:
        parts["image"] = fingerprint(config.image)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@settled
def load(folder: Path) -> tuple[ModelConfig, Decoder, Tokenizer | None, str]:
    """As `read`, with `model_digest`: all of one model, also while another takes its place."""
    return *read(folder), model_digest(folder)


def read(folder: Path) -> tuple[ModelConfig, Decoder, Tokenizer | None]:
    """Load an exported model onto the CPU, in the precision that its weights were saved in.

    The manifest vouches for all files but those of `FREE`: of config.json, `generation` may be
    edited.
    """
    verify(folder, "model", FREE)
    config = _config(folder)
    updates: dict[str, Any] = {}
    if config.text:
        # A name, not a path: nothing outside the folder is read.
        path = folder / Path(config.text.tokenizer).name
        updates["text"] = config.text.model_copy(update={"tokenizer": str(path)})
    if config.image.vae == VAE:
        updates["image"] = config.image.model_copy(update={"vae": str(folder / VAE)})
    if config.image.linear:
        updates["image"] = config.image.model_copy(update={"linear": str(folder / LINEAR)})
    config = config.model_copy(update=updates)
    tokenizer = Tokenizer(config.text.tokenizer) if config.text else None
    decoder = Decoder(config, len(tokenizer) if tokenizer else 0)
    weights: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        with user_error(f"{folder / file}: not readable", SafetensorError, OSError):
            weights |= load_file(folder / file)
    try:
        decoder.to(_precision(weights, folder)).load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{folder / WEIGHTS}: does not fit {CONFIG}: {first}") from None
    return config, decoder.eval().requires_grad_(False), tokenizer


def _weight_files(folder: Path) -> list[str]:
    """The names of the weights' files; nothing outside of the folder is one."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [WEIGHTS]
    wrong = OSError, ValueError, KeyError, TypeError, AttributeError
    with user_error(f"{folder / INDEX}: not an index of weights; get it anew", *wrong):
        found = {*json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()}
        if not all(re.fullmatch(r"model-\d+-of-\d+\.safetensors", name) for name in found):
            raise ValueError(f"{shown(found)} are no files of weights")
    return sorted(found)


def _precision(weights: dict[str, Tensor], folder: Path) -> torch.dtype:
    """The type of all weights, or the one that holds them all."""
    kinds = {weight.dtype for weight in weights.values()}
    if odd := kinds - {*PRECISIONS}:
        raise UserError(f"{folder / WEIGHTS}: holds {odd.pop()}; save float32, bfloat16 or float16")
    return reduce(torch.promote_types, kinds, kinds.pop()) if kinds else torch.float32


def _config(folder: Path) -> ModelConfig:
    """The config as it was written: what lies in the folder is named, not found."""
    with user_error(f"{folder / CONFIG}: not readable JSON", OSError, ValueError):
        described = json.loads(read_text(folder / CONFIG))
    return build(ModelConfig, described, str(folder / CONFIG))


def default_device() -> torch.device:
    """CUDA where there is one; under a launcher, this process's."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", launcher.place().gpu(torch.cuda.device_count()))


def check_device(device: Any) -> torch.device:
    """The device that is asked for, or the default one."""
    if device is None:
        return default_device()
    found: torch.device | None = None
    why = "there is none of that name"
    with suppress(Exception):  # each backend has its own
        found = torch.device(device)
    if found is not None and found.type in DEVICES:
        try:
            torch.zeros(1, device=found)
            return found
        except Exception as error:
            why = f"cannot be used here ({first_line(error).partition('. ')[0]})"
    raise UserError(f"device {shown(device)}: {why}; give {TAKEN}")


def check_dtype(dtype: Any) -> torch.dtype | None:
    """The precision that is asked for, as torch's type or by its name; None stays None."""
    names = {str(each).removeprefix("torch."): each for each in PRECISIONS}
    found = names.get(str(dtype).removeprefix("torch."))
    if dtype is not None and (found is None or not isinstance(dtype, (str, torch.dtype))):
        raise UserError(f"dtype {dtype!r}: choose from {', '.join(names)}")
    return found
