"""What is asked of a corpus, and figures that the directions work out themselves, by hand."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import picture
from material import encoded

from mmfusion.config.evaluation import ClassToImage, EvaluationConfig
from mmfusion.data_pipelines.shards import write_shard, write_shards
from mmfusion.errors import UserError
from mmfusion.eval import formatting, tasks
from mmfusion.eval.captioned_dataset import CaptionedDataset
from mmfusion.eval.extractors import PixelExtractor
from mmfusion.eval.own import with_pictures
from mmfusion.generation.likelihood import Likelihood


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures; picture i has the captions `i.0` to `i.i`."""
    folder = tmp_path_factory.mktemp("corpus")
    samples = (
        (f"{i}", {"json": {"captions": [f"{i}.{k}" for k in range(i + 1)]}, "png": encoded(i)})
        for i in range(5)
    )
    write_shards(folder, "x", samples, per_shard=2)
    return folder


@pytest.fixture
def corpus(shards: Path) -> CaptionedDataset:
    return CaptionedDataset(str(shards / "*.tar"))


def test_prompts_take_all_pictures_in_turn(corpus: CaptionedDataset) -> None:
    prompts = corpus.prompts(12, seed=3)
    assert len(prompts) == 12
    for turn in (prompts[:5], prompts[5:10]):
        assert sorted(prompt[0] for prompt in turn) == list("01234")
    order = [[prompt[0] for prompt in turn] for turn in (prompts[:5], prompts[5:10])]
    assert order[0] != order[1]  # each turn has an order of its own
    assert corpus.prompts(7, seed=3) == prompts[:7]
    assert corpus.prompts(12, seed=4) != prompts
    assert {prompt for prompt in corpus.prompts(25, 0) if prompt[0] == "4"} == {
        f"4.{k}"
        for k in range(5)  # all wordings have their turn
    }


def test_pictures_of_a_corpus_are_read_by_number(corpus: CaptionedDataset) -> None:
    pictures = corpus.pictures(3)
    assert len(pictures) == 3
    assert len(corpus.pictures()) == len(corpus.pictures(99)) == 5
    chosen = pictures.chosen([2, 0, 2])
    for a, number in zip(chosen, (2, 0, 2), strict=True):
        assert a.tobytes() == corpus.shards[number].picture().tobytes()
    assert len(pictures[1:]) == 2
    with pytest.raises(IndexError):
        pictures[3]
    digests = {pictures.digest, corpus.pictures(2).digest, chosen.digest, corpus.pictures().digest}
    assert len(digests) == 4


def test_captions_that_no_row_holds_are_left_out_and_counted(shards: Path) -> None:
    corpus = CaptionedDataset(
        str(shards / "*.tar"), fits=lambda text: text[0] != "2" and text != "4.0"
    )
    assert corpus.too_long == 4
    assert len(corpus.captions[2]) == 3  # references of scores stay whole
    assert {prompt[0] for prompt in corpus.prompts(20, 0)} == set("0134")
    assert "4.0" not in corpus.prompts(40, 0)
    assert tasks.missing({"meteor": "needs Java"}, corpus)["left_out"] == {
        "meteor": "needs Java", "captions": "4 of 15 are longer than the model's rows"
    }  # fmt: skip
    with pytest.raises(UserError, match="no caption is short enough"):
        CaptionedDataset(str(shards / "*.tar"), fits=lambda text: False)


def test_figures_say_their_data_and_when_they_are_few() -> None:
    about = {"data": "x", "data_sha256": "ab"}
    found = tasks.described(
        {"bleu_1": {"value": 1.0, "n": 999}, "cider": {"value": 1.0, "n": 5, "warning": "few"},
         "group": {"mean_rank": {"value": 2.0, "n": 1000}}}, about
    )  # fmt: skip
    assert found["bleu_1"]["warning"] == "999 samples are few: compare with the same alone"
    assert found["cider"] == {"value": 1.0, "n": 5, "warning": "few", **about}
    assert found["group"]["mean_rank"] == {"value": 2.0, "n": 1000, **about}


