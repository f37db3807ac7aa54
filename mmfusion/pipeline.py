"""The public way to use a model: class→image, text→image, image→text, editing, interleaving."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from tqdm import tqdm

from mmfusion import export
from mmfusion.codecs.image import ImageCodec, make_codec
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import ModelConfig
from mmfusion.decoder import Decoder
from mmfusion.errors import UserError, first_line
from mmfusion.generation.arguments import (
    ImageCallback,
    OnImage,
    OnToken,
    TokenCallback,
    check_common,
    each,
    listed,
    seeds_of,
    shown,
)
from mmfusion.generation.budget import Budget, Machine
from mmfusion.generation.edit_masks import EditMask
from mmfusion.generation.likelihood import (
    Likelihood,
    best_candidates,
    candidate_seeds,
    check_best_of,
    check_number,
)
from mmfusion.generation.prompt import (
    COMMON,
    ImageRequest,
    Prompt,
    PromptItem,
    PromptPart,
    PromptReader,
    TextRequest,
    shape_of,
)
from mmfusion.generation.session import Session
from mmfusion.sequence import Segment

Answer = list[str | PILImage.Image]


class Pipeline:
    """A decoder with its codecs.

    Every method takes one item or a list and answers in kind. Pictures are PIL's; they are turned
    as their EXIF notes say (`PIL.ImageOps.exif_transpose` removes those) and laid on white where
    they are transparent. Common keyword arguments:
        seed: of the first item; item i uses seed + i and nothing else, so that a picture does not
            depend on its batch. Or a list of one seed an item.
        batch_size: items answered side by side.
        on_picture: called with (item, share done, picture as it stands) while denoising.
        on_token: called with (item, text so far) while writing.
        progress: show a bar.
        Any option of `mmfusion.config.Sampling`: guidance, guidance_interval,
            num_inference_steps, scheduler, ar_steps, ar_sizes, order, temperature, top_p, beams,
            length_penalty, max_new_tokens. The defaults are the model's own for the task.
        budget_ms: milliseconds for a picture of `class_to_image` or `text_to_image`: their
            defaults are then those of the best point that `mmfusion eval frontier` measured within
            them on this machine.

    A `budget_ms` of the pipeline is for all such calls; `frontier` is a file of measurements to go
    by instead of this machine's, `digest` the model's (`export.model_digest`) by which it is found.
    A call may not give both `budget_ms` and what it chooses (ar_steps, ar_sizes, scheduler,
    num_inference_steps, guidance); against a pipeline's budget, the call's option wins and a
    warning is logged. With `best_of` N each candidate has a share of budget_ms / N; the likelihood
    pass that chooses among them is not counted.

    `text_to_image` and `image_to_text` also take `best_of`: so many candidates of each item are
    drawn, and the one is kept that the model itself finds likeliest: the picture with the highest
    log p(prompt | picture), or the caption with the highest score log p(caption | picture) /
    tokens ** length_penalty, for beams and candidates mean the same by the best. What is judged is
    what is returned: 8-bit pictures and finished texts. Candidate 0 has the item's own seed,
    candidate k one that follows from that seed and k alone; of equals the first is kept.

    Raises `mmfusion.errors.UserError` for any input that cannot be answered.
    """

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
        machine = Machine.of(decoder.latent_in.weight)
        self.budget = Budget(digest, machine, budget_ms, frontier)
        self.codec = codec or make_codec(config.image, decoder.latent_in.weight.device)
        self.read = PromptReader(config, tokenizer, self.codec)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "digits",
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        budget_ms: float | None = None,
        frontier: str | Path | None = None,
    ) -> "Pipeline":
        """Load a model: a folder that holds one, a run's folder, a shipped name, or a hub id.

        In this order: a folder without a model hides neither a shipped name nor a hub id. What is
        given as a `Path`, or begins with `./`, `../` or `/`, is always a folder.

        Args:
            device: default: this process's GPU, or the CPU without one.
            dtype: of the weights: float32, bfloat16 or float16, as torch's or by name; default: as
                they were saved.
            revision: of a hub id.
        """
        place, precision = export.check_device(device), export.check_dtype(dtype)
        folder = export.locate(name, revision)
        config, decoder, tokenizer, digest = export.load(folder)
        try:
            decoder = decoder.to(place, precision)
        except RuntimeError as error:  # its memory is full
            raise UserError(f"device {place}: {first_line(error)}") from None
        codec = make_codec(config.image, decoder.latent_in.weight.device)
        return cls(config, decoder, tokenizer, codec, digest, budget_ms, frontier)

    def save_pretrained(self, folder: str | Path) -> None:
        """Export to a folder that `from_pretrained` loads, in the precision that the weights have.

        The folder may be absent, empty, or hold an exported model, whose files are replaced; what
        else lies there stays.

        Raises:
            UserError: it holds something else, or cannot be written.
        """
        if not isinstance(folder, (str, Path)) or not str(folder):
            raise UserError(f"save_pretrained: {shown(folder)}; give the path of a folder")
        weights = {name: w.cpu() for name, w in self.decoder.state_dict().items()}
        try:
            export.export(self.config, weights, Path(os.path.expanduser(folder)))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: cannot be written ({first_line(error)})") from None

    def class_to_image(self, labels: int | str | Sequence[int | str], **options: Any) -> Any:
        """Pictures of classes, by number or name."""
        return self._one_slot(
            "class_to_image", labels, options, self.read.label, self.read.image_slot
        )

    def text_to_image(self, prompts: str | Sequence[str], best_of: int = 1, **options: Any) -> Any:
        """Pictures of what the prompts say."""

        def judged(prompt: str, given: Any, made: Any) -> list[Segment]:
            return [self.read.picture(made), self.read.answer(prompt)]

        read, slot = self.read.text, self.read.image_slot
        return self._one_slot("text_to_image", prompts, options, read, slot, best_of, judged)

    def image_to_text(
        self, images: PILImage.Image | Sequence[PILImage.Image], best_of: int = 1, **options: Any
    ) -> Any:
        """Captions of pictures."""

        def judged(image: Any, given: Any, said: Any) -> list[Segment]:
            return [given, self.read.answer(said)]

        read, slot = self.read.picture, self.read.text_slot
        return self._one_slot("image_to_text", images, options, read, slot, best_of, judged)

    def edit(
        self,
        image: PILImage.Image | Sequence[PILImage.Image],
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
        images, single = listed(image, PILImage.Image)
        conditions = each(label if prompt is None else prompt, len(images), "label or prompt")
        masks = each(mask, len(images), "mask")
        make = self.read.label if prompt is None else self.read.text
        common, given = _split_options(options)
        parts: list[list[PromptPart]] = [
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
        if isinstance(prompt, (str, PILImage.Image)) or not isinstance(prompt, Sequence):
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
            wanted = [isinstance(part, (ImageRequest, TextRequest)) for part in read]
            filled.append([next(answer) if w else i for i, w in zip(items, wanted, strict=True)])
        return filled if many else filled[0]

    def log_likelihood(
        self,
        prompts: Any,
        answers: str | Sequence[str],
        batch_size: int = 128,
        progress: bool = False,
    ) -> Any:
        """How likely the model finds answers: log p(answer | prompt) and its number of tokens.

        Args:
            prompts: what is given before each answer: a picture, a text, or a list of both.
            answers: a text for each prompt; with a str alone, `prompts` is its one prompt.

        Returns:
            A `Likelihood`, or one for each answer.

        Raises:
            UserError: an answer that no row of the model holds, named by its place, or one for
                which there is no prompt.
        """
        check_common(batch_size, progress)
        texts, single = listed(answers, str)
        given = [prompts] if single else listed(prompts, ())[0]
        if len(given) != len(texts):
            raise UserError(f"log_likelihood: {len(given)} prompts for {len(texts)} answers")
        documents = [
            [*self.read.given(prompt), self.read.answer(text)]
            for prompt, text in zip(given, texts, strict=True)
        ]
        for number, document in enumerate(documents):
            self.read.check_length(document, f"item {number}")
        found = self._likelihoods(documents, batch_size, progress)
        return found[0] if single else found

    def _one_slot(
        self,
        task: str,
        items: Any,
        options: dict[str, Any],
        given: Callable[[Any], Segment],
        slot: Callable[[str, dict[str, Any]], ImageRequest | TextRequest],
        best_of: int = 1,
        judged: Callable[[Any, Segment, Any], list[Segment]] | None = None,
    ) -> Any:
        """A task of one given segment and one slot, whose answer, or best answer, is returned.

        `judged` makes an item, what was given for it and an answer into the document whose last
        text is to be likely.
        """
        wanted, single = listed(items, (int, str, np.integer, PILImage.Image))
        common, own = _split_options(options)
        check_number(best_of)
        own = self.budget.fill(task, own, best_of)
        asked = slot(task, own)
        check_best_of(best_of, asked, common)
        seeds = candidate_seeds(seeds_of(common.pop("seed", 0), len(wanted)), best_of)
        drawn = [pair for item in wanted for pair in [(item, given(item))] * best_of]
        prompts: list[list[PromptPart]] = [[segment, asked] for _, segment in drawn]
        answers = [answer[0] for answer in self._answer(prompts, task, seed=seeds, **common)]
        if judged and best_of > 1:
            documents = [judged(*pair, made) for pair, made in zip(drawn, answers, strict=True)]
            scores = self._likelihoods(
                documents, common.get("batch_size", 128), common.get("progress", False)
            )
            penalty = asked.sampling.length_penalty
            best = best_candidates([score.score(penalty) for score in scores], best_of)
            answers = [answers[at] for at in best]
        return answers[0] if single else answers

    def _likelihoods(
        self, documents: list[list[Segment]], batch_size: int, progress: bool
    ) -> list[Likelihood]:
        """The likelihood of each document's last segment, a text with its loss."""
        found: dict[int, Likelihood] = {}
        for batch in self._batches(documents, "log_likelihood", batch_size, progress):
            columns = list(zip(*(documents[number] for number in batch), strict=True))
            session = self._session(columns, [torch.Generator()] * len(batch), guided=False)
            for column in columns[:-1]:
                session.append(list(column))
            log_p = session.log_likelihood(list(columns[-1])).tolist()
            for number, text, value in zip(batch, columns[-1], log_p, strict=True):
                found[number] = Likelihood(value, len(text.ids) - 1)
        return [found[number] for number in range(len(documents))]

    def _answer(
        self,
        prompts: list[list[PromptPart]],
        task: str,
        seed: int | Sequence[int] | np.ndarray = 0,
        batch_size: int = 128,
        on_picture: OnImage | None = None,
        on_token: OnToken | None = None,
        progress: bool = False,
    ) -> list[Answer]:
        """Answer all prompts, those of one shape side by side."""
        check_common(batch_size, progress, on_picture, on_token)
        seeds = seeds_of(seed, len(prompts))
        for parts in prompts:
            self.read.check_length(parts)
        answers: list[Answer] = [[] for _ in prompts]
        for batch in self._batches(prompts, task, batch_size, progress):
            self._answer_batch(prompts, seeds, batch, answers, on_picture, on_token)
        return answers

    def _batches(
        self, prompts: Sequence[Sequence[PromptPart]], task: str, batch_size: int, progress: bool
    ) -> Iterator[list[int]]:
        """Numbers of the prompts that are run side by side, `batch_size` of one shape."""
        if not prompts:
            raise UserError(f"{task}: nothing was given")
        groups: dict[tuple, list[int]] = {}
        for number, parts in enumerate(prompts):
            groups.setdefault(shape_of(parts), []).append(number)
        with tqdm(total=len(prompts), desc=task, disable=not progress) as bar:
            for numbers in groups.values():
                for at in range(0, len(numbers), batch_size):
                    yield numbers[at : at + batch_size]
                    bar.update(len(numbers[at : at + batch_size]))

    def _session(
        self, columns: list[tuple[PromptPart, ...]], generators: list[torch.Generator], guided: bool
    ) -> Session:
        """Rows with room for all their parts, side by side in columns."""
        length = sum(max(self.read.room(part) for part in column) for column in columns)
        return Session(self.decoder, self.config, self.tokenizer, length, generators, guided)

    def _answer_batch(
        self,
        prompts: list[list[PromptPart]],
        seeds: Sequence[int],
        batch: list[int],
        answers: list[Answer],
        on_picture: OnImage | None,
        on_token: OnToken | None,
    ) -> None:
        columns = list(zip(*(prompts[number] for number in batch), strict=True))
        guided = any(
            isinstance(c[0], ImageRequest) and c[0].sampling.guidance != 1 for c in columns
        )
        generators = [torch.Generator().manual_seed(int(seeds[number])) for number in batch]
        session = self._session(columns, generators, guided)
        for place, column in enumerate(columns):
            follows = place + 1 < len(columns)
            first = column[0]
            if isinstance(first, ImageRequest):
                kept = None
                if first.keep is not None:
                    kept = np.stack([p.latents for p in column]), np.stack([p.keep for p in column])
                report = on_picture and ImageCallback(self.codec, batch, on_picture)
                latents = session.image(first.sampling, follows, kept, report)
                if not np.isfinite(latents).all():
                    raise UserError(
                        "the picture came out as numbers that are not finite: lower guidance, or "
                        "load the model with dtype float32"
                    )
                made: list[Any] = self.codec.decode(latents)
            elif isinstance(first, TextRequest):
                image_follows = follows and isinstance(columns[place + 1][0], ImageRequest)
                write = on_token and TokenCallback(self.tokenizer, batch, on_token)
                ids = session.text(first.sampling, image_follows, follows, write)
                assert self.tokenizer is not None
                made = [self.tokenizer.decode(i).strip() for i in ids]
            else:
                session.append(list(column))
                continue
            for number, answer in zip(batch, made, strict=True):
                answers[number].append(answer)


def _split_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    common = {name: value for name, value in options.items() if name in COMMON}
    return common, {name: value for name, value in options.items() if name not in COMMON}
