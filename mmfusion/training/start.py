"""Where a new run's weights come from, if not from chance: `train.start_from`.

An exported model holds the EMA. A run's checkpoint also holds the raw weights, which are taken if
it is named itself (`RUN/checkpoints/step-00001000`); the model exported beside it says what it is.
"""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import torch

from mmfusion import export, manifest
from mmfusion.codecs.image import meaning
from mmfusion.config import Config, ModelConfig
from mmfusion.decoder import Decoder
from mmfusion.errors import UserError
from mmfusion.manifest import sha256
from mmfusion.training.checkpoint import NAME, WEIGHT, Checkpoint

log = logging.getLogger("mmfusion")


def locate(name: str) -> tuple[Path, Path | None]:
    """The folder of the model that is meant, and of the checkpoint if one is."""
    path = Path(os.path.expanduser(name))
    raw = path if NAME.fullmatch(path.name) and path.is_dir() else None
    try:
        return export.locate(raw.parents[1] if raw else name), raw
    except UserError as error:
        raise UserError(f"train.start_from: {error}") from None


@torch.no_grad()
def begin_from(name: str, config: Config, model: Decoder) -> None:
    """Take another model's weights, by name: those of `model` that are not among them stay.

    On the meta device it only checks that they can be taken.

    Raises:
        UserError: its codecs are others than the config's, or a weight has another shape.
    """
    what = f"train.start_from {name}"
    folder, raw = locate(name)
    had, other, _, _ = export.load(folder)
    weights = other.state_dict()
    if raw:
        manifest.verify(raw, "checkpoint")
        weights = Checkpoint(raw).weights(WEIGHT, other)
    _check_codecs(what, had, config)
    own = model.state_dict()  # views of the parameters
    taken = [key for key in own if key in weights]
    wrong = [key for key in taken if own[key].shape != weights[key].shape]
    if wrong:
        more = f" ({len(wrong) - 1} more differ)" if wrong[1:] else ""
        raise UserError(
            f"{what}: {wrong[0]} has shape {tuple(weights[wrong[0]].shape)}, the config's decoder "
            f"needs {tuple(own[wrong[0]].shape)}{more}; give the config the model's own sections "
            f"decoder, image and text and its number of classes ({export.CONFIG}), or leave "
            "train.start_from out"
        )
    for key in taken:
        own[key].copy_(weights[key])
    new, left = _beyond(own, weights), _beyond(weights, own)
    if new or left:
        log.warning("%s: new and initialised: %s; left over: %s", what, new or "-", left or "-")
    if had.classes and config.classes and had.classes != config.classes:
        log.warning("%s: its classes have other names or another order", what)


def _beyond(names: Iterable[str], others: Iterable[str]) -> str:
    """The names that are not among others; where a whole module is not, the module's."""
    known = {".".join(parts[:n]) for o in others for parts in [o.split(".")] for n in range(9)}
    found: dict[str, None] = {}
    for parts in (name.split(".") for name in names):
        prefixes = (".".join(parts[: n + 1]) for n in range(len(parts)))
        if first := next((prefix for prefix in prefixes if prefix not in known), None):
            found[first] = None
    return ", ".join(found)


def _check_codecs(what: str, had: ModelConfig, config: Config) -> None:
    if (
        had.text
        and config.text
        and sha256(Path(had.text.tokenizer)) != sha256(Path(config.text.tokenizer))
    ):
        raise UserError(
            f"text.tokenizer: {what} was trained with a file of other contents; use the one in its "
            "folder, or another model"
        )
    before, now = meaning(had.image), meaning(config.image)
    for key in now:
        if before.get(key) != now[key]:
            raise UserError(
                f"{what}: its latents were made with {key} {before.get(key)!r}, the config's image "
                f"section has {now[key]!r}; use its image section, or another model"
            )
