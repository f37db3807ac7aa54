"""A sentencepiece model from a corpus, with the control symbols of the decoder's sequences."""

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from mmfusion.codecs.text import CONTROL
from mmfusion.errors import UserError


def train_tokenizer(lines: Iterable[str], path: Path, vocabulary: int) -> Path:
    """Train a byte-fallback BPE model of at most `vocabulary` pieces and write it to `path`.

    Raises:
        UserError: the corpus is empty or the vocabulary too small for it.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocabulary,
            model_type="bpe",
            hard_vocab_limit=False,
            byte_fallback=True,
            control_symbols=list(CONTROL),
            character_coverage=0.9995,
            input_sentence_size=1_000_000,
            shuffle_input_sentence=False,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"tokenizer {path}: cannot be trained ({error})") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return path
