"""Tokenizers: trained here, or taken from elsewhere; either way no user writes a control symbol."""

import io
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from helpers import model_config, picture, random_decoder
from material import encoded, run, save
from ranks import launch
from sentencepiece import sentencepiece_model_pb2 as protobuf
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library
from transformers import PreTrainedTokenizerFast

from mmfusion import Pipeline
from mmfusion.codecs.text import CONTROL, Tokenizer
from mmfusion.config import load
from mmfusion.data_pipelines.converters.digits import captions
from mmfusion.data_pipelines.import_tokenizer import take_tokenizer
from mmfusion.data_pipelines.preflight import check_data
from mmfusion.data_pipelines.shards import write_shards
from mmfusion.data_pipelines.tokenizer import corpus, train_tokenizer
from mmfusion.errors import UserError
from mmfusion.export import export

LINES = [line for label in range(10) for line in captions(label)]
TYPED = (
    "<answer>", "</s> a <image> b", "<text><s>", "<|im_end|> seven", "<|im_start|>user", "<pad>",
)  # fmt: skip


def sentencepiece_model(path: Path, kind: str = "unigram", **options: Any) -> Path:
    """A sentencepiece model that knows nothing of our symbols."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(LINES), model_writer=model, vocab_size=330, model_type=kind,
        hard_vocab_limit=False, num_threads=1, minloglevel=2, **options,
    )  # fmt: skip
    return save(path, model.getvalue())


def library(folder: Path, end: str | None = "<|im_end|>", **added: bool) -> Library:
    """A byte-level BPE as transformers saves it, for texts of at most 4 tokens padded to 8."""
    made = Library(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<|im_start|>", "<|im_end|>"], show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(LINES, trainer)
    for content, special in added.items():
        made.add_tokens([AddedToken(f"<{content}>", special=special)])
    made.enable_truncation(4)
    made.enable_padding(length=8, pad_token="<pad>")
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=end, pad_token="<pad>")
    fast.save_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A taken tokenizer.json."""
    folder = tmp_path_factory.mktemp("fast")
    library(folder / "theirs")
    return take_tokenizer(str(folder / "theirs"), folder / "ours.json")


# Trained here


def test_a_tokenizer_is_trained_from_shards_and_text(tmp_path: Path):
    content = [{"text": "delta"}, {"answer": "eps"}, {"image": "0.png"}]
    samples: list[tuple[str, dict[str, Any]]] = [
        ("0", {"json": {"captions": ["alpha beta", "gamma"]}, "png": encoded(0)}),
        ("1", {"json": {"content": content}}),
        ("2", {"txt": b"zeta"}),
    ]
    write_shards(tmp_path, "a", samples)
    text = save(tmp_path / "more.txt", b"eta\ntheta\n")
    lines = list(corpus([f"{tmp_path}/a-*.tar"], [text]))
    assert lines == ["alpha beta", "gamma", "delta", "eps", "zeta", "eta", "theta"]
    model = Tokenizer(train_tokenizer(lines, tmp_path / "t.model", 300))
    assert model.decode(model.encode("theta gamma")) == "theta gamma"
    with pytest.raises(UserError, match="cannot be trained"):
        train_tokenizer([" "], tmp_path / "t.model", 300)
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        list(corpus([], [tmp_path / "none.txt"]))
    with pytest.raises(UserError, match=r"a name that ends in \.model"):
        train_tokenizer(lines, tmp_path / "t.json", 300)


def test_a_vocabulary_without_capitals_reads_them_as_small_letters(tmp_path: Path):
    small = Tokenizer(train_tokenizer(LINES, tmp_path / "small.model", 300))
    assert small.encode("A Handwritten SEVEN") == small.encode("a handwritten seven")
    both = Tokenizer(train_tokenizer([*LINES, *["Seven"] * 9], tmp_path / "both.model", 300))
    assert both.encode("Seven") != both.encode("seven")
    assert both.decode(both.encode("Seven")) == "Seven"


