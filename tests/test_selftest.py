"""`mmfusion eval selftest`: its verdicts, what it skips and says, and that a wrong number fails."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command

from mmfusion.eval.selftest import ADM, REFERENCE, SAMPLES, Known, everything, run

COCO = Path(__file__).resolve().parents[2] / "shared/data/coco_caption_eval"
needs_coco = pytest.mark.skipif(
    not (COCO / "gts.json").is_file(), reason="needs shared/data/coco_caption_eval"
)


def checks(
    source: str, coco: Path | None = None, adm: Path | None = None, weights: Path | None = None
) -> list[dict[str, Any]]:
    """What is found of the sources whose name begins so."""
    known = everything(coco, adm, weights)
    return [check for each in known if each.source.startswith(source) for check in run(each)]


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)


def test_what_needs_nothing_passes_here_and_the_rest_is_skipped_with_its_needs(
    no_java: None, command: Command, tmp_path: Path
) -> None:
    code, out, err = command("eval", "selftest", "-o", tmp_path / "new/selftest.json")
    assert code == 0, out + err
    report = json.loads((tmp_path / "new/selftest.json").read_text("utf-8"))
    assert (report["passed"], report["failed"], report["skipped"]) == (12, 0, 14)
    assert "12 passed, 0 failed, 14 skipped" in out
    for check in report["checks"]:
        assert {"name", "source", "expected", "tolerance"} < set(check)
        assert ("passed" in check) != ("skipped" in check)
    skipped = {check["skipped"] for check in report["checks"] if "skipped" in check}
    assert {text[:10] for text in skipped} == {"needs --co", "needs --ad", "needs Java"}
    assert REFERENCE in out


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_what_needs_java_passes_where_it_is() -> None:
    found = checks("captions ")
    assert len(found) == 3
    assert all(check["passed"] for check in found), found


@pytest.mark.parametrize("broken", [lambda a, b: 0.5, lambda a, b: 1 / 0, lambda a, b: math.nan])
def test_a_number_that_is_wrong_or_cannot_be_measured_fails_with_exit_code_1(
    broken: Any, no_java: None, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmfusion.eval.metrics.frechet_distance", broken)
    code, out, err = command("eval", "selftest")
    assert code == 1
    assert "Traceback" not in out + err
    assert "FAILED   fid" in out
    assert "passed   cider" in out  # the rest goes on


def test_verdicts() -> None:
    def verdict(found: float, needs: str = "") -> dict[str, Any]:
        (check,) = run(Known("somewhere", {"a": (1.0, 0.1)}, lambda: {"a": found}, needs))
        return check

    head = {"name": "a", "source": "somewhere", "expected": 1.0, "tolerance": 0.1}
    assert verdict(1.05) == head | {"found": 1.05, "passed": True}
    assert verdict(1.2) == head | {"found": 1.2, "passed": False}
    assert verdict(math.nan)["passed"] is verdict(math.inf)["passed"] is False
    assert verdict(1.0, "needs a file") == head | {"skipped": "needs a file"}
    assert [check["passed"] for check in run(Known("", {"b": (0, 0)}, dict))] == [False]


@needs_coco
def test_cocos_example_gives_the_published_scores(no_java: None) -> None:
    found = checks("COCO", coco=COCO)
    assert [c.get("passed", c.get("skipped", "")[:10]) for c in found] == [
        *[True] * 6,
        "needs Java",
    ]


def test_other_captions_than_cocos_fail_and_bad_files_are_named(
    tmp_path: Path, no_java: None, command: Command
) -> None:
    texts = {str(i): [" ".join(f"{word}{i}" for word in "abcde"), "other words"] for i in range(3)}
    (tmp_path / "gts.json").write_text(json.dumps(texts), "utf-8")
    res = tmp_path / "res.json"
    res.write_text(json.dumps({i: t[:1] for i, t in texts.items()}), "utf-8")
    found = {check["name"]: check for check in checks("COCO", coco=tmp_path)}
    assert found.pop("meteor")["skipped"].startswith("needs Java")
    assert found["bleu_4"]["found"] == pytest.approx(1)
    assert found["cider"]["found"] == pytest.approx(5)  # of two references, one is met
    assert len(found) == 6
    assert not any(check["passed"] for check in found.values())
    for text in ("{oops", '{"0": "a cat"}', "\udcff", None):
        res.unlink()
        if text is not None:
            res.write_bytes(text.encode("utf-8", "surrogateescape"))
        code, _, err = command("eval", "selftest", "--coco", tmp_path)
        assert (code, err[:7]) == (2, "error: ")
        assert str(res) in err


def test_adm_figures_are_asked_for_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    """With a stand-in for what would measure them: the real files are 2 GB, and not here."""
    weights, asked = tmp_path / "weights", []
    for path in (tmp_path / REFERENCE, tmp_path / SAMPLES, weights):
        path.touch()
    printed = {"is": 215.84, "fid": 4.0, "sfid": 6.14, "precision": 0.83, "recall": 0.53}

    def measure(*given: Any) -> dict[str, dict]:
        asked.append(given)
        return {name: {"value": value, "n": 50_000} for name, value in printed.items()}

    monkeypatch.setattr("mmfusion.eval.distribution.measure", measure)
    monkeypatch.setattr("mmfusion.eval.extractors.make_extractor", lambda *given: given)
    monkeypatch.setattr("mmfusion.eval.image_sets.open_images", lambda path: path)
    found = checks("evaluations of", adm=tmp_path, weights=weights)
    assert [check["name"] for check in found if not check["passed"]] == ["fid"]
    files = str(tmp_path / SAMPLES), str(tmp_path / REFERENCE)
    assert asked == [(*files, (f"inception:{weights}",), list(ADM))]
    (tmp_path / SAMPLES).unlink()
    for given, named in (
        (["--adm", tmp_path], "--adm DIR and --inception FILE"),
        (["--inception", weights], "--adm DIR and --inception FILE"),
        (["--adm", tmp_path, "--inception", weights], SAMPLES),
    ):
        code, _, err = command("eval", "selftest", *given)
        assert (code, err.count("error: ")) == (2, 1)
        assert named in err


def test_digits_checks_are_torch_fidelitys_figures() -> None:
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    from mmfusion.data_pipelines.converters.digits import load_digits, split_digits
    from mmfusion.eval.digits.judge import features

    pictures, labels = load_digits()
    train, held_out = (torch.from_numpy(features(pictures[part])) for part in split_digits(labels))
    noise = torch.from_numpy(features(np.random.RandomState(0).randint(0, 256, (297, 8, 8))))
    known = {source: checks(source) for source in ("real ", "noise")}
    for name, made in (("real ", held_out), ("noise", noise)):
        stats = (fid_features_to_statistics(x) for x in (made, train))
        both = prc_features_to_metric(made, train, verbose=False)
        kid = kid_features_to_metric(made, train, kid_subset_size=297, verbose=False)
        theirs = {
            "fid": fid_statistics_to_metric(*stats, False)["frechet_inception_distance"],
            "kid": kid["kernel_inception_distance_mean"],
            "precision": both["precision"],
            "recall": both["recall"],
        }
        for check in known[name]:
            expected = pytest.approx(check["expected"], abs=check["tolerance"] + 1e-7)
            assert theirs[check["name"]] == expected
            assert check["passed"]


def test_a_metric_written_wrongly_is_no_model(command: Command, tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        return command("eval", *arguments)[2]

    assert "eval fidd: no such metric; choose fid, clip, captions" in said("fidd", "a", "b")
    # A word that stands alone, or that names something, is a model.
    for words in (["mine"], ["mine", "-o", tmp_path]):
        assert "model mine: no such folder" in said(*words)
    assert "eval fidd: no such metric; choose fid, clip" in said("fidd")  # unless it is nearly one
    for model in ("digits", tmp_path):
        assert "no such command 'extra'" in said(model, "extra")
