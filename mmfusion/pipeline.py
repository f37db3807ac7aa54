"""The public way to use a model: class→image, text→image, image→text, editing, interleaving."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image as Picture
from tqdm import tqdm

from mmfusion import export
from mmfusion.codecs.image import ImageCodec, make_codec
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import ModelConfig
from mmfusion.decoder import Decoder
from mmfusion.errors import UserError
from mmfusion.generation.budget import Budget, describe, weights_digest
from mmfusion.generation.masks import EditMask
from mmfusion.generation.prompt import (
    ImagePart,
    Part,
    Prompt,
    PromptItem,
    PromptReader,
    TextPart,
    shape_of,
)
from mmfusion.generation.session import Session

T = TypeVar("T")
OnPicture = Callable[[int, float, Picture.Image], None]
OnToken = Callable[[int, str], None]
Answer = list[str | Picture.Image]


class Pipeline:
    """A decoder with its codecs.

    Every method takes one item or a list and answers in kind. Common keyword arguments:
        seed: of the first item; item i uses seed + i and nothing else, so that a picture does not
            depend on its batch. Or a list of one seed an item.
        batch_size: items answered side by side.
        on_picture: called with (item, share done, picture as it stands) while denoising.
        on_token: called with (item, text so far) while writing.
        progress: show a bar.
        Any option of `mmfusion.config.Sampling`: guidance, guidance_interval,
            num_inference_steps, scheduler, ar_steps, ar_sizes, order, temperature, top_p,
            max_new_tokens. The defaults are the model's own for the task.
        budget_ms: milliseconds for a picture of `class_to_image` or `text_to_image`: their
            defaults are then those of the best point that `mmfusion eval frontier` measured within
            them on this machine.

    A `budget_ms` of the pipeline is for all such calls; `frontier` is a file of measurements to go
    by instead of this machine's, `weights_sha256` the digest by which those are found.

    Raises `mmfusion.errors.UserError` for any input that cannot be answered.
    """

    def __init__(
        self,
        config: ModelConfig,
        decoder: Decoder,
        tokenizer: Tokenizer | None,
        codec: ImageCodec | None = None,
        weights_sha256: str | None = None,
        budget_ms: float | None = None,
        frontier: str | Path | None = None,
    ) -> None:
        self.config, self.decoder, self.tokenizer = config, decoder.eval(), tokenizer
        machine = describe(decoder.latent_in.weight)
        self.budget = Budget(config, weights_sha256, machine, budget_ms, frontier)
        self.codec = codec or make_codec(config.image, decoder.latent_in.weight.device)
        self.read = PromptReader(config, tokenizer, self.codec)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "digits",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        budget_ms: float | None = None,
        frontier: str | Path | None = None,
    ) -> "Pipeline":
        """Load a shipped model by name, an exported folder, or a hub id."""
        folder = export.locate(str(name), revision)
        config, decoder, tokenizer = export.read(folder)
        try:
            decoder = decoder.to(device or export.default_device(), dtype)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device {device}: {str(error).splitlines()[0]}") from None
        digest = weights_digest(folder)
        return cls(config, decoder, tokenizer, None, digest, budget_ms, frontier)

    def save_pretrained(self, folder: str | Path) -> None:
        """Export to a folder that `from_pretrained` loads."""
        weights = {name: w.cpu() for name, w in self.decoder.state_dict().items()}
        export.export(self.config, weights, Path(folder))

    def class_to_image(self, labels: int | str | Sequence[int | str], **options: Any) -> Any:
        """Pictures of classes, by number or name."""
        return self._one_slot(
            "class_to_image", labels, options, self.read.label, self.read.image_slot
        )

    def text_to_image(self, prompts: str | Sequence[str], **options: Any) -> Any:
        """Pictures of what the prompts say."""
        return self._one_slot(
            "text_to_image", prompts, options, self.read.text, self.read.image_slot
        )

    def image_to_text(self, images: Picture.Image | Sequence[Picture.Image], **options: Any) -> Any:
        """Captions of pictures."""
        return self._one_slot(
            "image_to_text", images, options, self.read.picture, self.read.text_slot
        )

    def edit(
        self,
        image: Picture.Image | Sequence[Picture.Image],
        mask: EditMask | Sequence[EditMask],
        prompt: str | Sequence[str] | None = None,
        label: int | str | Sequence[int | str] | None = None,
        **options: Any,
    ) -> Any:
        """Pictures of which a part is generated anew under a prompt or label, zero-shot (sec. 6).

        Kept tokens stay bit for bit. `mask`, `prompt` and `label` are one for all, or one each.

        Args:
            mask: white (nonzero) where to regenerate, or a region: top, bottom, left, right,
                center, outpaint.
        """
        if (prompt is None) == (label is None):
            raise UserError("edit: give either a prompt or a label")
        images, single = _listed(image, Picture.Image)
        conditions = _each(label if prompt is None else prompt, len(images), "label or prompt")
        masks = _each(mask, len(images), "mask")
        make = self.read.label if prompt is None else self.read.text
        common, given = _split_options(options)
        parts: list[list[Part]] = [
            [make(c), self.read.edit(picture, m, "edit", given)]
            for picture, m, c in zip(images, masks, conditions, strict=True)
        ]
        pictures = [answer[0] for answer in self._answer(parts, "edit", **common)]
        return pictures[0] if single else pictures

    def generate(self, prompt: Prompt | Sequence[Prompt], **options: Any) -> Any:
        """Interleaved prompts: lists of str, pictures, `ImageSlot()` and `TextSlot()`.

        Returns:
            The prompt, or each prompt, with its slots filled.
        """
        if isinstance(prompt, (str, Picture.Image)) or not isinstance(prompt, Sequence):
            raise UserError("generate: a prompt is a list of str, pictures and slots")
        many = bool(prompt) and all(isinstance(p, (list, tuple)) for p in prompt)
        prompts: list[list[PromptItem]] = [list(p) for p in prompt] if many else [list(prompt)]  # type: ignore[arg-type]
        common, given = _split_options(options)
        parts = [self.read.prompt(p, given) for p in prompts]
        filled = []
        for items, read, answers in zip(
            prompts, parts, self._answer(parts, "interleaved", **common), strict=True
        ):
            answer = iter(answers)
            wanted = [isinstance(part, (ImagePart, TextPart)) for part in read]
            filled.append([next(answer) if w else i for i, w in zip(items, wanted, strict=True)])
        return filled if many else filled[0]

    def _one_slot(
        self,
        task: str,
        items: Any,
        options: dict[str, Any],
        given: Callable[[Any], Part],
        slot: Callable[[str, dict[str, Any]], Part],
    ) -> Any:
        """A task of one given segment and one slot, whose answer is returned."""
        listed, single = _listed(items, (int, str, np.integer, Picture.Image))
        common, own = _split_options(options)
        own = self.budget.fill(task, own)
        prompts = [[given(item), slot(task, own)] for item in listed]
        answers = [answer[0] for answer in self._answer(prompts, task, **common)]
        return answers[0] if single else answers

    def _answer(
        self,
        prompts: list[list[Part]],
        task: str,
        seed: int | Sequence[int] | np.ndarray = 0,
        batch_size: int = 128,
        on_picture: OnPicture | None = None,
        on_token: OnToken | None = None,
        progress: bool = False,
    ) -> list[Answer]:
        """Answer all prompts, those of one shape side by side."""
        if not prompts:
            raise UserError(f"{task}: nothing was given")
        if batch_size < 1:
            raise UserError(f"batch_size: {batch_size}; give 1 or more")
        if isinstance(seed, (int, np.integer)):
            seed = range(int(seed), int(seed) + len(prompts))
        seeds = list(seed) if isinstance(seed, (Sequence, np.ndarray)) else [seed]
        if not all(isinstance(each, (int, np.integer)) for each in seeds):
            raise UserError(f"seed {seed!r}: give a whole number, or one for each item")
        if not all(-(2**63) <= each < 2**63 for each in seeds):
            raise UserError("seed: a seed is a whole number of at most 63 bits")
        if len(seeds) != len(prompts):
            raise UserError(f"seed: {len(seeds)} seeds for {len(prompts)} items")
        groups: dict[tuple, list[int]] = {}
        for number, parts in enumerate(prompts):
            self.read.check_length(parts)
            groups.setdefault(shape_of(parts), []).append(number)
        answers: list[Answer] = [[] for _ in prompts]
        with tqdm(total=len(prompts), desc=task, disable=not progress) as bar:
            for numbers in groups.values():
                for at in range(0, len(numbers), batch_size):
                    batch = numbers[at : at + batch_size]
                    self._answer_batch(prompts, seeds, batch, answers, on_picture, on_token)
                    bar.update(len(batch))
        return answers

    def _answer_batch(
        self,
        prompts: list[list[Part]],
        seeds: Sequence[int],
        batch: list[int],
        answers: list[Answer],
        on_picture: OnPicture | None,
        on_token: OnToken | None,
    ) -> None:
        columns = list(zip(*(prompts[number] for number in batch), strict=True))
        guided = any(isinstance(c[0], ImagePart) and c[0].sampling.guidance != 1 for c in columns)
        session = Session(
            self.decoder,
            self.config,
            self.tokenizer,
            length=sum(max(self.read.room(part) for part in column) for column in columns),
            generators=[torch.Generator().manual_seed(int(seeds[number])) for number in batch],
            guided=guided,
        )
        for place, column in enumerate(columns):
            follows = place + 1 < len(columns)
            first = column[0]
            if isinstance(first, ImagePart):
                kept = None
                if first.keep is not None:
                    kept = np.stack([p.latents for p in column]), np.stack([p.keep for p in column])
                report = on_picture and _PictureReport(self.codec, batch, on_picture)
                latents = session.image(first.sampling, follows, kept, report)
                made: list[Any] = self.codec.decode(latents)
            elif isinstance(first, TextPart):
                image_follows = follows and isinstance(columns[place + 1][0], ImagePart)
                write = on_token and _TokenReport(self.tokenizer, batch, on_token)
                ids = session.text(first.sampling, image_follows, follows, write)
                assert self.tokenizer is not None
                made = [self.tokenizer.decode(i).strip() for i in ids]
            else:
                session.append(list(column))
                continue
            for number, answer in zip(batch, made, strict=True):
                answers[number].append(answer)


class _PictureReport:
    """Latents as they stand, shown to the caller as pictures."""

    def __init__(self, codec: ImageCodec, batch: list[int], tell: OnPicture) -> None:
        self.codec, self.batch, self.tell = codec, batch, tell

    def __call__(self, share: float, latents: torch.Tensor) -> None:
        for number, picture in zip(self.batch, self.codec.decode(latents.numpy()), strict=True):
            self.tell(number, share, picture)


class _TokenReport:
    """Token ids as they come, shown to the caller as the text so far."""

    def __init__(self, tokenizer: Tokenizer | None, batch: list[int], tell: OnToken) -> None:
        self.tokenizer, self.batch, self.tell = tokenizer, batch, tell
        self.ids: dict[int, list[int]] = {}

    def __call__(self, row: int, token: int) -> None:
        assert self.tokenizer is not None
        ids = self.ids.setdefault(row, [])
        ids.append(token)
        self.tell(self.batch[row], self.tokenizer.decode(ids).strip())


COMMON = ("seed", "batch_size", "on_picture", "on_token", "progress")


def _split_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    common = {name: value for name, value in options.items() if name in COMMON}
    return common, {name: value for name, value in options.items() if name not in COMMON}


def _listed(items: Any, single: Any) -> tuple[list, bool]:
    if isinstance(items, single):
        return [items], True
    if isinstance(items, (list, tuple, np.ndarray, range, torch.Tensor)):
        return [i.item() if isinstance(i, torch.Tensor) else i for i in items], False
    raise UserError(f"expected one item or a list of them, got {type(items).__name__}")


def _each(value: Any, count: int, what: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise UserError(f"edit: {len(value)} of {what} for {count} pictures")
    return list(value)