def test_a_large_corpus_gives_random_lines_an_equal_share_of_each_source(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for name, count in (("a", 3000), ("b", 3000), ("c", 20)):
        samples = [(f"{n:04}", {"json": {"captions": [f"{name} {n}"]}}) for n in range(count)]
        write_shards(tmp_path, name, samples, per_shard=1000)
    text = save(tmp_path / "d.txt", "".join(f"d {n}\n\n" for n in range(9000)).encode())
    patterns = [f"{tmp_path}/{name}-*.tar" for name in "abc"]
    said: list[str] = []
    lines = corpus(patterns, [text], 320, said.append)
    assert lines == corpus(patterns, [text], 320)
    assert len(lines) == len(set(lines)) == 320
    for name, count in (("a", 100), ("b", 100), ("c", 20), ("d", 100)):
        numbers = [int(line[2:]) for line in lines if line[0] == name]
        most = {"c": 20, "d": 9000}.get(name, 3000)
        assert len(numbers) == count
        assert numbers == sorted(numbers)
        assert abs(sum(numbers) / count / most - 0.5) < 0.15  # of all, not of the beginning
    assert said == [
        f"{patterns[0]}: 100 lines of 1,024 of its 3,000 samples",
        f"{patterns[1]}: 100 lines of 1,024 of its 3,000 samples",
        f"{patterns[2]}: 20 lines of 20 of its 20 samples",
        f"{text}: 100 lines of its 9,000",
    ]
    assert not caplog.text


def test_damaged_samples_are_passed_over_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    samples = [("a", {"json": b"{"}), ("b", {"txt": b"good"}), ("c", {"json": b"[1]"})]
    write_shards(tmp_path, "a", samples)
    assert corpus([f"{tmp_path}/a-*.tar"], []) == ["good"]
    assert "2 damaged samples were passed over" in caplog.text


# Taken


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("tokenizer.model", "bpe", {"byte_fallback": True}),
        ("spiece.model", "unigram", {"eos_id": -1}),
        ("spiece.model", "unigram", {"eos_piece": "<eos>", "user_defined_symbols": ["<image>"]}),
    ],
)
def test_a_sentencepiece_model_gets_our_symbols_after_its_own(
    tmp_path: Path, name: str, kind: str, options: dict
):
    theirs = sentencepiece_model(tmp_path / "theirs" / name, kind, **options)
    before = sentencepiece.SentencePieceProcessor(model_file=str(theirs))
    ours = Tokenizer(take_tokenizer(str(theirs.parent), tmp_path / "ours.model"))
    new = len(CONTROL) + (before.eos_id() < 0) - ("user_defined_symbols" in options)
    assert len(ours) == len(before) + new
    old = ours.vocabulary.model  # type: ignore[attr-defined]
    assert [old.IdToPiece(i) for i in range(len(before))] == before.IdToPiece(
        list(range(len(before)))
    )
    assert ours.end_id == (before.eos_id() if before.eos_id() >= 0 else len(ours) - 1)
    assert old.IdToPiece(ours.end_id) == options.get("eos_piece", "</s>")
    for line in (*LINES, "zürich"):  # no byte fallback: ü is unknown, and stays so
        assert ours.encode(line) == before.EncodeAsIds(line)
    control = ours.vocabulary.control
    for words in TYPED:
        assert not set(ours.encode(words)) & control
    assert before.unk_id() in ours.unspeakable
    again = take_tokenizer(str(tmp_path / "ours.model"), tmp_path / "again.model")
    assert again.read_bytes() == (tmp_path / "ours.model").read_bytes()


