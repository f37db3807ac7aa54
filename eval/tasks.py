"""Each direction measured: pictures of classes, pictures of texts, texts of pictures.

All that a direction needs is opened before its first answer is made: what is missing is said at
once, and not after hours. Every process of a launcher does its share of the answers, features,
embeddings and likelihoods; the arithmetic at the end is the first one's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image as PILImage

from mmfusion.config.evaluation import Asked, ClassToImage, Drawn, ImageToText, TextToImage
from mmfusion.errors import UserError
from mmfusion.generation.likelihood import Likelihood

from .captioned_dataset import CaptionedDataset
from .captions.scores import lacking, score
from .distribution import impossible, key_of, measure
from .extractors import make_extractor
from .image_sets import open_images
from .npz import write_npz_samples
from .sample_store import SampleStore, StoredSamples
from .work import rank

if TYPE_CHECKING:
    from .clip import Clip

Figures = dict[str, Any]
Cells = list[dict[str, Any]]
Findings = tuple[Figures, dict[str, Cells]]

ITSELF = {"judge": "the model itself"}
FEW = 1000
"""Samples below which a mean says little."""
SAMPLES = "samples.npz"
SHOWN = 40
"""Answers on the page: the first ones, none picked."""


@dataclass(frozen=True)
class Places:
    """Where features and embeddings are kept: of the answers, and of references."""

    own: Path
    shared: Path | None = None


class Direction(Protocol):
    """A direction, ready to be measured.

    Attributes:
        inputs: digests of all that its figures depend on beside the model.
    """

    inputs: dict[str, Any]

    def measure(self) -> Findings:
        """Figures by name, and cells of the page's sheet."""


class _Drawing:
    """What the directions that draw share: a reference, and the networks that compare with it."""

    def __init__(
        self, answers: SampleStore, asked: Drawn, reference: str | None, places: Places
    ) -> None:
        self.answers, self.asked, self.places = answers, asked, places
        self.size = answers.config.image.size
        self.reference = open_images(reference, self.size) if reference else None
        self.extractors = [make_extractor(spec) for spec in asked.features]
        self.inputs: dict[str, Any] = {"extractors": [list(e.identity) for e in self.extractors]}
        if self.reference is not None:  # one of moments alone is empty
            self.inputs["reference"] = self.reference.digest

    def compare(self, made: StoredSamples) -> Figures:
        """Distances to the reference by each extractor, and what could not be measured."""
        ours = open_images(made.pattern, self.size)
        figures: Figures = {}
        left_out: dict[str, str] = {}
        for extractor in self.extractors:
            cannot = impossible(ours, self.reference, extractor)
            wanted: list[str] = [metric for metric in self.asked.metrics if metric not in cannot]
            left_out |= {key_of(m, extractor): cannot[m] for m in self.asked.metrics if m in cannot}
            figures |= measure(
                ours, self.reference, extractor, wanted, self.places.shared, self.places.own
            )
        return {**figures, "left_out": left_out} if left_out else figures

    def save(self, made: StoredSamples, labels: Sequence[int] | None = None) -> None:
        """The samples as the ADM suite takes them, beside the answers that they are."""
        path = made.folder / SAMPLES
        if rank() == 0 and not path.exists():
            pictures = open_images(made.pattern, self.size)
            write_npz_samples(path, pictures, None if labels is None else np.array(labels))


class Classes(_Drawing):
    """Pictures of all classes in turn."""

    def __init__(self, answers: SampleStore, asked: ClassToImage, places: Places) -> None:
        """Open the reference and the networks.

        Raises:
            UserError: the model knows no classes, or something cannot be opened.
        """
        self.names = answers.config.classes
        if not self.names:
            raise UserError("class_to_image: this model knows no classes; leave the section out")
        answers.check("class_to_image", asked.sampling)
        super().__init__(answers, asked, asked.reference, places)

    def measure(self) -> Findings:
        labels = [number % len(self.names) for number in range(self.asked.pictures)]
        made = self.answers.class_to_image(labels, **_options(self.asked))
        figures = self.compare(made)
        self.save(made, labels)
        names = [self.names[label] for label in labels]
        return figures, {"class_to_image_answers": _cells(made, "drawn for class", names, names)}


class Drawings(_Drawing):
    """Pictures of a corpus's captions: against its pictures, and against the captions."""

    asked: TextToImage

    def __init__(self, answers: SampleStore, asked: TextToImage, places: Places) -> None:
        """Open the corpus, the reference and the networks.

        Raises:
            UserError: something cannot be opened.
        """
        answers.check("text_to_image", asked.sampling)
        self.corpus = CaptionedDataset(asked.data, answers.fits)
        super().__init__(answers, asked, asked.reference or asked.data, places)
        self.clip = _load_clip(asked.clip)
        self.inputs["data"] = self.corpus.shards.digest
        if self.clip:
            self.inputs["clip"] = list(self.clip.identity)

    def measure(self) -> Findings:
        prompts = self.corpus.prompts(self.asked.pictures, self.answers.seed)
        made = self.answers.text_to_image(prompts, **_options(self.asked))
        about = {**self.corpus.about, "source_sha256": made.digest}
        figures = self.compare(made)
        lines: list[list[str]] = [[] for _ in prompts]
        if self.clip:
            from .alignment import clip_score, embed_pairs

            pairs = embed_pairs(self.clip, made, prompts, work=self.places.own)
            figures |= _described(clip_score(pairs), about)
            for line, cosine in zip(lines, pairs.cosines, strict=True):
                line.append(f"CLIP cosine {cosine:.3f}")
        if self.asked.cycle:
            found, own = _cycle(self.answers, made, prompts)
            figures |= _described(found, about)
            for line, likelihood in zip(lines, own, strict=True):
                line.append(f"log p(text | picture) {likelihood.log_probability:.1f}")
        _too_long(figures, self.corpus)
        self.save(made)
        quoted = [f"“{prompt}”" for prompt in prompts]
        cells = _cells(made, "drawn for:", prompts, quoted, lines)
        return figures, {"text_to_image_answers": cells}


