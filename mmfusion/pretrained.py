"""A model's comings and goings: loaded, moved, saved, put on the hub."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch

from mmfusion import card, export, hub
from mmfusion.codecs.image import AutoencoderCodec, ImageCodec, make_codec
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import ModelConfig
from mmfusion.decoder import Decoder
from mmfusion.errors import UserError, shown, user_error
from mmfusion.generation.arguments import told_apart
from mmfusion.generation.budget import Budget, Machine

Self = TypeVar("Self", bound="Pretrained")


class Pretrained:
    """A decoder with its codecs; `Pipeline` is one that answers.

    Attributes:
        source: the folder that it was loaded from, if any: where its card or its run is.
        saved_dtype: what `save_pretrained` writes, where that is not what it computes in.
    """

    source: Path | None = None
    saved_dtype: torch.dtype | None = None

    def __init__(
        self,
        config: ModelConfig,
        decoder: Decoder,
        tokenizer: Tokenizer | None,
        codec: ImageCodec | None = None,
        digest: str | None = None,
        budget_ms: float | None = None,
        frontier: str | Path | None = None,
    ) -> None:
        self.config, self.decoder, self.tokenizer = config, decoder.eval(), tokenizer
        self.budget = Budget(digest, Machine.of(decoder.latent_in.weight), budget_ms, frontier)
        self.codec = codec or make_codec(config.image, self.device)

    @classmethod
    @told_apart
    def from_pretrained(
        cls: type[Self],
        name: str | Path = "digits",
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        budget_ms: float | None = None,
        frontier: str | Path | None = None,
        *,
        subfolder: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        torch_dtype: torch.dtype | str | None = None,
    ) -> Self:
        """Load a model: a folder that holds one, a run's folder, a shipped name, or a hub id.

        In this order: a folder without a model hides neither a shipped name nor a hub id. What is
        given as a `Path`, or begins with `./`, `../` or `/`, is always a folder.

        Args:
            device: default: this process's GPU, or the CPU without one.
            dtype: what it computes in: float32, bfloat16 or float16, as torch's or by name.
                Default: on a CPU float32, since many only emulate the others; on a GPU bfloat16
                or, of weights saved so, float16. `save_pretrained` writes as they were saved.
            revision: of a hub id: branch, tag or commit.
            subfolder: of the folder or repository, in which the model is.
            cache_dir: where the hub's files are kept; default: the hub's own folder.
            token: of the hub; default: the one you are logged in with.
            local_files_only: ask no network, take what is in the cache. (An autoencoder that the
                model names by a hub id has the hub's own settings, such as HF_HUB_OFFLINE.)
            torch_dtype: the same as `dtype`, under diffusers' name.
        """
        if dtype is not None and torch_dtype is not None:
            raise UserError("dtype and torch_dtype are the same; give one of them")
        place = export.check_device(device)
        precision = export.check_dtype(torch_dtype if dtype is None else dtype)
        source = hub.Source(revision, cache_dir, token, local_files_only)
        folder = export.locate(name, source, subfolder or "")
        config, decoder, tokenizer, digest = export.load(folder)
        saved = None
        if precision is None:
            saved = decoder.latent_in.weight.dtype
            precision = computed_in(place, saved)
        with user_error(f"device {place}: is full", RuntimeError):
            decoder = decoder.to(place, precision)
        codec = make_codec(config.image, place)
        pipeline = cls(config, decoder, tokenizer, codec, digest, budget_ms, frontier)
        pipeline.source, pipeline.saved_dtype = folder, saved
        return pipeline

    @told_apart
    def save_pretrained(
        self,
        folder: str | Path,
        max_shard_size: int | str = export.MOST,
        license: str | None = None,
        datasets: list[str] | None = None,
    ) -> None:
        """Export to a folder that `from_pretrained` loads, with a model card, README.md.

        The folder may be absent, empty, or hold an exported model, whose files are replaced; what
        else lies there stays, and so does a README.md that you have written or edited. A model's
        first card is made of its run's folder: config, steps, scores of report.json, the newest
        sample sheet. After that the card that is there goes with the model.

        Args:
            max_shard_size: bytes, or as "5GB": weights of more lie in several files.
            license: a key of the hub's, such as "apache-2.0"; a new card says "unknown".
            datasets: hub ids of what it was trained on.
        """
        if not isinstance(folder, (str, Path)) or not str(folder):
            raise UserError(f"save_pretrained: {shown(folder)}; give the path of a folder")
        place = Path(os.path.expanduser(folder))
        weights = {
            name: w.to("cpu", self.saved_dtype or w.dtype)
            for name, w in self.decoder.state_dict().items()
        }
        with user_error(f"{folder}: cannot be written", OSError, ValueError):
            name = place.resolve().name
            pages = card.pages(name, self.config, self.parameters, self.source, license, datasets)
            export.export(self.config, weights, place, max_shard_size, pages)

    @told_apart
    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a model with mmfusion",
        max_shard_size: int | str = export.MOST,
        license: str | None = None,
        datasets: list[str] | None = None,
    ) -> str:
        """Put the model, as `save_pretrained` writes it, on the hub.

        Repository and branch are made if they are not there. It is one commit: whoever loads the
        model has the old one or the new one. A README.md that was written or edited there stays.

        Returns:
            The commit's address.
        """
        with TemporaryDirectory() as temporary:
            hub.check_id(repo_id)
            folder = Path(temporary, repo_id.rpartition("/")[2])
            self.save_pretrained(folder, max_shard_size, license, datasets)
            return hub.upload(
                folder, repo_id, export.CONFIG, export.PAGES, private, token, revision,
                commit_message,
            )  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.decoder.latent_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.decoder.latent_in.weight.dtype

    @property
    def parameters(self) -> int:
        """How many numbers the decoder has learned."""
        return sum(weight.numel() for weight in self.decoder.parameters())

    @told_apart
    def to(
        self: Self,
        device: str | torch.device | torch.dtype | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> Self:
        """Move to a device, or compute (and save) in another precision; returns itself."""
        if isinstance(device, torch.dtype):  # as torch's own `to`
            device, dtype = None, device
        place = self.device if device is None else export.check_device(device)
        precision = export.check_dtype(dtype) or self.dtype
        old, machine = self.budget, Machine.of(torch.empty(0, device=place, dtype=precision))
        self.budget = Budget(old.digest, machine, old.milliseconds, old.path)
        with user_error(f"device {place}: is full", RuntimeError):
            self.decoder.to(place, precision)
        if isinstance(self.codec, AutoencoderCodec):
            self.codec.to(place)
        if dtype is not None:
            self.saved_dtype = None
        return self


def computed_in(device: torch.device, saved: torch.dtype) -> torch.dtype:
    """In which precision weights saved so are computed with, where nothing is asked for."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if saved == torch.float32 else saved
