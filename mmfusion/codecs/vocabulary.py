"""Two kinds of tokenizer file behind one interface: sentencepiece's and the `tokenizers` library's.

Both are data: nothing in them is ever run.
"""

import json
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
import tokenizers

from mmfusion.errors import UserError, first_line
from mmfusion.texts import read_text

FILES = {".model": "tokenizer.model", ".json": "tokenizer.json"}
"""Kinds of tokenizer file, and what each is called inside an exported model."""


def kind(path: str | Path) -> str:
    """Which of `FILES` a tokenizer is, by its name; sentencepiece where the name says nothing."""
    suffix = Path(path).suffix.lower()
    return suffix if suffix in FILES else ".model"


class Vocabulary(Protocol):
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

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""

    def decode(self, ids: list[int]) -> str:
        """Text of ids; those of control symbols leave no trace."""


class SentencePiece:
    """A sentencepiece model."""

    def __init__(self, path: Path) -> None:
        """Load a `.model` file."""
        self.model = sentencepiece.SentencePieceProcessor()
        try:
            self.model.LoadFromSerializedProto(path.read_bytes())
        except (RuntimeError, OSError) as error:
            raise UserError(f"tokenizer {path}: not a sentencepiece model ({error})") from None
        self.size: int = self.model.GetPieceSize()
        self.control = frozenset(filter(self.model.IsControl, range(self.size)))
        self.mute = frozenset(filter(self.model.IsUnknown, range(self.size)))
        end = self.model.eos_id()
        self.end: int | None = end if end >= 0 else None

    def find(self, symbol: str) -> int | None:
        found = self.model.PieceToId(symbol)
        return found if found in self.control else None

    def encode(self, text: str) -> list[int]:
        return self.model.EncodeAsIds(text)

    def decode(self, ids: list[int]) -> str:
        return self.model.DecodeIds(ids)


class FastTokenizer:
    """A `tokenizer.json` as transformers' fast tokenizers save it.

    What ends a text is the special token that its template (`post_processor`) puts last.
    """

    def __init__(self, path: Path) -> None:
        """Load a `.json` file."""
        self.library, described = _read_json(path)
        ids = self.library.get_vocab(with_added_tokens=True).values()
        added = self.library.get_added_tokens_decoder()
        special = {i for i, token in added.items() if token.special}
        unknown = _unknown(self.library, described["model"])
        self.size = max(ids, default=-1) + 1
        self.control = frozenset(special - unknown)
        self.mute = frozenset(unknown | (set(range(self.size)) - set(ids)))
        end = _last(described)
        self.end: int | None = self.find(end) if end else None

    def find(self, symbol: str) -> int | None:
        found = self.library.token_to_id(symbol)
        return found if found in self.control else None

    def encode(self, text: str) -> list[int]:
        # Special tokens are spelled out, not obeyed. Set anew: a copy or a pickle forgets it.
        self.library.encode_special_tokens = True
        return self.library.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.library.decode(ids, skip_special_tokens=True)


def _read_json(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """A `tokenizer.json` that cuts and pads nothing, and what the file says."""
    try:
        text = read_text(path)
        described = json.loads(text)
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more special
        raise UserError(
            f"tokenizer {path}: not a tokenizer.json of the tokenizers library "
            f"({first_line(error)})"
        ) from None
    library.no_truncation()
    library.no_padding()
    return library, described


def _unknown(library: tokenizers.Tokenizer, model: dict[str, Any]) -> set[int]:
    """The id of unknown text, named by a piece or, in unigram models, by its place."""
    found = {model.get("unk_id"), library.token_to_id(model.get("unk_token") or "")}
    return {i for i in found if i is not None}


def _last(described: dict[str, Any]) -> str | None:
    """The special token that the template puts after a text."""
    parts = (described.get("post_processor") or {}).get("single") or [{}]
    return parts[-1].get("SpecialToken", {}).get("id")
