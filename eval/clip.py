"""A CLIP model (Radford et al. 2021) by open_clip: pictures and texts as embeddings.

OpenAI's weights, and some others, were trained with QuickGELU, x sigmoid(1.702 x). They load under
a model name with plain GELU as well, without a word, and give other embeddings. So weights are
identified: by open_clip's tag, by the config beside them, or by the hash in the address that
open_clip's registry has. Tensors themselves do not tell.
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image as PILImage

from mmfusion.codecs.image import flat
from mmfusion.device import exact, one_thread
from mmfusion.errors import UserError, first_line
from mmfusion.export import default_device
from mmfusion.importers import checkpoint
from mmfusion.manifest import sha256

BATCH = 64
"""Pictures or texts at a time; always the same, so that arithmetic is."""
QUICK = "-quickgelu"
CONFIG = "open_clip_config.json"
HUB, FOLDER = "hf-hub:", "local-dir:"
ADDRESS = re.compile(r"/(?P<full>[0-9a-f]{64})/|-(?P<short>[0-9a-f]{8})\.pth?$")
PREPROCESS = "mean", "std", "interpolation", "resize_mode"
EXAMPLE = "for example ViT-L-14-quickgelu:openai, ViT-B-32:FILE or a folder that open_clip saved"

Said = dict[str, dict[str, Any]]
"""What is said of weights, in the words of open_clip's registry, by who says it."""


class Source(NamedTuple):
    """Weights that were found, and what open_clip needs to load them."""

    name: str  # for figures: the model and where its weights are from, without folders
    model: str  # open_clip's model name, or `local-dir:` or `hf-hub:` and where
    file: Path
    sha256: str
    quick_gelu: bool  # whether that model has QuickGELU
    known: bool  # whether the activation was identified; else it is what the name or config says
    preprocess: dict[str, Any]  # `PREPROCESS`, where it is not the model's own


def find(spec: str) -> Source:
    """The weights that `MODEL:TAG`, `MODEL:FILE`, a folder or a hub id names.

    They are refused if there are none, they hold code, or belong under another activation.
    """
    spec = os.path.expanduser(spec)
    if spec.startswith((HUB, FOLDER)) or os.path.isdir(spec):
        return _saved(spec)
    model, _, rest = spec.partition(":")
    model, models = model.replace("/", "-"), open_clip.list_models()
    config = open_clip.get_model_config(model) if model and rest else None
    if config is None:
        near = difflib.get_close_matches(model, models, 3, 0.4)
        raise UserError(
            f"CLIP model {spec}: expected MODEL:WEIGHTS or a folder, {EXAMPLE}; the nearest of "
            f"open_clip's models: {', '.join(near) or 'none'}"
        )
    quick, right = bool(config.get("quick_gelu")), _counterpart(model)
    remedy = f"{'the right model name is' if right in models else 'open_clip has no'} {right}"
    file, tag = Path(os.path.expanduser(rest)), rest.lower().replace("-", "_")
    tagged = {name: entry for name, known, entry in published() if known == tag}
    if entry := tagged.get(model, tagged.get(right)):
        says = {tag: entry}
        _refuse(model, quick, says, remedy)  # before a download
        try:
            file = Path(open_clip.download_pretrained(entry))
        except Exception as error:  # of networks and hubs
            message = first_line(error)
            raise UserError(f"CLIP model {model}:{tag}: cannot be downloaded ({message})") from None
        return _source(f"{model}:{tag}", model, file, quick, says, remedy)._replace(known=True)
    if not file.is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model))
        raise UserError(f"CLIP model {spec}: {file} is no file and none of the tags {tags}")
    beside = file.parent / CONFIG
    says = {str(beside): _config(beside)} if beside.is_file() else {}
    return _source(f"{model}:{file.name}", model, file, quick, says, remedy)


