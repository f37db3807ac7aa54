"""The ablations compare what they say they compare, and judge it as they say."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.ablations.arms import ARMS, SIZES, model_config
from benchmarks.ablations.data import TONES, Data, corpus, digits
from benchmarks.ablations.models import DiT, Judge, Scores, parameters
from benchmarks.ablations.report import FINDINGS, Figure, markdown, verdict
from benchmarks.ablations.run import Documents, finished, made_of, measure, place, train
from mmfusion import files
from mmfusion.data_pipelines.tokenizer import train_tokenizer
from mmfusion.decoder import Decoder
from mmfusion.sequence import Image

SMALL = replace(
    SIZES["digits", "cpu"], width=16, dit_width=16, heads=2, depth=1, batch=4, steps=3,
    samples=20, inference_steps=2, captions=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Data:
    return digits()


@pytest.fixture(scope="module")
def tokenizer(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(corpus(data), path, 512)
    return path


@pytest.mark.parametrize(("name", "kind"), SIZES)
def test_the_dit_has_as_many_parameters(name: str, kind: str, data: Data) -> None:
    size = SIZES[name, kind]
    with torch.device("meta"):
        in_context = parameters(Decoder(model_config(ARMS["S = 1"], size, data, ""), 0))
        adaptive = parameters(DiT(model_config(ARMS["DiT, adaLN-zero"], size, data, "")))
    assert adaptive == pytest.approx(in_context, rel=0.035)


@pytest.mark.parametrize(("name", "kind"), SIZES)
def test_fashion_has_49_tokens_or_more(name: str, kind: str, data: Data) -> None:
    tokens = model_config(ARMS["S = 1"], SIZES[name, kind], data, "").image.tokens
    assert tokens >= (49 if name == "fashion" else 16)


def test_all_arms_learn_from_the_same_pictures_noise_and_timesteps(data: Data) -> None:
    """Only what an arm names differs: here the split, and with it the order."""
    drawn = {}
    for name in ("S = 1", "S = 8", "decay 0.9", "raster order", "weight 3 -> 1"):
        config = model_config(ARMS[name], SMALL, data, "")
        documents = Documents(config, None, data)
        drawn[name] = [documents.make(2, 7, number) for number in range(6)]
    first = drawn.pop("S = 1")
    for others in drawn.values():
        for a, b in zip(first, others, strict=True):
            assert a[0] == b[0]
            assert isinstance(a[1], Image)
            assert isinstance(b[1], Image)
            assert a[1].noise is not None
            assert b[1].noise is not None
            assert np.array_equal(a[1].latents, b[1].latents)
            assert np.array_equal(a[1].noise.latents, b[1].noise.latents)
            assert np.array_equal(a[1].noise.timesteps, b[1].noise.timesteps)
    split = [d[1].split for d in drawn["S = 8"] if isinstance(d[1], Image)]
    assert {len(s) for s in split if s} == {8}
    weights = {
        d[1].noise.start_weight
        for d in drawn["weight 3 -> 1"]
        if isinstance(d[1], Image) and d[1].noise
    }
    assert weights == {3.0}


@pytest.mark.parametrize("name", ["S = 4", "DiT, adaLN-zero", "joint, causal"])
def test_an_arm_trains_and_is_scored(
    name: str, data: Data, tokenizer: Path, tmp_path: Path
) -> None:
    arm = ARMS[name]
    torch.manual_seed(0)
    scores = Scores(Judge(10).eval(), data, SMALL.samples)
    config, model, losses = train(arm, 0, SMALL, data, tokenizer, "cpu")
    assert len(losses) == SMALL.steps
    assert np.isfinite(losses).all()
    found, shown = measure(arm, config, model, SMALL, data, tokenizer, scores)
    assert shown.shape == (10, 8, 8)
    wanted = {str(steps) for steps in arm.sampled} | (
        {"captions"} if arm.kind == "joint" else set()
    )
    assert set(found) == wanted
    assert found["1"]["n"] == 20
    path = place(tmp_path, ("digits", name, 0))
    files.write(path, json.dumps({"made_of": made_of(arm, SMALL, data)}).encode())
    assert finished(("digits", name, 0), SMALL, data, tmp_path)
    assert not finished(("digits", name, 0), replace(SMALL, steps=4), data, tmp_path)


def test_a_dit_begins_at_zero_and_depends_on_its_condition(data: Data) -> None:
    model = DiT(model_config(ARMS["DiT, adaLN-zero"], SMALL, data, ""))
    x, t, y = torch.randn(2, 16, 4), torch.tensor([10.0, 900.0]), torch.tensor([3, 10])
    assert model(x, t, y).abs().max() == 0
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    made = model(x, t, y)
    assert (made - model(x, t + 50, y)).abs().max() > 1e-3
    assert (made - model(x, t, y - 1)).abs().max() > 1e-3


def test_verdicts() -> None:
    low = {0: 1.0, 1: 2.0, 2: 3.0}
    assert verdict(low, {0: 2.0, 1: 3.1, 2: 3.9}) == "reproduced"
    assert verdict({0: 2.0, 1: 3.1, 2: 3.9}, low) == "not reproduced"
    assert verdict(low, {0: 2.0, 1: 1.0, 2: 3.5}) == "unclear"
    assert verdict(low, {0: 2.0}) == "one seed"
    # Gaps of 1, 1, 4: mean 2, standard error 1, the 5% point of t with 2 degrees is 2.92.
    assert verdict(low, {0: 2.0, 1: 3.0, 2: 7.0}) == "unclear"


def test_every_finding_is_of_figures_that_are_measured() -> None:
    for finding in FINDINGS:
        for figure in (finding.low, finding.high):
            arm = ARMS[figure.arm]
            assert figure.at in {*map(str, arm.sampled), *(["captions"] * (arm.kind == "joint"))}
        lower, higher = (float(part) for part in finding.paper.split(" < "))
        assert lower < higher


def test_captions_name_class_and_tone(data: Data) -> None:
    said = [data.captions(label, tone) for label in range(10) for tone in range(len(TONES))]
    assert len({caption for each in said for caption in each}) == 10 * 3 * 4
    counts = np.bincount(data.train.tones, minlength=3) / len(data.train)
    np.testing.assert_allclose(counts, 1 / 3, atol=0.02)


def test_tables_show_means_and_spreads(data: Data) -> None:
    def found(*values: float) -> dict:
        return {
            seed: {"1": {"frechet": v, "accuracy": 0.5, "n": 9}, "parameters": 7}
            for seed, v in enumerate(values)
        }

    facts = {
        "judge_accuracy": 0.9, "test": 5, "reference": 6, "frechet_of_test": 1.0,
        "frechet_of_test_n": 5,
    }  # fmt: skip
    results = {"decay 0.9": found(10.0, 12.0, 14.0), "decay 1.0": found(20.0, 22.0, 24.5)}
    text = markdown("digits", SMALL, results, facts)
    assert "| decay 0.9 | 12.0 ± 2.0 |" in text
    assert "12.0 ± 2.0, 22.2 ± 2.3 | reproduced |" in text
    assert "raster" not in text
    assert Figure("decay 0.9") == ("decay 0.9", "1", "frechet")
