"""A sentencepiece model from a corpus, with the control symbols of the decoder's sequences."""

import heapq
import io
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import sentencepiece
from tqdm import tqdm

from mmfusion.codecs.text import CONTROL, clean
from mmfusion.codecs.vocabulary import kind
from mmfusion.errors import CorruptSample, UserError, user_error
from mmfusion.files import write
from mmfusion.rng import generator
from mmfusion.texts import begin

from . import storage
from .shards import Shards

log = logging.getLogger("mmfusion")
MOST_LINES = 1_000_000  # that a tokenizer is trained from
MOST_LINE_BYTES = 4192  # of a line; sentencepiece's default
MOST_PIECE = MOST_LINE_BYTES // 4  # characters, which have up to 4 bytes
# As far as the last white space within reach, or else as far as reach goes.
PIECE = re.compile(rf"\S(?:.{{0,{MOST_PIECE - 2}}}\S)?(?=\s|\Z)|\S{{1,{MOST_PIECE}}}", re.DOTALL)
RESERVED = "\u2585"  # sentencepiece's mark of unknown text
CHUNK = 1024  # samples or lines that are read at a time
Place = tuple[int, int]  # of a line in its source


def train_tokenizer(lines: Iterable[str], path: Path, vocabulary: int) -> Path:
    """Train a byte-fallback BPE model of at most `vocabulary` pieces and write it to `path`.

    All of the text is trained from, however long its lines are.
    """
    if kind(path) != ".model":
        raise UserError(
            f"tokenizer {path}: what is trained here is a sentencepiece model; give -o a name "
            "that ends in .model"
        )
    model = io.BytesIO()
    # A list: an error in a generator would be lost inside the trainer.
    corpus = [piece for line in lines for piece in _pieces(line)]
    if not corpus:
        raise UserError(f"tokenizer {path}: cannot be trained (there is no text in what was given)")
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
            input_sentence_size=max(MOST_LINES, len(corpus)),  # it would drop what is more
            shuffle_input_sentence=False,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
            raise UserError(
                f"tokenizer {path}: a vocabulary of {vocabulary} pieces is too small for this; "
                f"give {least[1]} or more"
            ) from None
        raise UserError(f"tokenizer {path}: cannot be trained ({error})") from None
    write(path, model.getvalue())
    return path


def _pieces(line: str) -> Iterator[str]:
    """A line as the trainer takes it, which drops lines that are too long or hold `RESERVED`.

    What is too long is cut at white space, or where there is none, anywhere.
    """
    text = clean(line).replace(RESERVED, " ")
    if len(text.encode()) > MOST_LINE_BYTES:
        yield from PIECE.findall(text)
    elif text.strip():
        yield text


def corpus(
    patterns: list[str],
    files: Sequence[str | Path],
    most: int = MOST_LINES,
    report: Callable[[str], Any] = log.info,
) -> list[str]:
    r"""The captions and interleaved texts of shards, and the lines of text files.

    Of more than `most` lines, an equal share of each pattern and file, drawn at random; what one
    of them lacks, the others give. The lines are in the order of the sources. Those of UTF-8 files
    end at \n alone. `report` is told how much of each source was read.
    """
    sources: list[_Samples | _Lines] = [*map(_Samples, patterns)]
    sources += [_Lines(path, most) for given in files for path in _named(str(given))]
    drawn: list[tuple[int, Place, str]] = []
    open_ = {number: source.draw() for number, source in enumerate(sources)}
    with tqdm(desc="reading texts", unit="line", disable=None) as bar:
        while open_ and len(drawn) < most:
            for number in list(open_)[: most - len(drawn)]:
                if line := next(open_[number], None):
                    drawn.append((number, *line))
                    bar.update()
                else:
                    del open_[number]
    counts = Counter(number for number, _, _ in drawn)
    for number, source in enumerate(sources):
        report(f"{source.name}: {counts[number]:,} lines of {source.told()}")
    return [line for _, _, line in sorted(drawn)]


def _named(pattern: str) -> list[str]:
    found = storage.expand(pattern, beside=True)
    if found != [pattern]:
        found = [path for path in found if not os.path.isdir(path)]
    if not found:
        told = storage.beside(pattern)
        raise UserError(f"text {pattern}: cannot be read (no such file; {told})")
    return found


class _Samples:
    """The texts of shards in a random order; no more samples are read than are needed."""

    def __init__(self, pattern: str) -> None:
        self.name, self.shards = pattern, Shards(pattern)
        self.read = self.damaged = 0

    def draw(self) -> Iterator[tuple[Place, str]]:
        random = generator("tokenizer", self.name)
        order = random.permutation(len(self.shards))
        for start in range(0, len(order), CHUNK):
            # Read in the shards' order, which disks like; then mixed.
            lines = [
                ((number, n), line)
                for number in sorted(order[start : start + CHUNK].tolist())
                for n, line in enumerate(self._texts(number))
                if line.strip()
            ]
            for n in random.permutation(len(lines)):
                yield lines[n]

    def told(self) -> str:
        if self.damaged:
            log.warning("%s: %d damaged samples were passed over", self.name, self.damaged)
        return f"{self.read:,} of its {len(self.shards):,} samples"

    def _texts(self, number: int) -> list[str]:
        self.read += 1
        try:
            return list(texts(self.shards.sample(number, only=("json", "txt")).json()))
        except CorruptSample:
            self.damaged += 1
            return []


class _Lines:
    """At most `most` lines of a text file in a random order; it is read once, as a pipe can be."""

    def __init__(self, name: str, most: int) -> None:
        self.name, self.most, self.count = name, most, 0

    def draw(self) -> Iterator[tuple[Place, str]]:
        # Each line gets a random number; those with the lowest are kept.
        random = generator("tokenizer", Path(self.name).name)
        with user_error(f"text {self.name}: cannot be read as UTF-8", OSError, ValueError):
            kept = heapq.nsmallest(self.most, ((random.random(), *line) for line in self._all()))
        for _, number, line in kept:
            yield (number, 0), line

    def told(self) -> str:
        return f"its {self.count:,}"

    def _all(self) -> Iterator[tuple[int, str]]:
        with open(self.name, "rb") as file:
            first = begin(file.readline(), f"text {self.name}")
            for line in chain([first], file):
                if (text := line.decode().rstrip("\r\n")).strip():
                    yield self.count, text
                    self.count += 1


def texts(facts: dict[str, Any]) -> Iterator[str]:
    """All that a sample says in words: its captions, and the texts of its content."""
    captions, content = facts.get("captions"), facts.get("content")
    for caption in captions if isinstance(captions, list) else []:
        if isinstance(caption, str):
            yield " ".join(caption.split())
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict):
            yield from (part[k] for k in ("text", "answer") if isinstance(part.get(k), str))
