"""Text and token ids, with control symbols that no user text can produce.

`<text>` begins text that is given, `<answer>` text that is asked for; an answer ends with the
tokenizer's end of text, mostly `</s>`, or with `<image>` where a picture follows it. So the
sequence itself says what is wanted: after a picture, `<answer>` asks for its caption and `<text>`
goes on talking.
"""

import re
from pathlib import Path

from mmfusion.codecs.vocabulary import FastTokenizer, SentencePiece, Vocabulary, kind
from mmfusion.errors import UserError
from mmfusion.sequence import Text

CONTROL = ("<text>", "<answer>", "<image>")
END = "</s>"
# Unicode's category Cc without what is space.
UNSEEN = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")


def clean(text: str) -> str:
    """The text without control characters; half surrogate pairs become U+FFFD."""
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return UNSEEN.sub("", whole)


class Tokenizer:
    """A vocabulary of either kind with this project's control symbols."""

    def __init__(self, path: str | Path) -> None:
        """Load a sentencepiece `.model`, or a `.json` of the tokenizers library."""
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(
                f"tokenizer {path}: no such file; train one with `mmfusion data tokenizer`"
            )
        self.vocabulary: Vocabulary = (
            FastTokenizer(self.path) if kind(path) == ".json" else SentencePiece(self.path)
        )
        ids = [*map(self.vocabulary.find, CONTROL), self.vocabulary.end]
        found = [i for i in ids if i is not None]
        if len(set(found)) < len(ids):
            raise UserError(
                f"tokenizer {path}: lacks the control symbols {' '.join(CONTROL)} or an end of "
                f"text such as {END}; train one with `mmfusion data tokenizer`, or add them with "
                "`mmfusion data tokenizer --take`"
            )
        self.text_id, self.answer_id, self.image_id, self.end_id = found
        odd = self.vocabulary.control | self.vocabulary.mute
        self.unspeakable = sorted(odd - {self.end_id, self.image_id})
        """Ids that an answer never holds: control symbols other than its two ends, and unknown."""

    def __len__(self) -> int:
        return self.vocabulary.size

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; control symbols in it are spelled out, never obeyed.

        Where a taken vocabulary has one of them as a word, it is left out.
        """
        ids = self.vocabulary.encode(clean(text))
        return [i for i in ids if i not in self.vocabulary.control]

    def decode(self, ids: list[int]) -> str:
        """Text of ids; control symbols leave no trace."""
        return self.vocabulary.decode(ids)

    def given(self, text: str) -> Text:
        """A prompt, or any text that is there to be read."""
        return Text([self.text_id, *self.encode(text)])

    def answer(self, text: str, image_follows: bool = False) -> Text:
        """Text to be produced, with its loss; it says whether a picture follows."""
        end = self.image_id if image_follows else self.end_id
        return Text([self.answer_id, *self.encode(text), end], loss=True)