class Captions:
    """Captions of a corpus's pictures against its own captions."""

    def __init__(self, answers: SampleStore, asked: ImageToText, places: Places) -> None:
        """Open the corpus and the network.

        Raises:
            UserError: something cannot be opened.
        """
        answers.check("image_to_text", asked.sampling)
        self.answers, self.asked, self.places = answers, asked, places
        self.corpus = CaptionedDataset(asked.data, answers.fits)
        self.clip = _load_clip(asked.clip)
        self.left_out = lacking(asked.metrics)
        self.inputs: dict[str, Any] = {"data": self.corpus.shards.digest, "lacks": self.left_out}
        if self.clip:
            self.inputs["clip"] = list(self.clip.identity)

    def measure(self) -> Findings:
        pictures = self.corpus.pictures(self.asked.pictures)
        references = self.corpus.captions[: len(pictures)]
        kept = self.answers.image_to_text(pictures, **_options(self.asked))
        written = list(kept)
        figures: Figures = {}
        if self.asked.perplexity:
            figures["perplexity"] = _perplexity(self.answers, pictures, self.corpus.usable)
        pairs = None
        if self.clip:
            from .alignment import PREFIX, embed_pairs, ref_clip_score

            texts = [text or "." for text in written]  # nothing said matches as nothing does
            pairs = embed_pairs(self.clip, pictures, texts, PREFIX, self.places.own)
        if rank() == 0:
            metrics = [metric for metric in self.asked.metrics if metric not in self.left_out]
            if metrics:
                figures |= score(references, written, metrics, self.asked.tokenizer).figures
            if self.clip and pairs:
                figures |= ref_clip_score(self.clip, pairs, references)
        figures = _described(figures, {**self.corpus.about, "source_sha256": kept.digest})
        if self.left_out:
            figures["left_out"] = self.left_out
        _too_long(figures, self.corpus)
        first, quoted = [texts[0] for texts in references], [f"“{text}”" for text in written]
        lines = [[f"reference: {text}"] for text in first]
        cells = _cells(pictures, "a picture to be described:", first, quoted, lines)
        return figures, {"image_to_text_answers": cells}


def _cells(
    pictures: Sequence[PILImage.Image],
    what: str,
    shown: list[str],
    texts: list[str],
    lines: list[list[str]] | None = None,
) -> Cells:
    """The first pictures of a direction for the page, with a text and lines below each."""
    return [
        {"picture": pictures[i], "alt": f"{what} {shown[i]}", "text": texts[i],
         "lines": lines[i] if lines else []}
        for i in range(min(SHOWN, len(pictures)))
    ]  # fmt: skip


def _load_clip(spec: str | None) -> "Clip | None":
    """The CLIP model, if one is asked for: open_clip takes seconds to be imported."""
    if spec is None:
        return None
    from .clip import Clip

    return Clip(spec)


def _options(asked: Asked) -> dict[str, Any]:
    best = {"best_of": asked.best_of} if asked.best_of > 1 else {}
    return {**asked.sampling, **best}


def _described(figures: Figures, about: Figures) -> Figures:
    """Figures with what they depend on, and a warning where there are few samples."""
    found: Figures = {}
    for name, figure in figures.items():
        if "value" not in figure:
            found[name] = _described(figure, about)
            continue
        found[name] = {**figure, **about}
        if figure["n"] < FEW and "warning" not in figure:
            found[name]["warning"] = f"{figure['n']:,} samples are few: compare with the same alone"
    return found


def _too_long(figures: Figures, corpus: CaptionedDataset) -> None:
    """Say how many captions no row of the model holds."""
    if corpus.too_long:
        total = sum(map(len, corpus.captions))
        told = f"{corpus.too_long:,} of {total:,} are longer than the model's rows"
        figures["left_out"] = {**figures.get("left_out", {}), "captions": told}


def _cycle(
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
    figures = {"cycle_log_likelihood": {"value": _a_token(own), "n": n, **ITSELF}}
    if pairs:
        gain = _a_token([o for o, _ in pairs]) - _a_token([c for _, c in pairs])
        better = [(o.log_probability > c.log_probability) + (o == c) / 2 for o, c in pairs]
        figures["cycle_gain"] = {"value": gain, "n": len(pairs), **ITSELF}
        figures["cycle_accuracy"] = {"value": float(np.mean(better)), "n": len(pairs), **ITSELF}
    return figures, own


def _a_token(found: list[Likelihood]) -> float:
    """Mean log-likelihood of a token, in nats."""
    return math.fsum(f.log_probability for f in found) / sum(f.tokens for f in found)


def _perplexity(answers: SampleStore, pictures: Any, references: list[list[str]]) -> dict[str, Any]:
    """Exp of the mean negative log-likelihood of a reference's token, given its picture."""
    used = references[: len(pictures)]
    numbers = [i for i, texts in enumerate(used) for _ in texts]
    texts = [text for mine in used for text in mine]
    found = answers.log_likelihood(pictures.chosen(numbers), texts)
    return {
        "value": math.exp(-_a_token(found)),
        "n": len(pictures),
        "texts": len(texts),
        "tokens": sum(each.tokens for each in found),
        **ITSELF,
    }
