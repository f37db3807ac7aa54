"""Text and token ids: sentencepiece, with control symbols that no user text can produce.

`<text>` begins text that is given, `<answer>` text that is asked for; an answer ends with `</s>`,
or with `<image>` where a picture follows it. So the sequence itself says what is wanted: after a
picture, `<answer>` asks for its caption and `<text>` goes on talking.
"""

import re
from pathlib import Path

import sentencepiece

from mmfusion.errors import UserError
from mmfusion.sequence import Text

CONTROL = ("<text>", "<answer>", "<image>")
# Unicode's category Cc without what is space.
UNSEEN = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")


def clean(text: str) -> str:
    """The text without control characters; half surrogate pairs become U+FFFD."""
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return UNSEEN.sub("", whole)


class Tokenizer:
    """A sentencepiece model with this project's control symbols."""

    def __init__(self, path: str | Path) -> None:
        """Load a `.model` file.

        Raises:
            UserError: no such file, not a sentencepiece model, or one without the control symbols.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(
                f"tokenizer {path}: no such file; train one with `mmfusion data tokenizer`"
            )
        self.model = sentencepiece.SentencePieceProcessor()
        try:
            self.model.LoadFromSerializedProto(self.path.read_bytes())
        except RuntimeError as error:
            raise UserError(f"tokenizer {path}: not a sentencepiece model ({error})") from None
        ids = [self.model.PieceToId(symbol) for symbol in CONTROL]
        if not all(self.model.IsControl(i) for i in ids) or self.model.eos_id() < 0:
            raise UserError(
                f"tokenizer {path}: lacks the control symbols {' '.join(CONTROL)} or </s>; "
                "train one with `mmfusion data tokenizer`"
            )
        self.text_id, self.answer_id, self.image_id = ids
        self.end_id: int = self.model.eos_id()

    def __len__(self) -> int:
        return self.model.GetPieceSize()

    @property
    def unspeakable(self) -> list[int]:
        """Ids that an answer never holds: control symbols other than its two ends, and unknown."""
        ends = {self.end_id, self.image_id}
        odd = (i for i in range(len(self)) if self.model.IsControl(i) or self.model.IsUnknown(i))
        return [i for i in odd if i not in ends]

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; control symbols in it are spelled out, never obeyed."""
        return self.model.EncodeAsIds(clean(text))

    def decode(self, ids: list[int]) -> str:
        """Text of ids; control symbols leave no trace."""
        return self.model.DecodeIds(ids)

    def given(self, text: str) -> Text:
        """A prompt, or any text that is there to be read."""
        return Text([self.text_id, *self.encode(text)])

    def answer(self, text: str, image_follows: bool = False) -> Text:
        """Text to be produced, with its loss; it says whether a picture follows."""
        end = self.image_id if image_follows else self.end_id
        return Text([self.answer_id, *self.encode(text), end], loss=True)
