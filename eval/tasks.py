"""Each direction measured: pictures of classes, pictures of texts, texts of pictures.

All that a direction needs is opened before its first answer is made: what is missing is said at
once, and not after hours. Every process of a launcher does its share of the answers, features,
embeddings and likelihoods; the arithmetic at the end is the first one's.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image as PILImage

from mmfusion.config.evaluation import Asked, ClassToImage, Drawn, ImageToText, TextToImage
from mmfusion.errors import UserError
from mmfusion.generation.likelihood import Likelihood

from .captioned_dataset import CaptionedDataset
from .captions.scores import lacking, score
from .digits.suite import Cells, Findings
from .distribution import impossible, key_of, measure
from .extractors import make_extractor
from .image_sets import open_images
from .npz import write_npz_samples
from .sample_store import SampleStore, StoredSamples
from .work import rank

if TYPE_CHECKING:
    from .clip import Clip

Figures = dict[str, Any]

FEW = 1000
"""Samples below which a mean says little."""
SAMPLES = "samples.npz"
SHOWN = 40
"""Answers on the page: the first ones, none picked."""


class Places(NamedTuple):
    """Where features and embeddings are kept: of the answers, and of references."""

    own: Path
    shared: Path | None = None


class Direction(ABC):
    """A direction, ready to be measured.

    Attributes:
        inputs: digests of all that its figures depend on beside the model.
    """

    task: str

    def __init__(self, answers: SampleStore, asked: Asked, places: Places) -> None:
        answers.check(self.task, asked.sampling)
        self.answers, self.places = answers, places
        best = {"best_of": asked.best_of} if asked.best_of > 1 else {}
        self.options: dict[str, Any] = {**asked.sampling, **best}
        self.inputs: dict[str, Any] = {}

    @abstractmethod
    def measure(self) -> Findings:
        """Figures by name, and cells of the page's sheet."""

    def _read(self, data: str, clip: str | None) -> None:
        """The corpus, and CLIP if it is asked for: open_clip takes seconds to be imported."""
        self.corpus = CaptionedDataset(data, self.answers.fits)
        self.inputs["data"] = self.corpus.shards.digest
        self.clip: Clip | None = None
        if clip:
            from . import clip as networks

            self.clip = networks.Clip(clip)
            self.inputs["clip"] = list(self.clip.identity)

    def _described(self, figures: Figures, made: StoredSamples) -> Figures:
        """Figures with the corpus and the answers that they depend on."""
        return described(figures, {**self.corpus.about, "source_sha256": made.digest})

    def _sheet(
        self, pictures: Sequence[PILImage.Image], about: list[tuple[str, str, list[str]]]
    ) -> dict[str, Cells]:
        """The first pictures for the page: about each its alt text, a text and lines below it."""
        cells = [
            {"picture": picture, "alt": alt, "text": text, "lines": lines}
            for picture, (alt, text, lines) in zip(pictures[:SHOWN], about, strict=False)
        ]
        return {f"{self.task}_answers": cells}


class _Drawing(Direction):
    """What the directions that draw share: a reference, and the networks that compare with it."""

    def __init__(
        self, answers: SampleStore, asked: Drawn, reference: str | None, places: Places
    ) -> None:
        super().__init__(answers, asked, places)
        self.count, self.metrics = asked.pictures, asked.metrics
        self.size = answers.config.image.size
        self.reference = open_images(reference, self.size) if reference else None
        self.extractors = [make_extractor(spec) for spec in asked.features]
        self.inputs["extractors"] = [list(extractor.identity) for extractor in self.extractors]
        if self.reference is not None:  # one of moments alone is empty
            self.inputs["reference"] = self.reference.digest

    def _compare(self, made: StoredSamples) -> tuple[Figures, dict[str, str]]:
        """Distances to the reference by each extractor, and why others could not be measured."""
        ours = made.pictures(self.size)
        figures: Figures = {}
        left_out: dict[str, str] = {}
        for extractor in self.extractors:
            cannot = impossible(ours, self.reference, extractor)
            wanted: list[str] = [metric for metric in self.metrics if metric not in cannot]
            left_out |= {key_of(m, extractor): cannot[m] for m in self.metrics if m in cannot}
            figures |= measure(
                ours, self.reference, extractor, wanted, self.places.shared, self.places.own
            )
        return figures, left_out

    def _save(self, made: StoredSamples, labels: Sequence[int] | None = None) -> None:
        """The samples as the ADM suite takes them, beside the answers that they are."""
        path = made.folder / SAMPLES
        if rank() == 0 and not path.exists():
            pictures = made.pictures(self.size)
            write_npz_samples(path, pictures, None if labels is None else np.array(labels))


class Classes(_Drawing):
    """Pictures of all classes in turn."""

    task = "class_to_image"

    def __init__(self, answers: SampleStore, asked: ClassToImage, places: Places) -> None:
        self.names = answers.config.classes
        if not self.names:
            raise UserError("class_to_image: this model knows no classes; leave the section out")
        super().__init__(answers, asked, asked.reference, places)

    def measure(self) -> Findings:
        labels = [number % len(self.names) for number in range(self.count)]
        made = self.answers.class_to_image(labels, **self.options)
        figures, left_out = self._compare(made)
        self._save(made, labels)
        if left_out:
            figures["left_out"] = left_out
        names = [self.names[label] for label in labels]
        return figures, self._sheet(made, [(f"drawn for class {n}", n, []) for n in names])