def test_a_damaged_corpus_is_refused(shards: Path, tmp_path: Path) -> None:
    write_shards(tmp_path, "x", [("0", {"png": encoded(0)})])
    with pytest.raises(UserError, match="captions"):
        CaptionedDataset(str(tmp_path / "*.tar"))
    whole = (shards / "x-00000.tar").read_bytes()
    (tmp_path / "x-00000.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "x-00000.tar.index").unlink()
    with pytest.raises(UserError, match=r"damaged, such as .*x-00000\.tar.*mmfusion data verify"):
        CaptionedDataset(str(tmp_path / "*.tar"))


class Told:
    """Answers with likelihoods from a table."""

    def __init__(self, table: dict[tuple[int, str], tuple[float, int]]) -> None:
        self.table, self.pictures = table, [picture(i) for i in range(4)]

    def log_likelihood(self, prompts: Any, answers: list[str]) -> list[Likelihood]:
        number = {p.tobytes(): i for i, p in enumerate(self.pictures)}
        return [
            Likelihood(*self.table[number[p.tobytes()], text])
            for p, text in zip(prompts, answers, strict=True)
        ]


def test_cycle_compares_a_prompt_with_itself_under_another_picture() -> None:
    """Of four prompts the other one is two away; b and d are equal, and not compared."""
    told = Told({
        (0, "a"): (-1, 2), (1, "b"): (-4, 3), (2, "c"): (-6, 5), (3, "b"): (-3, 3),
        (0, "c"): (-9, 5), (2, "a"): (-2, 2),
        (1, "b2"): (0, 1), (3, "b2"): (0, 1),
    })  # fmt: skip
    figures, own = tasks.cycle(told, told.pictures, ["a", "b", "c", "b"])  # type: ignore[arg-type]
    assert [each.log_probability for each in own] == [-1, -4, -6, -3]
    assert figures["cycle_log_likelihood"] == tasks.figure(-14 / 13, 4)
    assert figures["cycle_gain"]["value"] == pytest.approx((-1 - 6) / 7 - (-9 - 2) / 7)
    assert figures["cycle_gain"]["n"] == figures["cycle_accuracy"]["n"] == 2
    assert figures["cycle_accuracy"]["value"] == 1


def test_cycle_counts_ties_half_and_needs_different_prompts() -> None:
    told = Told({(0, "a"): (-1, 1), (1, "b"): (-2, 1), (0, "b"): (-2, 1), (1, "a"): (-0.5, 1)})
    figures, _ = tasks.cycle(told, told.pictures[:2], ["a", "b"])  # type: ignore[arg-type]
    assert figures["cycle_accuracy"]["value"] == 0.25  # a is likelier elsewhere, b alike
    same, _ = tasks.cycle(told, told.pictures[:1] * 2, ["a", "a"])  # type: ignore[arg-type]
    assert list(same) == ["cycle_log_likelihood"]


def test_perplexity_is_that_of_all_tokens_together() -> None:
    told = Told({(0, "a"): (-1, 2), (0, "b"): (-5, 1), (1, "c"): (-3, 6)})

    class Shown(list):
        def chosen(self, numbers: list[int]) -> list:
            return [self[i] for i in numbers]

    figure = tasks.perplexity(told, Shown(told.pictures[:2]), [["a", "b"], ["c"]])  # type: ignore[arg-type]
    assert figure["value"] == pytest.approx(math.e)
    assert (figure["n"], figure["texts"], figure["tokens"]) == (2, 3, 9)


def test_inputs_know_the_data_and_the_networks_configs(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SimpleNamespace(classes=["a"], image=SimpleNamespace(size=8))
    answers: Any = SimpleNamespace(config=config, check=lambda task, options: None)

    def inputs(reference: Path) -> dict[str, Any]:
        asked = ClassToImage(reference=str(reference / "*.tar"), features=["pixels"])
        return tasks.Classes(answers, asked, tasks.Places(tmp_path)).inputs

    first = inputs(shards)
    assert inputs(shards) == json.loads(json.dumps(first)) == first
    write_shards(tmp_path / "other", "x", [("0", {"png": encoded(0)})])
    assert inputs(tmp_path / "other") != first
    monkeypatch.setattr(PixelExtractor, "version", "another config")
    assert inputs(shards) != first


def test_a_model_without_classes_cannot_be_asked_for_them(tmp_path: Path) -> None:
    classless: Any = SimpleNamespace(config=SimpleNamespace(classes=[]))
    places = tasks.Places(tmp_path)
    with pytest.raises(UserError, match="class_to_image: this model knows no classes"):
        tasks.Classes(classless, ClassToImage(), places)


@pytest.mark.parametrize(
    ("trained_on", "there", "measured_on"),
    [
        ("train-*", ["train-0", "val-0"], "val-*"),
        ("coco-train/*", ["coco-train/0", "coco-val/0", "coco-validation/0"], "coco-val/*"),
        ("coco-train-latents/*", ["coco-train/0", "coco-held_out/0"], "coco-held_out/*"),
        ("x-latents/*", ["x/0"], "x/*"),
        ("x-latents/*", [], None),
        ("training/train-{0..1}", ["training/train-0", "training/train-1", "test/train-0"],
         "training/train-{0..1}"),
        ("restrained-*", ["restrained-0", "resvaled-0"], "restrained-*"),
        ("{train,more}-*", ["train-0", "more-0"], "{train,more}-*"),  # a part has no match
        ("{train,more}-*", ["train-0", "more-0", "val-0"], "{train,more}-*"),  # more is no held-out
    ],
)  # fmt: skip
def test_held_out_shards_are_found_beside_training_ones(
    trained_on: str, there: list[str], measured_on: str | None, tmp_path: Path
) -> None:
    for path in there:
        write_shard(tmp_path / f"{path}.tar", [("a", {"png": b"p"})])
    write_shard(tmp_path / "x-latents/0.tar", [("a", {"moments.npy": b"m"})])
    found = with_pictures(f"{tmp_path}/{trained_on}.tar")
    assert found == (measured_on and f"{tmp_path}/{measured_on}.tar")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({}, "nothing to measure"),
        ({"class_to_image": {"sampling": {"guidence": 2}}}, "guidence"),
        ({"class_to_image": {"metrics": ["fd"]}}, "class_to_image.metrics.0"),
        ({"text_to_image": {}}, "text_to_image.data"),
        ({"image_to_text": {"data": "x", "sampling": {"beams": 2, "temperature": 1.0}}}, "beams"),
        ({"digits": {"data": "x"}, "batch": 0}, "batch"),
    ],
)
def test_wrong_settings_are_named(wrong: dict, told: str) -> None:
    from mmfusion.config import build

    with pytest.raises(UserError, match=told):
        build(EvaluationConfig, wrong, "e.yaml")


