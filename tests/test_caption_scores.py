"""Caption scores: closed forms, published figures, captions that try to break them, broken Java."""

import gzip
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command

from mmfusion.data_pipelines.converters.digits import captions
from mmfusion.errors import UserError
from mmfusion.eval.captions import java
from mmfusion.eval.captions.coco import pair, read_references, read_results
from mmfusion.eval.captions.scores import METRICS, score
from mmfusion.eval.captions.tokenizers import clean, tokenise

SHARED = Path(__file__).resolve().parents[2] / "shared/data"
COCO, FLICKR = SHARED / "coco_caption_eval", SHARED / "flickr8k_1k"
PYTHON = ["bleu", "rouge_l", "cider"]
needs_java = pytest.mark.skipif(bool(java.lacking()), reason=f"needs {java.lacking()}")

# Each is one caption of a model that has gone wrong.
ADVERSARIAL = [
    "",
    " \t\u3000",
    "a dog\r\nruns\ra\x0bfast\x0cway",
    "two\u2028lines\u2029three\x85four",
    "fields\x1cand\x1drecords\x1e\x1fend",
    "\ud800 half a \udfff pair",
    "nul\x00nul \x1a\x1b[31m \x7f\x9b",
    "||| a dog ||| runs",
    "a|||dog||||||||runs |||",
    "...",
    "?!",
    "'' \" ` `` ' \u201cquoted\u201d \u00abquoted\u00bb",
    "-lrb- ( -RRB- ) [ { -lcb-",
    "\U0001f600 a \U0001f469\u200d\U0001f469\u200d\U0001f467 family \u2764\ufe0f",
    "\u200fa\u200e \u202edog\u202c \u2067runs\u2069",
    "zero\u200bwidth \ufeff \u2060 \u00adsoft",
    "non\uffffchar\ufffe \U000e0001tag \ud7ff\ue000",
    "dog " * 10_000,
    "d" * 100_000,
    '"' * 5_000 + "<" * 5_000,
    '<a href="x',
    "<!-- *NL* &lt;b&gt; <b ",
    "No.",
    "\u0915\u0941\u0924\u094d\u0924\u093e \u72ac\u304c\u8d70\u308b \u043a\u043e\u0442",
    "SCORE EVAL -nan inf \\n \\ %s {} $(x) ;",
]
# Places that the next line could change: "No." before a number, "U.S." before a capital.
ORDINARY = [f"A {a} {b} No." for a in ("red", "blue", "small") for b in ("dog", "cat", "car")] + [
    f"5 {a} people walk to the {b} of the U.S."
    for a in ("young", "old", "tired", "happy")
    for b in ("north", "south", "east", "west")
]


def figure(references: list[list[str]], candidates: list[str]) -> dict[str, Any]:
    return score(references, candidates, ["cider"], "plain").figures["cider"]


def one_each(texts: list[str]) -> list[list[str]]:
    return [[text] for text in texts]