def _saved(spec: str) -> Source:
    """Weights with a config beside them: of a folder, or of a repository on the hub."""
    if spec.startswith(HUB):
        fetch, name = open_clip.pretrained.download_pretrained_from_hf, spec
        repository = spec.removeprefix(HUB)
        try:
            file, config = Path(fetch(repository)), Path(fetch(repository, filename=CONFIG))
        except Exception as error:  # the hub's many errors all mean: could not be had
            raise UserError(f"CLIP model {spec}: the hub gave: {first_line(error)}") from None
    else:
        folder = Path(spec.removeprefix(FOLDER))
        name, spec, config = folder.resolve().name, f"{FOLDER}{folder}", folder / CONFIG
        found = open_clip.factory._find_checkpoint_in_dir(folder)  # that open_clip will read
        if found is None or not config.is_file():
            raise UserError(
                f"CLIP model {folder}: has no {CONFIG} or no open_clip_model.safetensors; of bare "
                "weights give MODEL:FILE"
            )
        file = Path(found)
    entry = _config(config)
    remedy = f"mend `quick_gelu` in {config}"
    return _source(name, spec, file, entry["quick_gelu"], {str(config): entry}, remedy)


def _source(name: str, model: str, file: Path, quick: bool, says: Said, remedy: str) -> Source:
    """Weights that are there, held against what is known of them, and looked through.

    open_clip tries `torch.load` a second time, without `weights_only`, after a TypeError, which a
    pickle can bring about. What has been read here once gives none.
    """
    digest = sha256(file)
    found = identify(file, digest)
    _refuse(name, quick, {**found, **says}, remedy)
    if file.suffix != ".safetensors":  # which holds nothing but tensors
        checkpoint.read(file)
    preprocess: dict[str, Any] = {}
    for entry in {**found, **says}.values():
        preprocess |= _preprocess(entry)
    # A model whose published weights all take their pictures in one way takes its others so too.
    ways = [_preprocess(entry) for other, _, entry in published() if other == model]
    if not preprocess and ways and all(way == ways[0] for way in ways):
        preprocess = ways[0]
    return Source(name, model, file, digest, quick, bool(found), preprocess)


def _refuse(name: str, quick: bool, says: Said, remedy: str) -> None:
    """Stop where any of what is said of the weights says that they have the other activation."""
    names = {True: "QuickGELU", False: "plain GELU"}
    for what, entry in says.items():
        if bool(entry.get("quick_gelu")) != quick:
            raise UserError(
                f"CLIP model {name}: by {what} the weights have {names[not quick]}, under this "
                f"name {names[quick]} would give wrong embeddings without a word; {remedy}"
            )


def published() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """All weights in open_clip's registry: model, tag and what it says of them.

    Those of QuickGELU stand there under the plain name too, under which they are left out here.
    """
    models = open_clip.list_models()
    for model, tag in open_clip.list_pretrained():
        quick = bool((open_clip.get_model_config(model) or {}).get("quick_gelu"))
        entry = open_clip.get_pretrained_cfg(model, tag)
        if quick == bool(entry.get("quick_gelu")) or _counterpart(model) not in models:
            yield model, tag, {**entry, "quick_gelu": quick}


def identify(file: Path, digest: str) -> Said:
    """The published weights that a file is: `MODEL:TAG` -> what the registry says.

    By the SHA-256 in a download's address (OpenAI's have all of it, open_clip's own the first 8
    digits), or by the file's name where an address has none.
    """
    found = {}
    for model, tag, entry in published():
        address = entry.get("url", "")
        if hashed := ADDRESS.search(address):
            same = digest.startswith(hashed["full"] or hashed["short"])
        else:
            same = bool(address) and address.rpartition("/")[2] == file.name
        if same:
            found[f"{model}:{tag}"] = entry
    return found


def _counterpart(model: str) -> str:
    return model.removesuffix(QUICK) if model.endswith(QUICK) else model + QUICK


def _preprocess(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in PREPROCESS if key in entry}


def _config(path: Path) -> dict[str, Any]:
    """What a config says of the weights beside it, in the words of open_clip's registry."""
    try:
        held = json.loads(path.read_bytes())
        quick, preprocess = held["model_cfg"].get("quick_gelu"), held.get("preprocess_cfg", {})
        entry = {**preprocess, "quick_gelu": bool(quick)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: not a config that open_clip saved ({first_line(error)})"
        ) from None
    if "trust_remote_code" in json.dumps(held):  # would be handed on to the tokenizer's loader
        raise UserError(f"{path}: asks for `trust_remote_code`; code from a model is never run")
    return entry