# Figures for people


def test_a_table_says_common_facts_once_and_hides_nothing() -> None:
    about = {"extractor": "inception", "extractor_sha256": "a" * 64, "size": None}
    entries = {
        "fid": {"value": 12.3456, "n": 1000, "n_reference": 50, **about, "warning": "few"},
        "kid": {"value": 0.00012345, "n": 1000, "subsets": 1, **about, "warning": "few"},
        "group": {"mean_rank": {"value": 1234.5, "n": 7, **about}},
        "fd_dinov2": {"value": 3.0, "n": 1000, **about},
        "not_a_figure": 3,
        "left_out": {"meteor": "needs Java"},
    }
    lines = formatting.table(entries).splitlines()
    assert [line.split("  ")[0].strip() for line in lines] == [
        "FID", "KID", "group: mean rank", "Fréchet distance (dinov2)",
        "warning: FID, KID: few", "extractor: inception", "left out: METEOR: needs Java",
        "SHA-256 aaaaaaaaaaaa: extractor inception",
    ]  # fmt: skip
    assert "12.35" in lines[0]
    assert "n = 1,000" in lines[0]
    assert "n reference 50" in lines[0]
    assert "0.0001234" in lines[1]
    assert "1,234.5" in lines[2]


def test_figures_are_written_whole(tmp_path: Path) -> None:
    formatting.save(tmp_path / "new" / "f.json", {"fid": {"value": 1.5, "n": 2, "text": "\ud800"}})
    assert '"value": 1.5' in (tmp_path / "new/f.json").read_text("utf-8")
    formatting.save(tmp_path / "new" / "f.json", {"fid": {"value": float(np.nan), "n": 2}})
    kept = json.loads((tmp_path / "new/f.json").read_text("utf-8"))
    assert formatting.table(kept) == "FID  None  n = 2"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*cannot be written"):
        formatting.save(tmp_path / "file" / "f.json", {})