@pytest.mark.parametrize("end", ["<|im_end|>", None])
def test_a_tokenizer_json_gets_our_symbols_after_its_own(tmp_path: Path, end: str | None):
    """Where `<image>` is one of its words already, it becomes ours and keeps its id."""
    before = library(tmp_path / "theirs", end, image=False, think=False)
    ours = Tokenizer(take_tokenizer(str(tmp_path / "theirs"), tmp_path / "ours.json"))
    kept = before.get_vocab()
    assert ours.image_id == kept["<image>"]
    new = ["<text>", "<answer>"] + ["</s>"] * (end is None)
    assert len(ours) == len(kept) + len(new)
    assert ours.end_id == (kept[end] if end else len(ours) - 1)
    assert sorted([ours.text_id, ours.answer_id]) == [len(kept), len(kept) + 1]
    before.no_truncation()
    before.no_padding()
    for line in LINES:
        assert ours.encode(line) == before.encode(line).ids
        assert ours.decode(ours.encode(line)) == line
    again = take_tokenizer(str(tmp_path / "ours.json"), tmp_path / "again/tokenizer.json")
    assert Tokenizer(again).text_id == ours.text_id
    assert (Tokenizer(again).end_id, len(Tokenizer(again))) == (ours.end_id, len(ours))


def test_users_cannot_write_control_symbols(fast: Path):
    tokenizer = Tokenizer(fast)
    control = tokenizer.vocabulary.control
    assert len(control) == 6  # <pad>, two of a chat, our three
    for ours in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        for words in TYPED:
            given = ours.given(words)
            assert given.ids[0] == ours.text_id
            assert not set(given.ids[1:]) & control
            assert ours.decode(given.ids) == words
            answer = ours.answer(words)
            assert (answer.ids[0], answer.ids[-1]) == (ours.answer_id, ours.end_id)
            assert ours.decode(answer.ids) == words
    assert set(tokenizer.unspeakable) == control - {tokenizer.end_id, tokenizer.image_id}


