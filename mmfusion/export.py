"""Exported models: a folder of config.json, model.safetensors, a tokenizer and a manifest.

Nothing in it is ever run or unpickled, so a folder from somebody else is safe to load.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmfusion import launcher
from mmfusion.codecs.image import fingerprint
from mmfusion.codecs.text import Tokenizer
from mmfusion.codecs.vocabulary import FILES, kind
from mmfusion.config import ModelConfig, build
from mmfusion.decoder import Decoder
from mmfusion.errors import UserError
from mmfusion.manifest import MANIFEST, check, digests, replacing, settled, sha256, verify

CONFIG, WEIGHTS, VAE = "config.json", "model.safetensors", "vae"
EXPORTED = "exported model"
SHIPPED = Path(__file__).resolve().parent / "models"


def export(config: ModelConfig, weights: dict[str, Tensor], folder: Path) -> None:
    """Write an exported model into a folder that is absent, empty, or an exported model.

    Its files replace those of the model that is there; what else lies in the folder stays.

    Raises:
        UserError: the folder is something else, or there is no room.
    """
    with replacing(folder, EXPORTED, CONFIG) as part:
        described = config.model_dump()
        if config.text:
            name = FILES[kind(config.text.tokenizer)]
            shutil.copyfile(config.text.tokenizer, part / name)
            described["text"]["tokenizer"] = name
        if config.image.vae and Path(config.image.vae).is_dir():
            shutil.copytree(config.image.vae, part / VAE)
            described["image"]["vae"] = VAE
        (part / CONFIG).write_text(json.dumps(described, indent=1), encoding="utf-8")
        save_file({name: w.contiguous() for name, w in weights.items()}, part / WEIGHTS)
        (part / WEIGHTS).chmod(0o644)  # written for its owner alone otherwise


def check_folder(folder: Path) -> None:
    """Make sure that a model may be exported there, before hours are spent on making it.

    Raises:
        UserError: as `export`.
    """
    check(folder, EXPORTED, CONFIG)


def locate(name: str, revision: str | None = None) -> Path:
    """The folder of a model: a path, the name of a shipped model, or a hub id.

    Raises:
        UserError: it is none of these.
    """
    if (Path(name) / CONFIG).is_file():
        return Path(name)
    if Path(name).is_dir():
        inner = Path(name) / "model"
        if (inner / CONFIG).is_file():
            return inner  # a run's folder
        raise UserError(
            f"model {name}: the folder has no {CONFIG}; give the folder of a run that has trained, "
            "or an exported one"
        )
    if (SHIPPED / name / CONFIG).is_file():
        return SHIPPED / name
    shipped = ", ".join(sorted(p.name for p in SHIPPED.glob("*") if (p / CONFIG).is_file()))
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise UserError(f"model {name}: no such folder, and no shipped model (shipped: {shipped})")
    from huggingface_hub import snapshot_download

    try:
        files = [CONFIG, WEIGHTS, *FILES.values(), MANIFEST, f"{VAE}/*"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except Exception as error:  # the hub's many errors all mean: could not be had
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"model {name}: no such folder, and the hub gave: {said}") from None


def weights_digest(folder: Path) -> str:
    """The SHA-256 of an exported model's weights, as its manifest has it.

    Raises:
        UserError: it has no manifest.
    """
    return digests(folder, "model").get(WEIGHTS) or sha256(folder / WEIGHTS)


def model_digest(folder: Path) -> str:
    """The SHA-256 of all that an exported model's answers depend on.

    That is its config, weights, tokenizer and autoencoder, also one that lies on the hub: with the
    same weights, another of these makes another model.

    Raises:
        UserError: it has no manifest or config, or its autoencoder cannot be had.
    """
    listed, config = digests(folder, "model"), _config(folder)
    names = (CONFIG, WEIGHTS, *FILES.values())
    paths = [*(folder / name for name in names), *(folder / VAE).rglob("*")]
    inside = sorted(path.relative_to(folder).as_posix() for path in paths if path.is_file())
    parts: dict[str, Any] = {name: listed.get(name) or sha256(folder / name) for name in inside}
    if config.image.vae and config.image.vae != VAE:
        parts["image"] = fingerprint(config.image)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@settled
def load(folder: Path) -> tuple[ModelConfig, Decoder, Tokenizer | None, str]:
    """As `read`, with `model_digest`: all of one model, also while another takes its place."""
    return *read(folder), model_digest(folder)


def read(folder: Path) -> tuple[ModelConfig, Decoder, Tokenizer | None]:
    """Load an exported model onto the CPU.

    Raises:
        UserError: the folder is damaged, or config and weights do not fit each other.
    """
    verify(folder, "model")
    config = _config(folder)
    updates: dict[str, Any] = {}
    if config.text:
        # A name, not a path: nothing outside the folder is read.
        path = folder / Path(config.text.tokenizer).name
        updates["text"] = config.text.model_copy(update={"tokenizer": str(path)})
    if config.image.vae == VAE:
        updates["image"] = config.image.model_copy(update={"vae": str(folder / VAE)})
    config = config.model_copy(update=updates)
    tokenizer = Tokenizer(config.text.tokenizer) if config.text else None
    decoder = Decoder(config, len(tokenizer) if tokenizer else 0)
    try:
        weights = load_file(folder / WEIGHTS)
        decoder.load_state_dict(weights)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS}: not readable ({error})") from None
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{folder / WEIGHTS}: does not fit {CONFIG}: {first}") from None
    return config, decoder.eval().requires_grad_(False), tokenizer


def _config(folder: Path) -> ModelConfig:
    """The config as it was written: what lies in the folder is named, not found."""
    try:
        described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder / CONFIG}: not readable ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{folder / CONFIG}: not valid JSON ({error})") from None
    return build(ModelConfig, described, str(folder / CONFIG))


def default_device() -> torch.device:
    """CUDA where there is one; under a launcher, this process's."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", launcher.place().gpu(torch.cuda.device_count()))
