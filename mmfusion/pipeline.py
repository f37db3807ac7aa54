"""The public way to use a model: class→image, text→image, image→text, editing, interleaving."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NoReturn

from PIL import Image as PILImage

from mmfusion.card import spans
from mmfusion.errors import UserError
from mmfusion.generation.answers import Answers, Parts
from mmfusion.generation.arguments import each, listed, split_options, told_apart
from mmfusion.generation.edit_masks import EditMask
from mmfusion.generation.prompt import Prompt, PromptItem, PromptReader, PromptSlot
from mmfusion.pretrained import Pretrained


class Pipeline(Pretrained):
    """A decoder with its codecs.

    Every method takes one item or a list and answers in kind. Pictures are PIL's; they are turned
    as their EXIF notes say (`PIL.ImageOps.exif_transpose` removes those) and laid on white where
    they are transparent. Common keyword arguments:

    - `seed`: of the first item; item i uses seed + i and nothing else, so that a picture does not
      depend on its batch. Or a list of one seed an item.
    - `batch_size`: items answered side by side.
    - `on_picture`: called with (item, share done, picture as it stands) while denoising.
    - `on_token`: called with (item, text so far) while writing.
    - `progress`: show a bar.
    - Any option of `mmfusion.config.Sampling`; the defaults are the model's own for the task.
    - `best_of` (`text_to_image`, `image_to_text`): candidates drawn of each item, of which the one
      is kept that the model finds likeliest: the picture with the highest log p(prompt | picture),
      or the caption with the highest log p(caption | picture) / tokens ** length_penalty. What is
      judged is what is returned: 8-bit pictures, finished texts. Candidate 0 has the item's own
      seed, candidate k one that follows from that seed and k alone; of equals the first is kept.
    - `budget_ms` (`class_to_image`, `text_to_image`): milliseconds for a picture; the defaults are
      then those of the best point that `mmfusion eval frontier` measured within them on this
      machine. With best_of N each candidate has a share of budget_ms / N; the likelihood pass that
      chooses among them is not counted.

    A `budget_ms` of the pipeline is for all such calls; `frontier` is a file of measurements to go
    by instead of this machine's, `digest` the model's (`export.model_digest`) by which it is found.
    A call may not give both `budget_ms` and what it chooses (ar_steps, ar_sizes, scheduler,
    num_inference_steps, guidance); against a pipeline's budget, the call's option wins and a
    warning is logged.

    Raises `mmfusion.errors.UserError` for any input that cannot be answered.
    """

    @cached_property
    def read(self) -> PromptReader:
        return PromptReader(self.config, self.tokenizer, self.codec)

    @cached_property
    def answers(self) -> Answers:
        return Answers(self.decoder, self.read)

    def __repr__(self) -> str:
        classes, text = bool(self.config.classes), self.config.text is not None
        calls = ["class_to_image"] * classes + ["text_to_image", "image_to_text"] * text
        calls += ["edit"] * (classes or text) + ["generate", "log_likelihood"] * text
        kind = str(self.dtype).removeprefix("torch.")
        return (
            f"Pipeline of {self.parameters / 1e6:.2f}M parameters, {kind} on {self.device}: "
            f"{spans(self.config)}\n  {', '.join(calls)}"
        )

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: there are five tasks, and their answers are no object that holds `.images`."""
        raise UserError(
            "a Pipeline has several tasks: call pipeline.text_to_image(prompt), which gives a "
            "picture (of a list, a list), or class_to_image, image_to_text, edit, generate"
        )

    def class_to_image(self, labels: int | str | Sequence[int | str], **options: Any) -> Any:
        """Pictures of classes, by number or name."""
        classes, single = listed(labels)
        common, own = split_options(options)
        asked = self.read.image_slot("class_to_image", self.budget.fill("class_to_image", own))
        parts: Parts = [[self.read.label(label), asked] for label in classes]
        images = self.answers.one_each(parts, "class_to_image", common)
        return images[0] if single else images

    def text_to_image(self, prompts: str | Sequence[str], best_of: int = 1, **options: Any) -> Any:
        """Pictures of what the prompts say."""
        texts, single = listed(prompts)
        common, own = split_options(options, best_of)
        own = self.budget.fill("text_to_image", own, best_of)
        asked = self.read.image_slot("text_to_image", own)
        texts = [text for text in texts for _ in range(best_of)]
        parts: Parts = [[self.read.text(text), asked] for text in texts]
        images = self.answers.one_each(parts, "text_to_image", common)
        if best_of > 1:
            said = map(self.read.answer, texts)
            documents = list(zip(map(self.read.picture, images), said, strict=True))
            images = self.answers.best(images, documents, common, asked.sampling.length_penalty)
        return images[0] if single else images

    def image_to_text(
        self, images: PILImage.Image | Sequence[PILImage.Image], best_of: int = 1, **options: Any
    ) -> Any:
        """Captions of pictures."""
        pictures, single = listed(images)
        common, own = split_options(options, best_of)
        asked = self.read.text_slot("image_to_text", self.budget.fill("image_to_text", own))
        if best_of > 1 and asked.sampling.temperature == 0:
            raise UserError(
                f"best_of: {best_of} captions at temperature 0 are all the same; give "
                "temperature=1, or leave best_of out"
            )
        given = [each for each in map(self.read.picture, pictures) for _ in range(best_of)]
        captions = self.answers.one_each([[each, asked] for each in given], "image_to_text", common)
        if best_of > 1:
            documents = list(zip(given, map(self.read.answer, captions), strict=True))
            captions = self.answers.best(captions, documents, common, asked.sampling.length_penalty)
        return captions[0] if single else captions

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
        What comes back has the model's size: of a picture that is not square, the centre square.

        The mask is white (nonzero) where to regenerate, or a region: top, bottom, left, right,
        center, outpaint.
        """
        if (prompt is None) == (label is None):
            either = (
                "either a prompt or a label" if self.config.classes else "a prompt, and no label"
            )
            raise UserError(f"edit: give {either}")
        images, single = listed(image)
        conditions = each(label if prompt is None else prompt, len(images), "label or prompt")
        masks = each(mask, len(images), "mask")
        condition = self.read.label if prompt is None else self.read.text
        common, own = split_options(options)
        parts: Parts = [
            [condition(wanted), self.read.edit(picture, painted, own)]
            for picture, painted, wanted in zip(images, masks, conditions, strict=True)
        ]
        edited = self.answers.one_each(parts, "edit", common)
        return edited[0] if single else edited

    def generate(self, prompt: Prompt | Sequence[Prompt], **options: Any) -> Any:
        """Interleaved prompts: lists of str, pictures, `ImageSlot()` and `TextSlot()`.

        Returns:
            The prompt, or each prompt, with its slots filled.
        """
        if isinstance(prompt, (str, PILImage.Image)) or not isinstance(prompt, Sequence):
            raise UserError("generate: a prompt is a list of str, pictures and slots")
        many = bool(prompt) and all(isinstance(p, (list, tuple)) for p in prompt)
        prompts: list[list[PromptItem]] = [list(p) for p in prompt] if many else [list(prompt)]  # type: ignore[arg-type]
        common, own = split_options(options)
        parts = [self.read.prompt(items, own) for items in prompts]
        answers = map(iter, self.answers.of(parts, "interleaved", common))
        filled = [
            [next(made) if isinstance(item, PromptSlot) else item for item in items]
            for items, made in zip(prompts, answers, strict=True)
        ]
        return filled if many else filled[0]

    @told_apart
    def log_likelihood(
        self,
        prompts: Any,
        answers: str | Sequence[str],
        batch_size: int = 128,
        progress: bool = False,
    ) -> Any:
        """How likely the model finds answers: a `Likelihood` of log p(answer | prompt) for each.

        A prompt is a picture, a text, or a list of both; with a str as `answers`, `prompts` is its
        one prompt.
        """
        common, _ = split_options({"batch_size": batch_size, "progress": progress})
        texts, single = listed(answers)
        given = [prompts] if single else listed(prompts, ())[0]
        if len(given) != len(texts):
            raise UserError(f"log_likelihood: {len(given)} prompts for {len(texts)} answers")
        documents = [
            [*self.read.given(prompt), self.read.answer(text)]
            for prompt, text in zip(given, texts, strict=True)
        ]
        for number, document in enumerate(documents):
            self.read.check_length(document, f"item {number}")
        found = self.answers.likelihoods(documents, common)
        return found[0] if single else found