def test_control_symbols_that_are_words_of_the_vocabulary_are_left_out(tmp_path: Path):
    words = {"a": 0, "dog": 1, "[UNK]": 2, "<image>": 3, "<answer>": 4}
    made = Library(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    save(tmp_path / "words.json", made.to_str().encode())
    ours = Tokenizer(take_tokenizer(str(tmp_path / "words.json"), tmp_path / "ours.json"))
    assert (ours.image_id, ours.answer_id, len(ours)) == (3, 4, 7)
    assert ours.encode("a <image> dog <answer> </s> <text> b") == [0, 1, 2, 2, 2]
    assert 2 in ours.unspeakable


def test_ids_of_no_piece_are_never_said_and_no_id_is_given_twice(tmp_path: Path):
    def words(**ids: int) -> str:
        made = Library(models.WordLevel(ids, unk_token="a"))
        return str(save(tmp_path / "gap.json", made.to_str().encode()))

    ours = Tokenizer(take_tokenizer(words(a=0, b=1, c=2, d=9), tmp_path / "ours.json"))
    assert len(ours) == 10
    assert {ours.text_id, ours.answer_id, ours.image_id, ours.end_id} == {4, 5, 6, 7}
    assert ours.unspeakable == sorted({0, 3, 8, ours.text_id, ours.answer_id})
    with pytest.raises(UserError, match="its ids have gaps"):
        take_tokenizer(words(a=0, b=5), tmp_path / "ours.json")


# What is wrong


def test_what_cannot_be_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    library(tmp_path / "fast")
    sentencepiece_model(tmp_path / "slow/spiece.model")
    save(tmp_path / "gpt/vocab.json", b"{}")
    save(tmp_path / "gpt/run_me.py", b"raise SystemExit('it was run')")
    cut = (tmp_path / "fast/tokenizer.json").read_bytes()[:900]
    save(tmp_path / "cut.json", cut)
    whole = (tmp_path / "slow/spiece.model").read_bytes()
    save(tmp_path / "cut.model", whole[:-1])
    pieces = protobuf.ModelProto.FromString(whole)  # as it is when cut between two pieces
    pieces.ClearField("trainer_spec")
    save(tmp_path / "pieces.model", pieces.SerializeToString())
    save(tmp_path / "list.json", b"[1]")
    save(tmp_path / "zero.json", b"\xff\0")

    def offline(*_: Any, **options: Any) -> str:
        asked.append(options["allow_patterns"])
        raise OSError("no network\nand more")

    asked: list[list[str]] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    for source, output, said in (
        ("fast", "t.txt", r"a name that ends in \.model .* or \.json"),
        ("fast", "t.model", r"has none of tokenizer\.model, .* other ending"),
        ("slow", "t.json", r"has none of tokenizer\.json; .* other ending"),
        ("slow/spiece.model", "t.json", r"a name that ends in \.model"),
        ("gpt", "t.json", r"has none of .*slow tokenizer"),
        ("cut.json", "t.json", r"cut\.json: not a tokenizer\.json"),
        ("list.json", "t.json", r"list\.json: not a tokenizer\.json"),
        ("zero.json", "t.json", r"zero\.json: not a tokenizer\.json"),
        ("cut.model", "t.model", r"cut\.model: not a sentencepiece model, or cut short$"),
        ("pieces.model", "t.model", r"pieces\.model: not a whole sentencepiece model"),
        ("none", "t.json", r"no such file or folder, and no hub id"),
    ):
        with pytest.raises(UserError, match=said):
            take_tokenizer(str(tmp_path / source), tmp_path / "out" / output)
    assert not (tmp_path / "out").exists()
    assert not asked
    with pytest.raises(UserError, match=r"the hub gave: no network$"):
        take_tokenizer("somebody/model", tmp_path / "out/t.json")
    assert asked == [["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]]


def test_what_is_no_tokenizer_of_ours_is_refused(tmp_path: Path, fast: Path):
    theirs = sentencepiece_model(tmp_path / "theirs.model")
    library(tmp_path / "fast")
    damaged = save(tmp_path / "damaged.json", fast.read_bytes()[:-100])
    lacking = json.loads(fast.read_text())
    lacking["post_processor"] = None
    lacking = save(tmp_path / "lacking.json", json.dumps(lacking).encode())
    for path, said in (
        (theirs, r"theirs\.model: lacks .*--take"),
        (tmp_path / "fast/tokenizer.json", r"tokenizer\.json: lacks .*--take"),
        (lacking, r"lacking\.json: lacks .* an end of text"),
        (damaged, r"damaged\.json: not a tokenizer\.json"),
        (tmp_path / "none.json", "no such file; train one"),
    ):
        with pytest.raises(UserError, match=said):
            Tokenizer(path)


def test_the_command_takes_or_trains(tmp_path: Path, capsys: pytest.CaptureFixture):
    library(tmp_path / "fast")
    take = ["data", "tokenizer", "--take", tmp_path / "fast", "-o", tmp_path / "t.json"]
    for _ in range(2):
        assert run(*take) == 0
        assert f"wrote {tmp_path}/t.json" in capsys.readouterr().out
    assert run(*take, "--text", tmp_path / "a.txt") == 2
    assert "--take trains nothing" in capsys.readouterr().err
    assert run("data", "tokenizer", "-o", tmp_path / "t.model") == 2
    assert "--shards or --text to train it from, or --take" in capsys.readouterr().err


def test_captions_made_of_classes_are_read_only_where_there_is_nothing_else():
    sources = load("mm_xl").data.sources
    classes = next(s.shards for s in sources if s.task == "class_to_image")
    worded = [n for n, s in enumerate(sources) if s.task != "class_to_image"]

    def command(numbers: list[int]) -> str:
        """What is told where these sources are read from the shards with classes."""
        changes = [f"data.sources.{n}.shards={classes}" for n in numbers]
        with pytest.raises(UserError) as missing:
            check_data(load("mm_xl", changes), "mm_xl")
        (line,) = (line for line in str(missing.value).split("\n") if "data tokenizer" in line)
        return line

    some = command(worded[:1])
    assert classes not in some
    assert all(f'--shards "{sources[n].shards}"' in some for n in worded[1:])
    assert f'data tokenizer --shards "{classes}" -o' in command(worded)


# In a model


def test_a_model_with_a_tokenizer_json_is_exported_whole(fast: Path, tmp_path: Path):
    tokenizer = Tokenizer(fast)
    config = model_config(text={"tokenizer": str(fast)})
    decoder = random_decoder(config, len(tokenizer))
    export(config, decoder.state_dict(), tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").glob("token*")) == ["tokenizer.json"]
    pipe = Pipeline.from_pretrained(tmp_path / "model")
    assert pipe.tokenizer is not None
    assert pipe.tokenizer.path.parent == tmp_path / "model"
    assert pipe.tokenizer.encode("a handwritten seven") == tokenizer.encode("a handwritten seven")
    spoken: list[int] = []
    decode = pipe.tokenizer.decode
    pipe.tokenizer.decode = lambda ids: spoken.extend(ids) or decode(ids)  # type: ignore
    pipe.image_to_text([picture(0), picture(1)], temperature=1.0, max_new_tokens=12)
    assert spoken
    assert not set(spoken) & tokenizer.vocabulary.control


def test_a_run_with_a_tokenizer_json(fast: Path, digits_data: Path, tmp_path: Path):
    shards = ["train-*.tar"] * 3 + ["interleaved-*.tar"]
    output = tmp_path / "run"
    launch([
        sys.executable, "train.py", "--config", "tiny", f"train.output={output}",
        f"text.tokenizer={fast}", "row_length=160", "train.steps=2",
        *(f"data.sources.{i}.shards={digits_data}/{name}" for i, name in enumerate(shards)),
    ])  # fmt: skip
    pipe = Pipeline.from_pretrained(output)
    assert pipe.tokenizer is not None
    assert len(pipe.tokenizer) == len(Tokenizer(fast))
    assert isinstance(pipe.image_to_text([picture(0)])[0], str)
    assert pipe.text_to_image("a handwritten <image> seven", seed=0).size == (8, 8)


@pytest.mark.parametrize(
    "line",
    [
        "abend morgen " * 400,
        "abendmorgen" * 500,
        "abend \u2585 morgen",  # sentencepiece's mark of unknown text
        "abend \x00 morgen",
        "abend \ud800 morgen",  # half a pair
    ],
)
def test_all_lines_are_trained_from(tmp_path: Path, line: str):
    lines = [*["red blue"] * 5, *[line] * 100]
    model = Tokenizer(train_tokenizer(lines, tmp_path / "t.model", 400))
    assert len(model.encode("abend")) <= 2


def test_more_pieces_than_lines_are_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmfusion.data_pipelines.tokenizer.MOST_LINES", 101)
    lines = ["green grass " * 1000, *["rose"] * 90, *["violet"] * 50]
    model = Tokenizer(train_tokenizer(lines, tmp_path / "t.model", 400))
    assert len(model.encode("violet")) == 1


def test_lines_of_a_text_end_at_newlines_alone(tmp_path: Path):
    data = b"\xef\xbb\xbfone\xe2\x80\xa8still\r\n\r\ntwo\x0b\x0c\xc2\x85 \r too\nthree"
    save(tmp_path / "[1] a.txt", data)
    save(tmp_path / "b.txt", b"four\n")
    said: list[str] = []
    lines = corpus([], [f"{tmp_path}/[1] a.txt", f"{tmp_path}/b*.txt"], report=said.append)
    assert lines == ["one\u2028still", "two\x0b\x0c\x85 \r too", "three", "four"]
    assert "3 lines of its 3" in said[0]
    for name in ("lost", "wiki.part", "names.index", "deep/er"):  # no shards, so none stands beside
        save(tmp_path / "c" / name, name.encode())
    assert sorted(corpus([], [f"{tmp_path}/c/*"])) == ["lost", "names.index", "wiki.part"]
    with pytest.raises(UserError, match=r"w\.txt: is UTF-16"):
        corpus([], [save(tmp_path / "w.txt", "eins\n".encode("utf-16-le"))])


def test_a_vocabulary_that_is_too_small_is_told_the_least(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"of 5 pieces is too small.*give \d+ or more"):
        train_tokenizer(["a dog and a cat"], tmp_path / "t.model", 5)
