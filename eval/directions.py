"""Each direction measured: pictures of classes, pictures of texts, texts of pictures.

Every process of a launcher runs these functions and does its share of the answers, features,
embeddings and likelihoods; the arithmetic at the end is the first one's.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Picture

from mmfusion.config.evaluation import Asked, ClassToImage, Drawn, ImageToText, TextToImage
from mmfusion.errors import UserError
from mmfusion.generation.scoring import Likelihood

from .alignment import PREFIX, clip_score, ref_clip_score, retrieval
from .answers import Answers, Kept
from .captions.scores import score
from .clip.model import load_clip
from .clip.pairs import embed_pairs
from .corpus import Corpus
from .distribution import impossible, key_of, measure
from .extractors import make_extractor
from .pictures import open_pictures, write_npz
from .work import rank

Figures = dict[str, Any]
Cells = list[dict[str, Any]]
Findings = tuple[Figures, dict[str, Cells]]

ITSELF = {"judge": "the model itself"}
SHOWN = 40
"""Answers on the page: the first ones, none picked."""


def class_to_image(answers: Answers, asked: ClassToImage, output: Path) -> Findings:
    """Pictures of all classes in turn, compared with the reference."""
    classes = answers.config.classes
    if not classes:
        raise UserError("class_to_image: this model knows no classes; leave the section out")
    labels = [number % len(classes) for number in range(asked.pictures)]
    made = answers.class_to_image(labels, **_options(asked))
    figures = _compare(answers, made, asked, asked.reference, output)
    if rank() == 0:
        _write_npz(output / "class_to_image.npz", made, answers, labels)
    cells = [
        {"picture": made[i], "alt": f"drawn for class {classes[labels[i]]}",
         "text": classes[labels[i]], "lines": []}
        for i in range(min(SHOWN, len(made)))
    ]  # fmt: skip
    return figures, {"class_to_image_answers": cells}


def text_to_image(answers: Answers, asked: TextToImage, output: Path) -> Findings:
    """Pictures of a corpus's captions: against its pictures, and against the captions."""
    corpus = Corpus(asked.data)
    prompts = corpus.prompts(asked.pictures, answers.seed)
    made = answers.text_to_image(prompts, **_options(asked))
    figures = _compare(answers, made, asked, asked.reference or asked.data, output)
    notes: list[list[str]] = [[] for _ in prompts]
    if asked.clip:
        clip = load_clip(asked.clip)
        pairs = embed_pairs(clip, made, prompts, work=output / "features", digest=made.digest)
        figures |= {**clip_score(pairs), "retrieval": retrieval(pairs, answers.seed)}
        for note, cosine in zip(notes, pairs.cosines, strict=True):
            note.append(f"CLIP cosine {cosine:.3f}")
    if asked.cycle:
        cycle, own = _cycle(answers, made, prompts)
        figures |= cycle
        for note, likelihood in zip(notes, own, strict=True):
            note.append(f"log p(text | picture) {likelihood.log_probability:.1f}")
    if rank() == 0:
        _write_npz(output / "text_to_image.npz", made, answers)
    cells = [
        {"picture": made[i], "alt": f"drawn for: {prompts[i]}", "text": f"“{prompts[i]}”",
         "lines": notes[i]}
        for i in range(min(SHOWN, len(made)))
    ]  # fmt: skip
    return figures, {"text_to_image_answers": cells}


def image_to_text(answers: Answers, asked: ImageToText, output: Path) -> Findings:
    """Captions of a corpus's pictures against its own captions."""
    corpus = Corpus(asked.data)
    pictures = corpus.pictures(asked.pictures)
    references = corpus.captions[: len(pictures)]
    written = list(answers.image_to_text(pictures, **_options(asked)))
    figures: Figures = {}
    if asked.perplexity:
        figures["perplexity"] = _perplexity(answers, pictures, references)
    pairs = None
    if asked.clip:
        clip = load_clip(asked.clip)
        texts = [text or "." for text in written]  # nothing said matches as nothing does
        pairs = embed_pairs(
            clip, pictures, texts, PREFIX, work=output / "features", digest=pictures.digest
        )
    if rank() == 0:
        scores = score(references, written, asked.metrics, asked.tokenizer)
        figures |= scores.figures
        if scores.left_out:
            figures["left_out"] = scores.left_out
        if pairs:
            figures |= ref_clip_score(clip, pairs, references)
    cells = [
        {"picture": pictures[i], "alt": f"a picture to be described: {references[i][0]}",
         "text": f"“{written[i]}”", "lines": [f"reference: {references[i][0]}"]}
        for i in range(min(SHOWN, len(written)))
    ]  # fmt: skip
    return figures, {"image_to_text_answers": cells}


def _options(asked: Asked) -> dict[str, Any]:
    best = {"best_of": asked.best_of} if asked.best_of > 1 else {}
    return {**asked.sampling, **best}


def _compare(
    answers: Answers, made: Kept, asked: Drawn, reference: str | None, output: Path
) -> Figures:
    """Distances to the reference by each extractor, and what could not be measured."""
    if reference is None:
        return {}
    size = answers.config.image.size
    ours, theirs = open_pictures(str(made.folder / "*.tar"), size), open_pictures(reference, size)
    figures: Figures = {}
    left_out: dict[str, str] = {}
    for spec in asked.features:
        extractor = make_extractor(spec)
        cannot = impossible(ours, theirs, extractor)
        metrics: list[str] = [metric for metric in asked.metrics if metric not in cannot]
        left_out |= {key_of(m, extractor): why for m, why in cannot.items() if m in asked.metrics}
        figures |= measure(ours, theirs, extractor, metrics, made_work=output / "features")
    return {**figures, "left_out": left_out} if left_out else figures


def _write_npz(path: Path, made: Kept, answers: Answers, labels: list[int] | None = None) -> None:
    """The samples as the ADM suite takes them."""
    pictures = open_pictures(str(made.folder / "*.tar"), answers.config.image.size)
    write_npz(path, pictures, None if labels is None else np.array(labels))


def _cycle(
    answers: Answers, made: Sequence[Picture.Image], prompts: list[str]
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


def _perplexity(answers: Answers, pictures: Any, references: list[list[str]]) -> dict[str, Any]:
    """Exp of the mean negative log-likelihood of a reference's token, given its picture."""
    numbers = [i for i, texts in enumerate(references) for _ in texts]
    texts = [text for mine in references for text in mine]
    found = answers.log_likelihood(pictures.chosen(numbers), texts)
    return {
        "value": math.exp(-_a_token(found)),
        "n": len(pictures),
        "texts": len(texts),
        "tokens": sum(each.tokens for each in found),
        **ITSELF,
    }