# The model


class Clip:
    """Embeddings of pictures and texts in one space, in which likeness is a cosine.

    Attributes:
        version: digest of the model's config, activation and preprocessing.
        identity: all that embeddings depend on; a GPU's differ in their last bits.
        unsure: a warning where nothing tells which activation the weights were trained with.
    """

    def __init__(self, spec: str, device: str | torch.device | None = None) -> None:
        """Load a model as `find` says, in fp32, with its own preprocessing and tokenizer.

        Default of the device: this rank's GPU, or the CPU without one.
        """
        source, self._device = find(spec), torch.device(device or default_device())
        self.name, self.sha256 = source.name, source.sha256
        act = "QuickGELU" if source.quick_gelu else "plain GELU"
        doubt = f"{self.name}: weights of unknown origin, taken to be trained with {act}"
        self.unsure = "" if source.known else doubt
        try:
            self._model = open_clip.create_model(
                source.model,
                None if ":" in source.model else str(source.file),
                require_pretrained=True,
                pretrained_text=False,
                force_preprocess_cfg=source.preprocess,
                quick_gelu=source.quick_gelu,
            )
            self._tokenizer = open_clip.get_tokenizer(source.model)
        except Exception as error:  # of open_clip, timm, transformers and torch
            message = " ".join(" ".join(str(error).splitlines()[:3]).split())[:300]
            raise UserError(
                f"CLIP model {source.name}: cannot load {source.file} as {source.model} ({message})"
            ) from None
        self._model = self._model.float().eval().requires_grad_(False).to(self._device)
        preprocess = self._model.visual.preprocess_cfg
        self._preprocess = image_transform_v2(PreprocessCfg(**preprocess), is_train=False)
        config = [open_clip.get_model_config(source.model), source.quick_gelu, preprocess]
        message = json.dumps(config, sort_keys=True, default=str)
        self.version = hashlib.sha256(message.encode()).hexdigest()
        self.identity = self.name, self.sha256, self.version, self._device.type

    def embed_images(
        self, pictures: Iterable[PILImage.Image | np.ndarray], normalised: bool = True
    ) -> np.ndarray:
        """Embeddings (n, d), float32, of PIL pictures or of uint8 (H, W, 3) arrays.

        Transparent pictures are laid on white.
        """
        return self._run(self._model.encode_image, pictures, self._pixels, normalised)

    def embed_texts(self, texts: Sequence[str], normalised: bool = True) -> np.ndarray:
        """Embeddings (n, d), float32; what is longer than the model's context is cut."""
        return self._run(self._model.encode_text, texts, self._tokenizer, normalised)

    def cut(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than the model's context."""
        length = self._tokenizer([""]).shape[1] + 1
        padding, *last = self._tokenizer(["", *texts], context_length=length)[:, -1]
        return sum(int(token != padding) for token in last)

    def _pixels(self, pictures: list[PILImage.Image | np.ndarray]) -> torch.Tensor:
        opened = (PILImage.fromarray(p) if isinstance(p, np.ndarray) else p for p in pictures)
        return torch.stack([self._preprocess(flat(picture)) for picture in opened])

    @one_thread()  # so that bits do not depend on how many there are
    def _run(
        self, encode: Callable, items: Iterable[Any], prepare: Callable, normalised: bool
    ) -> np.ndarray:
        rest, found = iter(items), []
        with torch.inference_mode(), exact(self._device.type):
            while batch := list(islice(rest, BATCH)):
                made = encode(prepare(batch).to(self._device), normalize=normalised)
                found.append(made.float().cpu().numpy())
        embeddings = np.concatenate(found)
        if not np.isfinite(embeddings).all():
            raise UserError(f"CLIP model {self.name}: gives numbers that are not finite")
        return embeddings
