"""A tokenizer that somebody else has trained, with the control symbols of the decoder's sequences.

The symbols come after all of its pieces, so what it had keeps its ids. Only two files are taken for
what they say: a sentencepiece model or a `tokenizer.json`. No code beside them is ever run.
"""

import json
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2 as protobuf
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from mmfusion.codecs.text import CONTROL, END, Tokenizer
from mmfusion.codecs.vocabulary import FILES, FastTokenizer, SentencePiece, kind
from mmfusion.errors import UserError, first_line
from mmfusion.files import write

NAMES = {
    ".model": ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    ".json": ("tokenizer.json",),
}
"""What a folder or a hub's repository calls each kind of tokenizer file."""
SAYS_END = ("tokenizer_config.json", "special_tokens_map.json")


def take_tokenizer(source: str, path: Path) -> Path:
    """Write an existing tokenizer with our control symbols to `path`, whose ending says which kind.

    `source` is a file, a folder that holds one, or a hub id.
    """
    if path.suffix not in FILES:
        raise UserError(
            f"tokenizer {path}: give -o a name that ends in .model (sentencepiece) or .json "
            "(transformers)"
        )
    found = _find(source, path.suffix)
    write(path, _with_json(found) if path.suffix == ".json" else _with_sentencepiece(found))
    Tokenizer(path)
    return path


def _find(source: str, suffix: str) -> Path:
    """The file of that kind."""
    place = Path(source)
    if place.is_file():
        if kind(place) != suffix:
            raise UserError(f"tokenizer {source}: give -o a name that ends in {kind(place)}")
        return place
    if not place.is_dir():
        place = _download(source, suffix)
    for name in NAMES[suffix]:
        if (place / name).is_file():
            return place / name
    raise UserError(
        f"tokenizer {source}: has none of {', '.join(NAMES[suffix])}; give -o the other ending of "
        ".model and .json if it is of the other kind, and save a slow tokenizer of transformers as "
        "a fast one first"
    )


def _download(source: str, suffix: str) -> Path:
    if source.count("/") > 1 or source.startswith((".", "/", "~")):
        raise UserError(f"tokenizer {source}: no such file or folder, and no hub id")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=[*NAMES[suffix], *SAYS_END]))
    except Exception as error:  # the hub's many errors all mean: could not be had
        raise UserError(
            f"tokenizer {source}: no such file or folder, and the hub gave: {first_line(error)}"
        ) from None


def _with_sentencepiece(source: Path) -> bytes:
    """The model with its missing control symbols appended, and made control where they are words.

    Sentencepiece knows the end of text by the name that the model's trainer gave it.
    """
    SentencePiece(source)
    model = protobuf.ModelProto()  # type: ignore[attr-defined]  # made when it is imported
    model.ParseFromString(source.read_bytes())
    if not model.HasField("trainer_spec"):  # it comes last, and what is cut short may still parse
        raise UserError(f"tokenizer {source}: not a whole sentencepiece model; get it anew")
    control = type(model.pieces[0]).CONTROL
    at = {piece.piece: piece for piece in model.pieces}
    for symbol in (*CONTROL, model.trainer_spec.eos_piece):
        piece = at.get(symbol) or model.pieces.add(piece=symbol, score=0)
        piece.type = control
    return model.SerializeToString()


def _with_json(source: Path) -> bytes:
    """The file with our symbols as special tokens, and its end of text in its template."""
    theirs = FastTokenizer(source)
    library = theirs.library
    before = library.get_vocab(with_added_tokens=True)
    end = _end(source, theirs)
    special = [AddedToken(symbol, special=True, normalized=False) for symbol in (*CONTROL, end)]
    library.add_special_tokens(special)
    after = library.get_vocab(with_added_tokens=True)
    moved = [piece for piece, i in before.items() if after.get(piece) != i]
    if moved or len(set(after.values())) < len(after):
        raise UserError(
            f"tokenizer {source}: its ids have gaps, so that the control symbols find no place "
            "after them; take another one"
        )
    library.post_processor = TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, after[end])]
    )
    return library.to_str(pretty=True).encode()


def _end(source: Path, theirs: FastTokenizer) -> str:
    """What ends a text: as the files beside it say, or its template, or else END."""
    for name in SAYS_END:
        try:
            said = json.loads((source.parent / name).read_bytes())["eos_token"]
            end = said["content"] if isinstance(said, dict) else said
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(end, str) and theirs.library.token_to_id(end) is not None:
            return end
    return END if theirs.end is None else theirs.library.id_to_token(theirs.end) or END
