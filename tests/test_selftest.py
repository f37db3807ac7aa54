"""`mmfusion eval selftest`: its verdicts, what it skips and says, and that a wrong number fails."""

import json
import math
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mmfusion.cli import main
from mmfusion.errors import UserError
from mmfusion.eval import selftest
from mmfusion.eval.selftest import REFERENCE, SAMPLES, Group, checks, run

COCO = Path(__file__).resolve().parents[2] / "shared/data/coco_caption_eval"
ADM_FIGURES = {
    "is": 215.84, "fid": 3.94, "sfid": 6.14, "precision": 0.83, "recall": 0.53,
}  # fmt: skip


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = 0
    try:
        main(["eval", "selftest", *map(str, arguments)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.fixture
def adm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, list[tuple]]:
    """Empty files under ADM's names, and a stand-in for what would measure them."""
    weights = tmp_path / "weights"
    for path in (tmp_path / REFERENCE, tmp_path / SAMPLES, weights):
        path.touch()
    asked: list[tuple] = []

    def measure(
        made: Any, reference: Any, extractor: Any, metrics: list[str], work: Path
    ) -> dict[str, dict]:
        asked.append((made, reference, extractor, metrics, work))
        return {name: {"value": ADM_FIGURES[name], "n": 50_000} for name in metrics}

    for module, name, function in (
        ("distribution", "measure", measure),
        ("extractors", "make_extractor", lambda spec, device: (spec, device)),
        ("pictures", "open_pictures", lambda path: path),
    ):
        stand_in = ModuleType(module)
        setattr(stand_in, name, function)
        monkeypatch.setitem(sys.modules, f"mmfusion.eval.{module}", stand_in)
    return tmp_path, weights, asked


def test_everything_that_needs_nothing_passes_here(
    no_java: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = call(capsys, "-o", tmp_path / "new/selftest.json")
    assert code == 0, out + err
    report = json.loads((tmp_path / "new/selftest.json").read_text("utf-8"))
    by_name = {check["name"]: check for check in report["checks"]}
    assert len(by_name) == len(report["checks"]) == 46
    assert (report["passed"], report["failed"], report["skipped"]) == (31, 0, 15)
    assert out.splitlines()[-2] == "31 passed, 0 failed, 15 skipped"
    for check in report["checks"]:
        assert {"name", "source", "expected", "tolerance"} < set(check)
        assert ("passed" in check) != ("skipped" in check)
        assert check["name"] in out
    assert by_name["BLEU-1 of seven times `the`"]["found"] == pytest.approx(2 / 7)
    assert by_name["inception score, .9 and .1"]["expected"] == pytest.approx(1.4449, abs=1e-4)
    noise, real = (by_name[f"digits: Fréchet distance of {x}"] for x in ("noise", "real ones"))
    assert noise["found"] > 50 * real["found"]
    skipped = {check["skipped"] for check in report["checks"] if "skipped" in check}
    assert {text[:12] for text in skipped} == {"needs --coco", "needs --adm ", "needs Java"}
    assert REFERENCE in out
    assert "--inception FILE" in out


def test_what_needs_java_passes_where_it_is() -> None:
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    known = ("PTB", "METEOR")
    groups = [group for group in checks() if next(iter(group.known)).startswith(known)]
    found = list(run(groups))
    assert len(found) == 3
    assert all(check["passed"] for check in found), found


@pytest.mark.parametrize(
    ("place", "broken", "failing"),
    [
        (
            "captions.scores.tokenise",
            lambda t, _: [" ".join(sorted(x.split())) for x in t],
            "ROUGE",
        ),
        ("alignment._clip_s", lambda cosines: 2.5 * cosines, "CLIP-S"),
        ("alignment.WEIGHT", 2.0, "RefCLIP-S"),
    ],
)
def test_captions_and_cosines_are_judged_by_the_projects_own_code(
    place: str, broken: Any, failing: str, no_java: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"mmfusion.eval.{place}", broken)
    failed = [check["name"] for check in run(checks()) if check.get("passed") is False]
    assert any(name.startswith(failing) for name in failed)


def test_a_wrong_number_fails_with_exit_code_1(
    no_java: None,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = selftest.frechet_distance
    monkeypatch.setattr(selftest, "frechet_distance", lambda a, b: real(a, b) + 2e-3)
    code, out, _ = call(capsys, "-o", tmp_path / "report.json")
    assert code == 1
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    failed = [check["name"] for check in report["checks"] if check.get("passed") is False]
    assert len(failed) == report["failed"] == 5
    assert all("Fréchet distance" in name for name in failed)
    assert sum(line.startswith("  FAILED") for line in out.splitlines()) == 5
    assert "26 passed, 5 failed, 15 skipped" in out


@pytest.mark.parametrize(
    "name", ["kernel_distance", "precision_recall", "inception_score", "frechet_distance"]
)
def test_a_part_that_breaks_fails_and_the_rest_goes_on(
    name: str,
    no_java: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*given: Any, **options: Any) -> None:
        raise RuntimeError("no such routine\nsecond line")

    monkeypatch.setattr(selftest, name, broken)
    code, out, err = call(capsys)
    assert code == 1
    assert "RuntimeError: no such routine\n" in out
    assert "Traceback" not in out + err
    assert "passed   CIDEr, all captions are references" in out


def test_verdicts() -> None:
    known = {"a": (1.0, 0.1), "b": (0.0, 0.0), "c": (2.0, 0.5)}
    found = run([Group("somewhere", known, lambda: {"a": 1.05, "b": 1e-12, "c": math.nan})])
    a, b, c = found
    head = {"name": "a", "source": "somewhere", "expected": 1.0, "tolerance": 0.1}
    assert a == head | {"found": 1.05, "passed": True}
    assert (b["found"], b["passed"]) == (1e-12, False)
    assert (c["found"], c["passed"], c["error"]) == (None, False, "no finite number")
    (missing,) = run([Group("x", {"a": (1, 1)}, dict)])
    assert missing["passed"] is False
    (skipped,) = run([Group("x", {"a": (0, 1)}, lambda: {"a": 0}, needs="a file")])
    assert skipped["skipped"] == "a file"
    assert not {"passed", "found"} & set(skipped)


# Captions of COCO


def small_coco(folder: Path) -> Path:
    """Three pictures, each captioned with a reference: BLEU 1, ROUGE-L 1."""
    texts = {str(i): [" ".join(f"{word}{i}" for word in "abcde"), "other words"] for i in range(3)}
    (folder / "gts.json").write_text(json.dumps(texts), "utf-8")
    (folder / "res.json").write_text(json.dumps({i: t[:1] for i, t in texts.items()}), "utf-8")
    return folder


def test_other_captions_than_cocos_fail(
    tmp_path: Path, no_java: None, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "--coco", small_coco(tmp_path), "-o", tmp_path / "r.json")
    assert code == 1, out + err
    report = json.loads((tmp_path / "r.json").read_text("utf-8"))
    by_name = {c["name"]: c for c in report["checks"] if c["name"].startswith("COCO")}
    assert by_name.pop("COCO: METEOR")["skipped"] == "needs Java"
    assert by_name["COCO: BLEU-4"]["found"] == pytest.approx(1)
    assert by_name["COCO: ROUGE-L"]["found"] == pytest.approx(1)
    assert by_name["COCO: CIDEr"]["found"] == pytest.approx(5)  # of two references, one is met
    assert not any(check["passed"] for check in by_name.values())
    assert report["failed"] == 6


def test_cocos_example_gives_the_published_scores(no_java: None) -> None:
    if not (COCO / "gts.json").is_file():
        pytest.skip("needs shared/data/coco_caption_eval with gts.json and res.json")
    groups = [group for group in checks(coco=COCO) if "COCO" in group.source]
    found = list(run(groups))
    assert [check.get("passed", check.get("skipped")) for check in found] == [
        *[True] * 6, "needs Java",
    ]  # fmt: skip


@pytest.mark.slow
def test_cocos_example_gives_the_published_meteor() -> None:
    if not (COCO / "gts.json").is_file():
        pytest.skip("needs shared/data/coco_caption_eval with gts.json and res.json")
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    group = next(g for g in checks(coco=COCO) if "COCO: METEOR" in g.known)
    (found,) = run([group])
    assert found["passed"], found
    assert found["found"] == pytest.approx(0.195254671778, abs=1e-9)


def test_bad_caption_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*named: str) -> None:
        code, _, err = call(capsys, "--coco", tmp_path)
        assert code == 2
        assert err.startswith("error: ")
        assert all(name in err for name in named), err

    refused("gts.json: not there")
    small_coco(tmp_path)
    (tmp_path / "res.json").unlink()
    refused("res.json: not there")
    for text, told in (
        ("{oops", "no JSON"), ("[1]", "not an object of picture"), ('{"0": []}', "not an object"),
        ('{"0": "a cat"}', "not an object"), ('{"9": ["a cat"]}', "of different pictures"),
    ):  # fmt: skip
        (tmp_path / "res.json").write_text(text, "utf-8")
        refused(str(tmp_path), told)
    (tmp_path / "res.json").write_bytes(b"\xff\xfe{}")
    refused("res.json", "no JSON")


# ADM's published figures, by a stand-in: the real files are 2 GB and not here


def test_adm_figures_are_asked_for_and_judged(
    adm: tuple[Path, Path, list[tuple]],
    no_java: None,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    folder, weights, asked = adm
    work = tmp_path / "work"
    code, out, err = call(
        capsys, "--adm", folder, "--inception", weights, "--work", work, "--device", "cpu"
    )
    assert code == 0, out + err
    assert "36 passed, 0 failed, 10 skipped" in out
    extractor = (f"inception:{weights}", "cpu")
    assert asked == [
        (str(folder / SAMPLES), str(folder / REFERENCE), extractor, list(ADM_FIGURES), work)
    ]


def test_adm_figures_that_are_off_fail(
    adm: tuple[Path, Path, list[tuple]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, weights, _ = adm
    monkeypatch.setitem(ADM_FIGURES, "fid", 4.0)
    group = checks(adm=folder, inception=weights)[-1]
    verdicts = {check["name"]: check["passed"] for check in run([group])}
    assert [name for name, passed in verdicts.items() if not passed] == ["ADM-G, ADM-U: FID"]


def test_adm_needs_all_its_files(
    adm: tuple[Path, Path, list[tuple]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, weights, _ = adm
    for given in (["--adm", folder], ["--inception", weights]):
        code, _, err = call(capsys, *given)
        assert (code, err.count("error: ")) == (2, 1)
        assert "--adm DIR and --inception FILE go together" in err
    for path in (weights, folder / SAMPLES, folder / REFERENCE):
        path.unlink()
        with pytest.raises(UserError, match=f"{path.name}: not there"):
            checks(adm=folder, inception=weights)


def test_digits_checks_are_torch_fidelitys_figures() -> None:
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    from mmfusion.data_pipelines.corpora.digits import load_digits, split_digits
    from mmfusion.eval.digits.judge import features

    pictures, labels = load_digits()
    train, held_out = (torch.from_numpy(features(pictures[part])) for part in split_digits(labels))
    noise = np.random.RandomState(0).randint(0, 256, (297, 8, 8))
    known = next(g.known for g in checks() if any("digits" in name for name in g.known))
    for name, made in (("real ones", held_out), ("noise", torch.from_numpy(features(noise)))):
        stats = (fid_features_to_statistics(x) for x in (made, train))
        theirs = {
            "Fréchet distance": fid_statistics_to_metric(*stats, False),
            "kernel distance": kid_features_to_metric(
                made, train, kid_subset_size=297, verbose=False
            ),
            "precision": prc_features_to_metric(made, train, verbose=False),
            "recall": {"recall": prc_features_to_metric(made, train, verbose=False)["recall"]},
        }
        for metric, figures in theirs.items():
            expected, tolerance = known[f"digits: {metric} of {name}"]
            assert next(iter(figures.values())) == pytest.approx(expected, abs=tolerance + 1e-7)


# The first word after `eval`


def test_a_metric_written_wrongly_is_no_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def said(*arguments: object) -> str:
        with pytest.raises(SystemExit):
            main(["eval", *map(str, arguments)])
        return capsys.readouterr().err

    told = said("fidd", "a", "b")
    assert told == (
        "error: eval fidd: no such metric; choose fid, clip, captions, frontier, selftest, or give "
        "a model\n"
    )
    # A word that stands alone, or that names something, is a model.
    for words in (["fidd"], ["fidd", "-o", tmp_path]):
        assert "model fidd: no such folder" in said(*words)
    for model in ("digits", tmp_path):
        assert "No such command 'extra'" in said(model, "extra")
