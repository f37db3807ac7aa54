"""Documents are split within limits, and the pieces are the document."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from mmfusion.codecs.text import Tokenizer
from mmfusion.data_pipelines.converters.interleaved_formats import (
    Document,
    ImageItem,
    Item,
    TextItem,
)
from mmfusion.data_pipelines.converters.splitting import ENDS, Limits, split
from mmfusion.errors import UserError

WORDS = "a number. digit! drawn in white, 数字。 \n\n x" + "y" * 40


def random_text(rng: random.Random) -> str:
    """Of any length, with sentences, lines, no spaces at all, or little else."""
    match rng.randrange(4):
        case 0:
            return "".join(rng.choice("ab .\n。é🙂") for _ in range(rng.randrange(1, 400)))
        case 1:
            return "x" * rng.randrange(1, 300)
        case _:
            return " ".join(rng.choice(WORDS.split(" ")) for _ in range(rng.randrange(1, 120)))


def random_parts(rng: random.Random) -> list[Item]:
    learned = rng.choice([(0.0, 0.5), (1.0, 1.0), (0.5, 0.0), (0.2, 0.2)])
    parts: list[Item] = []
    for number in range(rng.randrange(1, 30)):
        if rng.random() < 0.5:
            parts.append(TextItem(random_text(rng), rng.random() < learned[0]))
        else:
            parts.append(ImageItem(f"{number}", learned=rng.random() < learned[1]))
    return parts


def flat(parts: Sequence[Item]) -> list:
    """What parts say, a character or a picture at a time."""
    said: list = []
    for part in parts:
        said += (
            [part.path] if isinstance(part, ImageItem) else [(c, part.learned) for c in part.text]
        )
    return said


def is_merged(whole: list, first: list[list], second: list[list]) -> bool:
    """Whether two lists of pieces, each in its order, make up the whole."""
    if not whole:
        return not first and not second

    def begins(pieces: list[list]) -> bool:
        return bool(pieces) and whole[: len(pieces[0])] == pieces[0]

    return (begins(first) and is_merged(whole[len(first[0]) :], first[1:], second)) or (
        begins(second) and is_merged(whole[len(second[0]) :], second[1:], first)
    )


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("web", [False, True])
def test_the_pieces_are_the_document(tokenizer: Tokenizer, counted: bool, web: bool):
    rng = random.Random(0)
    several = dropped = 0
    for _ in range(50 if counted else 200):
        parts = random_parts(rng)
        limits = Limits(
            rng.randrange(1, 5), rng.randrange(16, 90), tokenizer.path if counted else None
        )
        count = limits.counter()
        pieces, without = split(parts, limits, count, web)
        several, dropped = several + (len(pieces) > 1), dropped + len(without)
        for piece in pieces + without:
            assert sum(isinstance(part, ImageItem) for part in piece) <= limits.pictures
            said = sum(count(part.text) for part in piece if isinstance(part, TextItem))
            assert said <= limits.tokens
            if web:
                assert not (isinstance(piece[0], ImageItem) and piece[0].learned)
        assert all(any(part.learned for part in piece) for piece in pieces)
        assert not any(part.learned for piece in without for part in piece)
        assert is_merged(flat(parts), list(map(flat, pieces)), list(map(flat, without)))
    assert several > 10
    assert dropped


def text(length: int, learned: bool = True, letter: str = "x") -> TextItem:
    """A text of so many tokens, by the estimate."""
    return TextItem(letter * (3 * (length - ENDS)), learned)


def pic(name: str, learned: bool = True) -> ImageItem:
    return ImageItem(name, learned=learned)


def test_a_document_within_the_limits_stays_whole():
    parts = [text(60), pic("a"), text(40)]
    assert split(parts, Limits(1, 100), Limits().counter()) == ([parts], [])


def test_three_bytes_count_as_a_token_and_a_tokenizer_counts_its_own(tokenizer: Tokenizer):
    count = Limits().counter()
    assert [count(t) - ENDS for t in ("", "abc", "abcd", "数", "\ud800")] == [0, 1, 2, 1, 1]
    assert Limits(tokenizer=tokenizer.path).counter()("a 3") == len(tokenizer.answer("a 3").ids)
    with pytest.raises(UserError, match="no such file"):
        Limits(tokenizer=tokenizer.path.with_name("none.model")).counter()


@pytest.mark.parametrize(
    "chunks",
    [
        ["One is here. ", "Two is there. ", "And three!"],
        ["one is here and two ", "is there"],
        ["oneisherewithoutanywo", "rdsatall"],
        ["一二三四五六。", "七八九十"],
        ["first line\n\n", "second of them"],
        [" " * 9 + "x" * 12, "x" * 18],
    ],
)
def test_long_texts_are_cut_after_sentences_or_words(chunks: list[str]):
    pieces, _ = split([TextItem("".join(chunks), True)], Limits(tokens=9), Limits().counter())
    assert [part.text for (part,) in pieces if isinstance(part, TextItem)] == chunks  # type: ignore[misc]


def test_what_teaches_nothing_goes_with_a_neighbour_or_is_left_out():
    count, limits = Limits().counter(), Limits(2, 100)
    given, answer = text(60, False), text(60)
    # Alone `given` would teach nothing; with the picture after it, it does.
    pieces, without = split([answer, given, pic("a")], limits, count)
    assert (pieces, without) == ([[answer], [given, pic("a")]], [])
    # The short given text would fit the first piece, but the answer needs it no less.
    short = text(20, False)
    pieces, without = split([given, short, answer], limits, count)
    assert (pieces, without) == ([[short, answer]], [[given]])
    assert split([given, pic("a", False)], limits, count) == ([], [[given, pic("a", False)]])


def test_a_picture_that_opens_a_piece_of_a_page_is_given():
    count, limits = Limits().counter(), Limits(2, 100)
    pages = [pic("a"), text(20, False), pic("b"), text(20, False), pic("c")]
    pieces, without = split(pages, limits, count, web=True)
    # c would be alone with nothing before it, so the cut is before the text.
    assert pieces == [[replace(pic("a"), learned=False), pages[1], pic("b")], pages[3:]]
    assert not without
    # Answers: the picture stays with the one that it is read for.
    pages = [pic("a"), text(60), pic("b"), text(60)]
    pieces, _ = split(pages, limits, count, web=True)
    assert pieces == [[pic("a", False), pages[1]], [pic("b", False), pages[3]]]
    # A target of our own format stays one, but the cut is where something stands before it.
    parts = [text(60), pic("a"), text(60, False), pic("b")]
    assert split(parts, limits, count) == ([parts[:2], parts[2:]], [])
    # Alone it teaches nothing.
    assert split([pic("a")], limits, count, web=True) == ([], [[pic("a", False)]])


def test_neighbouring_texts_of_a_page_become_one():
    parts: list[Item] = [TextItem("a", True), TextItem("b", True), pic("p"), TextItem("c", True)]
    assert Document(parts, glue=" ").joined() == [TextItem("a b", True), *parts[2:]]
    assert Document(parts).joined() == parts
