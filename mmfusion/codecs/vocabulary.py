"""Two kinds of tokenizer file behind one interface: sentencepiece's and the `tokenizers` library's.

Both are data: nothing in them is ever run.
"""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers

from mmfusion.errors import UserError, user_error
from mmfusion.texts import read_text

FILES = {".model": "tokenizer.model", ".json": "tokenizer.json"}
"""Kinds of tokenizer file, and what each is called inside an exported model."""


def kind(path: str | Path) -> str:
    """Which of `FILES` a tokenizer is, by its name; sentencepiece where the name says nothing."""
    suffix = Path(path).suffix.lower()
    return suffix if suffix in FILES else ".model"


class Vocabulary(ABC):
    """Pieces of text and their ids.

    Attributes:
        size: the largest id and one; some ids below it may be of no piece.
        control: ids that stand for no text.
        mute: ids that say nothing: of unknown text, or of no piece.
        end: id of what ends a text; None without any.
    """

    size: int
    control: frozenset[int]
    mute: frozenset[int]
    end: int | None

    def find(self, symbol: str) -> int | None:
        """The id of a control symbol; None where it is not one."""
        found = self._id(symbol)
        return found if found in self.control else None

    @abstractmethod
    def _id(self, piece: str) -> int | None: ...

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""

    @abstractmethod
    def decode(self, ids: list[int]) -> str:
        """Text of ids; those of control symbols leave no trace."""


class SentencePiece(Vocabulary):
    """A sentencepiece `.model`.

    One without capitals comes of texts without: it reads capitals as the small letters that it
    knows. As bytes, which no text of its training had, they would make a prompt another one.
    """

    def __init__(self, path: Path) -> None:
        self.model = sentencepiece.SentencePieceProcessor()
        with user_error(f"tokenizer {path}: cannot be read", OSError):
            data = path.read_bytes()
        try:
            self.model.LoadFromSerializedProto(data)
        except RuntimeError:  # its own words are a place in its source
            raise UserError(f"tokenizer {path}: not a sentencepiece model, or cut short") from None
        self.size = self.model.GetPieceSize()
        self.control = frozenset(filter(self.model.IsControl, range(self.size)))
        self.mute = frozenset(filter(self.model.IsUnknown, range(self.size)))
        end = self.model.eos_id()
        self.end = end if end >= 0 else None
        odd = {*self.control, *self.mute, *filter(self.model.IsByte, range(self.size))}
        pieces = (self.model.IdToPiece(i) for i in range(self.size) if i not in odd)
        self._small = all(piece == piece.lower() for piece in pieces)

    def _id(self, piece: str) -> int:
        return self.model.PieceToId(piece)

    def encode(self, text: str) -> list[int]:
        return self.model.EncodeAsIds(text.lower() if self._small else text)

    def decode(self, ids: list[int]) -> str:
        return self.model.DecodeIds(ids)


class FastTokenizer(Vocabulary):
    """A `tokenizer.json` as transformers' fast tokenizers save it.

    What ends a text is the special token that its template (`post_processor`) puts last.
    """

    def __init__(self, path: Path) -> None:
        # The library raises nothing more special.
        with user_error(f"tokenizer {path}: not a tokenizer.json of `tokenizers`", Exception):
            text = read_text(path)
            described = json.loads(text)
            self.library = tokenizers.Tokenizer.from_str(text)
        self.library.no_truncation()
        self.library.no_padding()
        ids = self.library.get_vocab(with_added_tokens=True).values()
        added = self.library.get_added_tokens_decoder()
        model: dict[str, Any] = described["model"]  # names the unknown piece, or gives its place
        named = model.get("unk_id"), self._id(model.get("unk_token") or "")
        unknown = {i for i in named if i is not None}
        self.size = max(ids, default=-1) + 1
        self.control = frozenset({i for i, token in added.items() if token.special} - unknown)
        self.mute = frozenset(unknown | (set(range(self.size)) - set(ids)))
        template = (described.get("post_processor") or {}).get("single") or [{}]
        self.end = self.find(template[-1].get("SpecialToken", {}).get("id") or "")

    def _id(self, piece: str) -> int | None:
        return self.library.token_to_id(piece)

    def encode(self, text: str) -> list[int]:
        # Special tokens are spelled out, not obeyed. Set anew: a copy or a pickle forgets it.
        self.library.encode_special_tokens = True
        return self.library.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.library.decode(ids, skip_special_tokens=True)