def mixed(texts: list[str], odd: list[str]) -> tuple[list[str], list[int]]:
    """Each odd caption in the place of every second one, and the places of the others."""
    changed = [odd[i // 2] if i % 2 and i // 2 < len(odd) else t for i, t in enumerate(texts)]
    return changed, [i for i, (a, b) in enumerate(zip(texts, changed, strict=True)) if a == b]


TEXTS = (ORDINARY * 3)[:60]
REFERENCES = [[text, f"{text[:-1]} and {TEXTS[i - 1]}"] for i, text in enumerate(TEXTS)]
CANDIDATES = [" ".join(text.split()[i % 4 :]) for i, text in enumerate(TEXTS)]
ODD_CANDIDATES, CLEAN_PLACES = mixed(CANDIDATES, ADVERSARIAL)
ODD_REFERENCES = [
    [text, texts[1]] for text, texts in zip(mixed(TEXTS, ADVERSARIAL)[0], REFERENCES, strict=True)
]


# Cleaning and words


def test_all_white_space_and_control_characters_become_one_space() -> None:
    spaces = "\t\n\v\f\r \x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2009\u2028\u2029\u202f\u205f\u3000"
    spaces += "\x00\x07\x1b\x7f\x9f\ud800\udfff"
    assert clean("".join(f"{space}a" for space in spaces)) == " ".join("a" * len(spaces))
    assert clean(f"{spaces}a b{spaces}") == "a b"
    for text in ADVERSARIAL:
        assert len(clean(text).splitlines()) <= 1
        assert clean(text).encode().decode() == clean(text) == clean(clean(text))


def test_plain_and_spaces() -> None:
    odd = ["It's 2 Dogs!", " a\u2028B ", "...", ""]
    assert tokenise(odd, "plain") == ["it s 2 dogs", "a b", "", ""]
    assert tokenise(odd, "spaces") == ["It's 2 Dogs!", "a B", "...", ""]


@needs_java
def test_ptb_gives_a_caption_the_same_words_whatever_stands_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LC_ALL", "C")  # the words do not depend on the machine's encoding
    mixture = [text for odd in ADVERSARIAL for text in (odd, *ORDINARY[:9], "5 \u00e9t\u00e9s")]
    words = tokenise([*mixture, *mixture[::-1], *ORDINARY], "ptb")
    found: dict[str, set[str]] = {}
    for text, got in zip([*mixture, *mixture[::-1], *ORDINARY], words, strict=True):
        found.setdefault(text, set()).add(got)
    assert all(len(got) == 1 for got in found.values())
    assert found["5 \u00e9t\u00e9s"] == {"5 \u00e9t\u00e9s"}
    assert found["A red dog No."] == {"a red dog no"}
    assert found["..."] == found[" \t\u3000"] == found[""] == {""}
    digits = [text for d in range(10) for text in captions(d)]
    assert tokenise(digits, "ptb") == tokenise(digits, "plain")


@needs_java
def test_ptb_keeps_a_mixed_number_one_word() -> None:
    """With the no-break space that the Java program puts into it, as published scores do."""
    assert tokenise(["Add 1 1/2 cups."], "ptb") == ["add 1\u00a01/2 cups"]


# Scores


def test_cider_of_a_closed_form() -> None:
    # Two pictures without a common word: each is its only reference, with all four n-gram orders.
    texts = ["a b c d", "e f g h"]
    assert figure(one_each(texts), texts)["value"] == pytest.approx(10)
    assert figure(one_each(texts), texts[::-1])["value"] == 0
    # One of two references agrees, the other shares nothing: half.
    two = [[texts[0], "x y z w"], [texts[1], "p q r s"]]
    assert figure(two, texts)["value"] == pytest.approx(5)
    # Only unigrams and one bigram of two words: the orders three and four count 0.
    assert figure([["a b"], ["c d"]], ["a b", "c d"])["value"] == pytest.approx(5)
    # Every word is in all of one documents.
    assert figure([["a b"]], ["a b"])["value"] == 0


def test_bleu_and_rouge_of_closed_forms() -> None:
    found = score([["a b c d e f g h"]], ["a b c d x f g h"], ["bleu", "rouge_l"], "spaces")
    value = {name: entry["value"] for name, entry in found.figures.items()}
    for k, product in enumerate(np.cumprod([7 / 8, 5 / 7, 3 / 6, 1 / 5]), 1):
        assert value[f"bleu_{k}"] == pytest.approx(product ** (1 / k), rel=1e-6)
    assert value["rouge_l"] == pytest.approx(7 / 8)
    assert found.per_picture["rouge_l"] == [value["rouge_l"]]
    # Words that are missing cost BLEU exp(1 - 8/4), and recall: 4/8 with precision 1, beta 1.2.
    short = score([["a b c d e f g h"]], ["a b c d"], ["bleu", "rouge_l"], "spaces").figures
    assert short["bleu_1"]["value"] == pytest.approx(2.718281828**-1, rel=1e-6)
    assert short["rouge_l"]["value"] == pytest.approx(2.44 * 0.5 / (0.5 + 1.44))
    # An empty caption scores nothing, even beside an empty reference.
    found = score([["a dog", "!"], ["a cat"]], ["...", "a cat"], PYTHON, "plain")
    assert all(each[0] == pytest.approx(0, abs=1e-9) for each in found.per_picture.values())
    assert found.per_picture["rouge_l"] == [0, 1]


def test_figures_say_what_they_depend_on() -> None:
    few = figure([captions(d) for d in range(10)], [captions(d)[0] for d in range(10)])
    assert (few["n"], few["tokenizer"]) == (10, "plain")
    assert few["warning"].startswith("CIDEr of 10 pictures")
    assert "do not compare" in few["warning"]
    found = score([["a b"], ["c d"]] * 500, ["a b", "c d"] * 500, PYTHON, "spaces").figures
    assert list(found) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"]
    assert not any("warning" in entry for entry in found.values())


def asked(metric: str, references: list[list[str]], candidates: list[str]) -> Any:
    names = [f"number {i}" for i in range(len(candidates))]
    return METRICS[metric](references, candidates, names)[metric]


def untouched(each: list[float], *others: list[float]) -> None:
    """The scores of the ordinary captions are the same, bit for bit, and are not all zero."""
    assert len(set(each)) > 3
    for other in others:
        assert [each[i] for i in CLEAN_PLACES] == [other[i] for i in CLEAN_PLACES]


@pytest.mark.parametrize("tokenizer", ["plain", "spaces", pytest.param("ptb", marks=needs_java)])
def test_adversarial_captions_touch_no_other_picture(tokenizer: Any) -> None:
    assert len(CANDIDATES) - len(CLEAN_PLACES) == len(ADVERSARIAL) == 25
    ordinary = score(REFERENCES, CANDIDATES, PYTHON, tokenizer).per_picture
    odd = score(REFERENCES, ODD_CANDIDATES, PYTHON, tokenizer).per_picture
    # CIDEr's weights are the references': other references, other weights.
    beside = score(ODD_REFERENCES, CANDIDATES, PYTHON[:2], tokenizer).per_picture
    for name, each in ordinary.items():
        untouched(each, odd[name], beside.get(name, each))


@needs_java
def test_adversarial_captions_touch_no_other_picture_of_meteor() -> None:
    folder = java.JARS
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    references = [*REFERENCES, *REFERENCES, *ODD_REFERENCES]
    references += [["a cat on a mat"], ["a cat on a mat"], ["a cat"], ["one two ||| a cat"]]
    candidates = [*CANDIDATES, *ODD_CANDIDATES, *CANDIDATES]
    candidates += ["a cat on a mat", "a cat on ||||a mat|||", "one two", "a cat"]
    lines = [[clean(text) for text in texts] for texts in references]
    total, each = asked("meteor", lines, [clean(text) for text in candidates])
    n = len(CANDIDATES)
    untouched(each[:n], each[n : 2 * n], each[2 * n : 3 * n])
    assert each[-4:-1] == [1, 1, 0]  # the same words, twice, and none of them
    assert 0 < each[-1] < 0.9  # not one of two references
    assert 0 < total < 1
    # Nothing is written into the package, which may be read-only.
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


PUBLISHED = {
    "bleu_1": 0.5793995754573356,
    "bleu_2": 0.40439129741018104,
    "bleu_3": 0.2785363856619147,
    "bleu_4": 0.1908290437674253,
    "rouge_l": 0.39625269357570847,
    "cider": 0.5997905185184199,
    "meteor": 0.195254671778,
}


@pytest.mark.skipif(not COCO.is_dir(), reason="../shared/data/coco_caption_eval is not here")
@pytest.mark.parametrize("metrics", [PYTHON, pytest.param(["meteor"], marks=needs_java)])
def test_scores_equal_the_published_coco_example(metrics: list[str]) -> None:
    results = read_results(COCO / "captions_val2014_fakecap_results.json")
    known = read_references(COCO / "gts.json")
    names, _ = pair(results, known)
    given = [known[name] for name in names], [results[name] for name in names]
    found = score(*given, metrics, "spaces")
    for name, entry in found.figures.items():
        value = pytest.approx(PUBLISHED[name], abs=1e-12)
        assert entry == {"value": value, "n": 1000, "tokenizer": "spaces"}
        assert len(found.per_picture[name]) == 1000


@needs_java
@pytest.mark.skipif(not FLICKR.is_dir(), reason="../shared/data/flickr8k_1k is not here")
def test_cider_agrees_with_people_as_published() -> None:
    """Flickr8k-Expert: Kendall's tau-c of CIDEr and three people's ratings is 43.9 (CLIPScore)."""
    from scipy.stats import kendalltau

    with gzip.open(FLICKR / "captions_all.jsonl.gz", "rt", encoding="utf-8") as lines:
        known = {row["image"]: row["captions"] for row in map(json.loads, lines)}
    pairs = []
    with gzip.open(FLICKR / "ExpertAnnotations.txt.gz", "rt", encoding="utf-8") as lines:
        for image, caption, *ratings in map(str.split, lines):
            source, _, number = caption.partition("#")
            if source != image:  # such a caption is one of the references
                pairs.append((known[image], known[source][int(number)], ratings))
    assert len(pairs) == 5664
    references, candidates, people = map(list, zip(*pairs, strict=True))
    each = score(references, candidates, ["cider"], "ptb").per_picture["cider"]
    ours = [value for value, ratings in zip(each, people, strict=True) for _ in ratings]
    theirs = [int(rating) for ratings in people for rating in ratings]
    assert kendalltau(ours, theirs, variant="c").statistic == pytest.approx(0.439, abs=5e-4)


def test_score_refuses_what_it_cannot_score() -> None:
    one = [["a"]]
    given: list[tuple[Any, Any, dict[str, Any], str]] = [
        (one, [], {}, "0 captions"),
        (one, ["a", "b"], {}, "2 captions"),
        ([], [], {}, "0 captions"),
        *(([["a"], nothing], ["a", "b"], {}, "picture 1") for nothing in ([], [""], ["?!\u2028"])),
        ([[""]], ["a"], {"names": ["seven"]}, "picture seven"),
        (one, ["a"], {"metrics": ["bleu", "bert"]}, "bert.*bleu, rouge_l, cider, meteor"),
        (one, ["a"], {"tokenizer": "words"}, "words.*auto, ptb, plain, spaces"),
    ]
    for references, candidates, options, key in given:
        with pytest.raises(UserError, match=key):
            score(references, candidates, **{"metrics": PYTHON, "tokenizer": "plain", **options})


# Java that is missing, old, broken or stuck


@pytest.fixture
def fake_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a program named java on the path, which runs these lines; it leaves its process id."""

    def make(lines: str) -> Path:
        (tmp_path / "bin").mkdir(exist_ok=True)
        program, pid = tmp_path / "bin/java", tmp_path / "pid"
        program.write_text(
            f"#!{sys.executable}\n"
            "import json, os, sys, time\n"
            f"open({str(pid)!r}, 'w').write(str(os.getpid()))\n{lines}\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent))
        return pid

    return make


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)


def test_without_java_auto_is_plain_and_what_needs_it_is_left_out(no_java: None) -> None:
    given = [["a dog"], ["a cat"]], ["a dog", "a bird"]
    found = score(*given)
    assert list(found.left_out) == ["meteor"]
    assert all("Java 8" in reason for reason in found.left_out.values())
    assert found.figures == score(*given, PYTHON, "plain").figures
    with pytest.raises(UserError, match=r"ptb needs Java 8 .* `plain`"):
        score(*given, PYTHON, "ptb")
    with pytest.raises(UserError, match="meteor needs Java"):
        score(*given, ["meteor"], "plain")


ANSWERS = "\nfor line in sys.stdin: print('1 ' * 23 if 'SCORE' in line else {})"


@pytest.mark.parametrize(
    ("what", "lines", "key"),
    [
        ("meteor", "time.sleep(60)", "METEOR gave no answer in 1 s.*number 0"),
        ("meteor", "print('no heap', file=sys.stderr)", "METEOR failed: no heap.*number 0"),
        ("meteor", "print('1 ' * 23); sys.exit('broken')", "METEOR failed: broken.*number 1"),
        ("meteor", "print('Error: specify\\n')", "number 0: Error"),
        ("meteor", ANSWERS.format("'NaN\\nNaN\\nNaN'"), "METEOR.*finite"),
        ("meteor", ANSWERS.format("'1\\n1'"), "METEOR.*1 for 2"),
        ("meteor", ANSWERS.format("'1\\n1\\none'"), "METEOR.*one"),
        ("ptb", "time.sleep(60)", "PTB tokenizer gave no answer in 1 s"),
        ("ptb", "sys.exit('no memory')", "PTB tokenizer failed: no memory"),
        ("ptb", "print('a dog\\nx')", "PTB tokenizer.*'a a a"),
        ("ptb", "print('a\\ndog\\nx\\nc\\nx')", "PTB tokenizer.*'a dog'"),
    ],
)
def test_a_program_that_hangs_or_dies_is_an_error_and_leaves_no_process(
    what: str,
    lines: str,
    key: str,
    fake_java: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pid = fake_java(lines)
    monkeypatch.setattr(java, "LIMIT", 1.0 if "in 1 s" in key else 60.0)
    monkeypatch.setattr(java, "A_LINE", 0.0)
    # Longer than a pipe holds: a program that does not read must not block us either.
    texts = ["a dog", "a " * 100_000]
    with pytest.raises(UserError, match=key):
        tokenise(texts, "ptb") if what == "ptb" else asked(what, one_each(texts), texts)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


# Files


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def result(name: Any, caption: Any = "a dog") -> dict[str, Any]:
    return {"image_id": name, "caption": caption}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "captions.json"


def test_references_in_three_forms(file: Path) -> None:
    wanted = {"7": ["a dog", "dogs"], "8": ["a cat"]}
    annotations = [result(7), result("8", "a cat"), result(7, "dogs")]
    write(file, {"images": [{"id": 7}], "annotations": annotations})
    assert read_references(file) == wanted
    write(file, wanted)
    assert read_references(file) == wanted
    images = [
        {"split": "test", "cocoid": 7, "sentences": [{"raw": "a dog"}, {"raw": "dogs"}]},
        *(
            {"split": split, "cocoid": 9, "sentences": [{"raw": "a bird"}]}
            for split in ("train", "restval", "val")
        ),
        {"split": "test", "imgid": 8, "sentences": [{"raw": "a cat"}]},
    ]
    write(file, {"images": images, "dataset": "coco"})
    assert read_references(file) == wanted


@pytest.mark.parametrize(
    ("read", "content", "key"),
    [
        (read_results, "[{", "JSON"),
        (read_results, b"\xff\xfe[", "JSON|UTF"),
        (read_results, "[" * 100_000, "JSON"),
        (read_results, {"7": "a dog"}, "image_id"),
        (read_results, [result(7), result("7", "a cat")], "entry 2.*7"),
        (read_results, [["7", "a dog"]], "entry 1"),
        (read_results, [{"image_id": 7}], "entry 1.*caption"),
        (read_results, [result(7), result(8, ["a dog"])], "entry 2.*caption"),
        *((read_results, [result(name)], "entry 1.*image_id") for name in (7.0, True, None)),
        (read_references, [result(7)], "annotations, Karpathy"),
        (read_references, {"annotations": [{"image_id": 7, "bbox": []}]}, "entry 1.*caption"),
        (read_references, {"7": "a dog"}, "7 .*list"),
        (read_references, {"7": [1]}, "id: "),
        (read_references, {"7": ["a"], "8": []}, "8 has no"),
        (read_references, {"7": ["a"], "8": [" \u2028"]}, "8 has no"),
        (read_references, '{"7": ["a"], "7": ["b"]}', "'7'"),
        (read_references, {"images": [{"split": "test"}]}, "cocoid.*imgid"),
    ],
)
def test_files_that_are_refused(read: Callable, content: Any, key: str, file: Path) -> None:
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        write(file, content)
    with pytest.raises(UserError, match=key) as refused:
        read(file)
    assert str(refused.value).startswith(str(file))


def test_pictures_need_both_unless_partial() -> None:
    references = {"1": ["a"], "2": ["b"], "3": ["c"]}
    results = {"3": "c", "4": "d", "1": "a"}
    for given, partial, key in (
        (results, False, r"1 pictures .*\(2\) and 1 captions .*\(4\).*--partial scores the 2"),
        ({**dict.fromkeys("0456789", "x"), **dict.fromkeys("123", "x")}, False, r"\(0, .* 2 more"),
        ({"x": "a"}, True, r"\(1, 2, 3\) .*\(x\)"),
        ({}, True, "pictures"),
    ):
        with pytest.raises(UserError, match=key):
            pair(given, references, partial)
    left_out = {"pictures without a caption": "1", "captions without references": "1"}
    assert pair(results, references, True) == (["1", "3"], left_out)


# The command


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    results = write(tmp_path / "results.json", [result(i, captions(i)[0]) for i in range(9)])
    return results, write(tmp_path / "references.json", {str(i): captions(i) for i in range(10)})


def test_the_command_prints_figures_and_writes_files(
    files: tuple[Path, Path], tmp_path: Path, command: Command
) -> None:
    report, lines = tmp_path / "new" / "report.json", tmp_path / "new" / "each.jsonl"
    options = ["--metrics", "bleu,cider", "--tokenizer", "plain"]
    code, out, err = command(
        "eval", "captions", *files, *options, "--partial", "-o", report, "--per-picture", lines
    )
    assert code == 0, err
    assert out.splitlines()[0].split()[:5] == ["BLEU-1", "1", "n", "=", "9"]
    for told in ("tokenizer: plain", "CIDEr of 9 pictures", "pictures without a caption: 1"):
        assert told in out
    written = json.loads(report.read_text())
    assert written["cider"]["n"] == 9
    assert written["left_out"] == {"pictures without a caption": "1"}
    assert written["cider"]["pictures_without_a_caption"] == "1"
    assert len(written["cider"]["results_sha256"]) == 64
    assert len(written["cider"]["references_sha256"]) == 64
    each = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [one["image_id"] for one in each] == [str(i) for i in range(9)]
    mean = sum(one["cider"] for one in each) / 9
    assert mean == pytest.approx(written["cider"]["value"])


def test_the_command_says_what_it_leaves_out_and_refuses_in_one_line(
    files: tuple[Path, Path], no_java: None, command: Command
) -> None:
    code, out, err = command("eval", "captions", *files, "--partial")
    assert code == 0, err
    assert "published scores use the tokenizer ptb" in out
    assert "left out: METEOR: needs Java" in out
    for arguments, key in (
        (files, "--partial"),
        ((*files, "--partial", "--metrics", "bert"), "bert"),
        ((*files, "--partial", "--tokenizer", "ptb"), "ptb needs Java"),
        ((files[0], files[1].parent / "nowhere.json"), "nowhere.json"),
    ):
        code, _, err = command("eval", "captions", *arguments)
        assert (code, err[:7], err.count("\n")) == (2, "error: ", 1)
        assert key in err
