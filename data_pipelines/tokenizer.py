"""A sentencepiece model from a corpus, with the control symbols of the decoder's sequences."""

import io
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import sentencepiece
from tqdm import tqdm

from mmfusion.codecs.text import CONTROL
from mmfusion.codecs.vocabulary import kind
from mmfusion.errors import Damage, UserError

from .shards import Shards

MOST_LINES = 1_000_000  # of a corpus are read


def train_tokenizer(lines: Iterable[str], path: Path, vocabulary: int) -> Path:
    """Train a byte-fallback BPE model of at most `vocabulary` pieces and write it to `path`.

    Raises:
        UserError: the corpus is empty or the vocabulary too small for it.
    """
    if kind(path) != ".model":
        raise UserError(
            f"tokenizer {path}: what is trained here is a sentencepiece model; give -o a name "
            "that ends in .model"
        )
    model = io.BytesIO()
    # A list: an error in a generator would be lost inside the trainer.
    corpus = list(islice((line for line in lines if line.strip()), MOST_LINES))
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(corpus),
            model_writer=model,
            vocab_size=vocabulary,
            model_type="bpe",
            hard_vocab_limit=False,
            byte_fallback=True,
            control_symbols=list(CONTROL),
            character_coverage=0.9995,
            input_sentence_size=MOST_LINES,
            shuffle_input_sentence=False,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"tokenizer {path}: cannot be trained ({error})") from None
    return save_tokenizer(model.getvalue(), path)


def save_tokenizer(data: bytes, path: Path) -> Path:
    """Write a tokenizer's file, which appears under its name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    os.replace(part, path)
    return path


def corpus(patterns: list[str], files: list[Path]) -> Iterator[str]:
    """The captions and interleaved texts of shards, and the lines of text files.

    Raises:
        UserError: shards or a file cannot be read.
    """
    for pattern in patterns:
        shards = Shards(pattern)
        for number in tqdm(range(len(shards)), desc=pattern):
            try:
                yield from texts(shards.sample(number, only=("json", "txt")).json())
            except Damage:
                continue  # training counts and lists it
    for path in files:
        try:
            yield from path.read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError) as error:
            raise UserError(f"text {path}: cannot be read as UTF-8 ({error})") from None


def texts(facts: dict[str, Any]) -> Iterator[str]:
    """All that a sample says in words: its captions, and the texts of its content."""
    captions, content = facts.get("captions"), facts.get("content")
    for caption in captions if isinstance(captions, list) else []:
        if isinstance(caption, str):
            yield " ".join(caption.split())
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict):
            yield from (part[k] for k in ("text", "answer") if isinstance(part.get(k), str))