class Drawings(_Drawing):
    """Pictures of a corpus's captions: against its pictures, and against the captions."""

    task = "text_to_image"

    def __init__(self, answers: SampleStore, asked: TextToImage, places: Places) -> None:
        super().__init__(answers, asked, asked.reference or asked.data, places)
        self._read(asked.data, asked.clip)
        self.cycle = asked.cycle

    def measure(self) -> Findings:
        prompts = self.corpus.prompts(self.count, self.answers.seed)
        made = self.answers.text_to_image(prompts, **self.options)
        figures, left_out = self._compare(made)
        found: Figures = {}
        notes: list[list[str]] = []
        if self.clip:
            from .alignment import clip_score, embed_pairs

            pairs = embed_pairs(self.clip, made, prompts, work=self.places.own)
            found |= clip_score(pairs)
            notes.append([f"CLIP cosine {cosine:.3f}" for cosine in pairs.cosines])
        if self.cycle:
            told, own = cycle(self.answers, made, prompts)
            found |= told
            notes.append([f"log p(text | picture) {each.log_probability:.1f}" for each in own])
        self._save(made)
        figures |= {**self._described(found, made), **missing(left_out, self.corpus)}
        about = [
            (f"drawn for: {prompt}", f"“{prompt}”", [note[i] for note in notes])
            for i, prompt in enumerate(prompts)
        ]
        return figures, self._sheet(made, about)


class Captions(Direction):
    """Captions of a corpus's pictures against its own captions."""

    task = "image_to_text"

    def __init__(self, answers: SampleStore, asked: ImageToText, places: Places) -> None:
        super().__init__(answers, asked, places)
        self.asked = asked
        self._read(asked.data, asked.clip)
        self.lacking = lacking(asked.metrics)
        self.inputs["lacks"] = self.lacking

    def measure(self) -> Findings:
        pictures = self.corpus.pictures(self.asked.pictures)
        references = self.corpus.captions[: len(pictures)]
        kept = self.answers.image_to_text(pictures, **self.options)
        written = list(kept)
        figures: Figures = {}
        if self.asked.perplexity:
            figures["perplexity"] = perplexity(self.answers, pictures, self.corpus.usable)
        pairs = None
        if self.clip:
            from .alignment import PREFIX, embed_pairs, ref_clip_score

            texts = [text or "." for text in written]  # nothing said matches as nothing does
            pairs = embed_pairs(self.clip, pictures, texts, PREFIX, self.places.own)
        if rank() == 0:
            metrics = [metric for metric in self.asked.metrics if metric not in self.lacking]
            if metrics:
                figures |= score(references, written, metrics, self.asked.tokenizer).figures
            if self.clip and pairs:
                figures |= ref_clip_score(self.clip, pairs, references)
        figures = {**self._described(figures, kept), **missing(self.lacking, self.corpus)}
        about = [
            (f"a picture to be described: {texts[0]}", f"“{answer}”", [f"reference: {texts[0]}"])
            for answer, texts in zip(written, references, strict=True)
        ]
        return figures, self._sheet(pictures, about)


def missing(lacking: dict[str, str], corpus: CaptionedDataset) -> Figures:
    """Why figures are missing, and how many captions no row of the model holds."""
    found = dict(lacking)
    if corpus.too_long:
        total = sum(map(len, corpus.captions))
        found["captions"] = f"{corpus.too_long:,} of {total:,} are longer than the model's rows"
    return {"left_out": found} if found else {}


def described(figures: Figures, about: Figures) -> Figures:
    """Figures with what they depend on, and a warning where there are few samples."""
    found: Figures = {}
    for name, figure in figures.items():
        if "value" not in figure:
            found[name] = described(figure, about)
            continue
        found[name] = {**figure, **about}
        if figure["n"] < FEW and "warning" not in figure:
            found[name]["warning"] = f"{figure['n']:,} samples are few: compare with the same alone"
    return found


def cycle(
    answers: SampleStore, made: Sequence[PILImage.Image], prompts: list[str]
) -> tuple[Figures, list[Likelihood]]:
    """Cycle consistency: how likely each prompt is as the caption of its own picture.

    Beside it stands the same prompt given another prompt's picture, half of the list away; where
    both prompts are equal nothing is compared.
    """
    n = len(prompts)
    away = [(i + max(1, n // 2)) % n for i in range(n)]
    own = answers.log_likelihood(made, prompts)
    crossed = answers.log_likelihood(made, [prompts[j] for j in away])
    pairs = [(own[j], c) for i, (j, c) in enumerate(zip(away, crossed, strict=True))
             if prompts[i] != prompts[j]]  # fmt: skip
    figures = {"cycle_log_likelihood": figure(_a_token(own), n)}
    if pairs:
        gain = _a_token([o for o, _ in pairs]) - _a_token([c for _, c in pairs])
        better = [(o.log_probability > c.log_probability) + (o == c) / 2 for o, c in pairs]
        figures["cycle_gain"] = figure(gain, len(pairs))
        figures["cycle_accuracy"] = figure(float(np.mean(better)), len(pairs))
    return figures, own


def figure(value: float, n: int, **about: int) -> Figures:
    """A figure of which the model itself is the judge."""
    return {"value": value, "n": n, **about, "judge": "the model itself"}


def _a_token(found: list[Likelihood]) -> float:
    """Mean log-likelihood of a token, in nats."""
    return math.fsum(f.log_probability for f in found) / sum(f.tokens for f in found)


def perplexity(answers: SampleStore, pictures: Any, references: list[list[str]]) -> Figures:
    """Exp of the mean negative log-likelihood of a reference's token, given its picture."""
    pairs = [(i, text) for i, texts in enumerate(references[: len(pictures)]) for text in texts]
    texts = [text for _, text in pairs]
    found = answers.log_likelihood(pictures.chosen([i for i, _ in pairs]), texts)
    tokens = sum(each.tokens for each in found)
    return figure(math.exp(-_a_token(found)), len(pictures), texts=len(texts), tokens=tokens)
