"""Noising and sampling against closed forms: a Gaussian's denoiser is known exactly."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import model_config

from mmfusion.config import DiffusionConfig, Sampling
from mmfusion.diffusion import Diffusion

FORBIDDEN = ("flow", "epsilon")
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SCHEDULERS = ("ddpm", "ddim", "dpmsolver++", "unipc")


def diffusion(prediction: str = "epsilon", **changes) -> Diffusion:
    return Diffusion(DiffusionConfig.model_validate({"prediction": prediction, **changes}))


def alpha_bar() -> list[float]:
    """The paper's schedule: running product of 1 - beta, beta from 1e-4 to 2e-2 in 1000 steps."""
    product, made = 1.0, []
    for t in range(1000):
        product *= 1 - (1e-4 + (2e-2 - 1e-4) * t / 999)
        made.append(product)
    return made


# Forward


def test_forward_process() -> None:
    rng = np.random.default_rng(0)
    clean, noise = rng.normal(size=(2, 3, 5, 4))
    timestep = rng.integers(1000, size=(3, 5))
    made = diffusion().noised(clean, timestep, noise)
    assert made.dtype == np.float32
    kept = alpha_bar()
    for b in range(3):
        for n in range(5):
            a = kept[timestep[b, n]]
            expected = a**0.5 * clean[b, n] + (1 - a) ** 0.5 * noise[b, n]
            np.testing.assert_allclose(made[b, n], expected, rtol=1e-5, atol=1e-6)


def test_schedule_runs_from_almost_clean_to_almost_noise() -> None:
    made = diffusion().alpha_bar
    np.testing.assert_allclose(made, alpha_bar(), rtol=1e-9)
    assert made[0] == pytest.approx(0.9999)
    assert made[-1] < 5e-5
    assert (np.diff(made) < 0).all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_target_and_noised_latents_give_the_clean_ones_back(prediction: str) -> None:
    rng = np.random.default_rng(1)
    clean, noise = rng.normal(size=(2, 6, 4))
    timestep = np.array([0, 1, 100, 500, 900, 999])
    process = diffusion(prediction)
    noised, target = (f(clean, timestep, noise) for f in (process.noised, process.target))
    a = np.array(alpha_bar())[timestep][:, None]
    if prediction == "epsilon":
        np.testing.assert_allclose(target, noise, rtol=1e-6)
        found = (noised - np.sqrt(1 - a) * target) / np.sqrt(a)
    elif prediction == "sample":
        found = target
    else:
        found = np.sqrt(a) * noised - np.sqrt(1 - a) * target
        np.testing.assert_allclose(
            np.sqrt(1 - a) * noised + np.sqrt(a) * target, noise, rtol=1e-4, atol=1e-4
        )
    scale = np.sqrt(a) if prediction == "epsilon" else 1  # fp32 rounding was divided by sqrt(a)
    np.testing.assert_allclose(found * scale, clean * scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_training_draw(prediction: str) -> None:
    """One timestep for the whole picture, uniform over all; latents and target of one noise."""
    process = diffusion(prediction, timesteps=50, weight_start=1.5)
    clean = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    rng = np.random.default_rng(1)
    seen = np.zeros(50, int)
    for _ in range(2000):
        draw = process.draw(clean, [np.arange(5)], rng)
        assert draw.latents.shape == draw.target.shape == (1, 5, 4)
        assert len(set(draw.timesteps.ravel().tolist())) == 1
        seen[int(draw.timesteps[0, 0])] += 1
    assert draw.start_weight == 1.5
    assert seen.min() > 15  # 40 expected
    assert seen.max() < 75
    a = process.alpha_bar[draw.timesteps[0].astype(int)][:, None]
    noise = (draw.latents[0] - np.sqrt(a) * clean) / np.sqrt(1 - a)
    np.testing.assert_allclose(
        process.target(clean, draw.timesteps[0].astype(int), noise), draw.target[0], atol=1e-4
    )
    assert abs(noise.mean()) < 1
    assert 0.4 < noise.std() < 1.8


def test_an_error_of_clean_latents_weighs_as_one_of_the_velocity() -> None:
    """x_t = (1 - s) x + s e and v = e - x: (x_t - x') / s is off by (x' - x) / s."""
    process = diffusion("sample", path="flow", velocity_loss=True)
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(400, 4)).astype(np.float32)
    draw = process.draw(clean, [np.array([i]) for i in range(400)], rng)
    share = draw.timesteps[0] / 1000
    wrong = clean + rng.normal(size=clean.shape)
    off = (draw.latents[0] - wrong) / share[:, None] - (draw.latents[0] - clean) / share[:, None]
    weighted = draw.weight[0] * np.square(wrong - clean).mean(1)
    seen = share >= 0.05
    np.testing.assert_allclose(weighted[seen], np.square(off[seen]).mean(1), rtol=1e-3)
    clear = diffusion("sample", path="flow", velocity_loss=True).weights(np.array([0.0, 1, 50]))
    np.testing.assert_allclose(clear, 400)
    assert (diffusion().draw(clean, [np.arange(400)], rng).weight == 1).all()


def test_noisy_copies_of_a_draw_have_timesteps_and_noise_of_their_own() -> None:
    process = diffusion(noisy_copies=3)
    clean = np.zeros((500, 4), np.float32)
    draw = process.draw(clean, [np.arange(500)], np.random.default_rng(0))
    assert draw.latents.shape == draw.target.shape == (3, 500, 4)
    assert draw.timesteps.shape == (3, 500)
    assert [len(set(copy.tolist())) for copy in draw.timesteps] == [1, 1, 1]
    assert len(set(draw.timesteps[:, 0].tolist())) == 3
    assert np.abs(np.corrcoef(draw.target.reshape(3, -1)) - np.eye(3)).max() < 0.1
    for copy in range(3):
        a = process.alpha_bar[int(draw.timesteps[copy, 0])]
        np.testing.assert_allclose(
            draw.latents[copy], np.sqrt(1 - a) * draw.target[copy], rtol=1e-5
        )


# Sampling


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_use_the_training_schedule(name: str) -> None:
    process = diffusion("v_prediction", timesteps=77, beta_start=1e-3, beta_end=3e-2)
    scheduler = process.scheduler(name, 10)
    np.testing.assert_allclose(scheduler.alphas_cumprod, process.alpha_bar, rtol=1e-5)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler is not process.scheduler(name, 10)  # they carry state


def respaced(number: int) -> list[int]:
    """The timesteps of guided-diffusion's `space_timesteps`, which the official code samples at."""
    stride, at, taken = 999 / (number - 1), 0.0, []
    for _ in range(number):
        taken.append(round(at))
        at += stride
    return taken


@pytest.mark.parametrize("number", [250, 100, 50, 20, 1000])
def test_ddpm_takes_the_papers_respaced_timesteps(number: int) -> None:
    scheduler = diffusion().scheduler("ddpm", number)
    assert scheduler.timesteps.tolist() == respaced(number)[::-1]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("place", [0, 1, 100, 248, 249])
def test_a_ddpm_step_is_the_respaced_posterior_with_the_large_variance(
    prediction: str, place: int
) -> None:
    """Ho et al. 2020, equations 6 and 7, with the betas of the 250 timesteps that are left."""
    kept, taken = alpha_bar(), respaced(250)
    i = 249 - place  # of 250, counted from the clean end
    a, before = kept[taken[i]], kept[taken[i - 1]] if i else 1.0
    beta = 1 - a / before
    rng = np.random.default_rng(place)
    x, output = rng.normal(size=(2, 3, 5, 4))
    clean = {
        "epsilon": (x - (1 - a) ** 0.5 * output) / a**0.5,
        "sample": output,
        "v_prediction": a**0.5 * x - (1 - a) ** 0.5 * output,
    }[prediction]
    mean = before**0.5 * beta / (1 - a) * clean + (1 - beta) ** 0.5 * (1 - before) / (1 - a) * x
    noise = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(5)).numpy()
    expected = mean + (beta**0.5 * noise if i else 0)

    scheduler = diffusion(prediction).scheduler("ddpm", 250)
    made = scheduler.step(
        torch.from_numpy(output).float(),
        int(scheduler.timesteps[place]),
        torch.from_numpy(x).float(),
        generator=torch.Generator().manual_seed(5),
    ).prev_sample
    np.testing.assert_allclose(made, expected, rtol=2e-3, atol=2e-3)


def oracle(process: Diffusion, mean: torch.Tensor, deviation: float) -> Callable:
    """What a perfect model of N(mean, deviation²) predicts of x at timestep t."""
    kept, prediction = alpha_bar(), process.config.prediction

    def predict(x: torch.Tensor, t: float) -> torch.Tensor:
        if process.config.path == "flow":
            a, s = 1 - t / 1000, t / 1000
        else:
            a, s = kept[int(t)] ** 0.5, (1 - kept[int(t)]) ** 0.5
        gain = a * deviation**2 / (a**2 * deviation**2 + s**2)
        clean = mean + gain * (x - a * mean)
        noise = (x - a * clean) / s
        if prediction == "v_prediction":
            return noise - clean if process.config.path == "flow" else a * noise - s * clean
        return {"epsilon": noise, "sample": clean}[prediction]

    return predict


def sample(process: Diffusion, name: str, number: int, x: torch.Tensor, predict: Callable):
    scheduler = process.scheduler(name, number)
    generators = [torch.Generator().manual_seed(1)]
    x = x[None]
    for step in range(len(scheduler.timesteps)):
        t = process.timestep(scheduler, step)
        x = process.step(scheduler, step, predict(x, t), x, generators)
    return x[0]


KINDS = [(path, p) for path in ("ddpm", "flow") for p in PREDICTIONS if (path, p) != FORBIDDEN]
WAYS = [
    (path, prediction, name)
    for path, prediction in KINDS
    for name in DiffusionConfig(path=path, prediction=prediction).schedulers
]


@pytest.mark.parametrize("number", [5, 20])
@pytest.mark.parametrize(("path", "prediction", "name"), WAYS)
def test_a_point_mass_is_recovered(path: str, prediction: str, name: str, number: int) -> None:
    """Also far outside [-1, 1]: nothing clips."""
    process = diffusion(prediction, path=path)
    target = torch.tensor([[0.3, -7.0, 12.0, 0.0]])
    noise = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    made = sample(process, name, number, noise, oracle(process, target, 0.0))
    torch.testing.assert_close(made, target.expand(6, 4), rtol=0, atol=5e-3)


@pytest.mark.parametrize(("path", "prediction", "name"), WAYS)
def test_a_gaussian_is_sampled(path: str, prediction: str, name: str) -> None:
    """With the true denoiser the samples have its mean and deviation."""
    number = {"ddpm": 250, "ddim": 100, "euler": 100}.get(name, 25)
    process = diffusion(prediction, path=path)
    noise = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    made = sample(process, name, number, noise, oracle(process, torch.tensor([[1.5]]), 0.5))
    assert float(made.mean()) == pytest.approx(1.5, abs=0.02)
    assert float(made.std()) == pytest.approx(0.5, rel=0.04)
    # A normal's excess kurtosis is 0: the shape is right, too.
    centred = (made - made.mean()) / made.std()
    assert float((centred**4).mean()) == pytest.approx(3, abs=0.25)


# Flow matching, laws of the timestep


def test_the_straight_path_and_its_velocity() -> None:
    rng = np.random.default_rng(0)
    clean, noise = rng.normal(size=(2, 4, 3))
    timestep = np.array([0.0, 250.0, 612.5, 1000.0])
    process = diffusion("v_prediction", path="flow")
    expected = [
        (1 - t / 1000) * c + t / 1000 * n for t, c, n in zip(timestep, clean, noise, strict=True)
    ]
    np.testing.assert_allclose(process.noised(clean, timestep, noise), expected, atol=1e-6)
    np.testing.assert_allclose(process.target(clean, timestep, noise), noise - clean, atol=1e-6)
    np.testing.assert_allclose(
        diffusion("sample", path="flow").target(clean, timestep, noise), clean, atol=1e-6
    )


def test_euler_runs_evenly_from_all_noise_to_none() -> None:
    scheduler = diffusion("v_prediction", path="flow").scheduler(None, 4)
    np.testing.assert_allclose(scheduler.sigmas, [1, 0.75, 0.5, 0.25, 0], atol=1e-7)


@pytest.mark.parametrize(("path", "prediction"), KINDS)
def test_the_way_back_takes_as_many_steps_as_asked_at_falling_timesteps(
    path: str, prediction: str
) -> None:
    process = diffusion(prediction, path=path)
    for name in process.config.schedulers:
        for number in (2, 7, 998, *((999, 1000) if name != "unipc" else ())):
            scheduler = process.scheduler(name, number)
            t = [process.timestep(scheduler, step) for step in range(len(scheduler.timesteps))]
            assert len(t) == number
            assert (np.diff(t) <= 0).all()
            assert 998 <= t[0] <= 1000
            assert 0 <= t[-1] < 1000 / number + 1
            if path == "flow":
                assert t[-1] > 0  # velocity is found by dividing by it
            x = torch.zeros(1, 2, 2)
            for step in range(number):
                x = process.step(scheduler, step, x + 0.1, x, [torch.Generator()])
            assert torch.isfinite(x).all()


@pytest.mark.parametrize("path", ["ddpm", "flow"])
def test_timesteps_follow_their_law(path: str) -> None:
    rng = np.random.default_rng(0)
    uniform = diffusion("v_prediction", path=path).timesteps(20_000, rng)
    assert np.histogram(uniform, 10, (0, 1000))[0] == pytest.approx(2000, abs=200)
    process = diffusion(
        "v_prediction", path=path, timestep_law="logit_normal", logit_mean=0.5, logit_std=0.8
    )
    share = (process.timesteps(20_000, rng) + (0.5 if path == "ddpm" else 0)) / 1000
    logit = np.log(share / (1 - share))
    assert logit.mean() == pytest.approx(0.5, abs=0.03)
    assert logit.std() == pytest.approx(0.8, abs=0.03)
    for drawn in (uniform, 1000 * share):
        assert drawn.min() >= 0
        assert drawn.max() < 1000.5
    if path == "ddpm":
        assert (uniform == np.floor(uniform)).all()
        assert uniform.max() == 999


def test_extreme_logit_normal_timesteps_stay_in_range() -> None:
    process = diffusion(timestep_law="logit_normal", logit_std=50.0)
    drawn = process.timesteps(1000, np.random.default_rng(0))
    assert (drawn.min(), drawn.max()) == (0, 999)


@pytest.mark.parametrize(("per", "copies"), [("image", 1), ("image", 2), ("step", 1), ("step", 3)])
def test_a_timestep_for_each_image_or_each_ar_step(per: str, copies: int) -> None:
    process = diffusion(timestep_per=per, noisy_copies=copies)
    split = [np.array([3, 0]), np.array([1]), np.array([4, 2, 5])]
    clean = np.random.default_rng(2).normal(size=(6, 4)).astype(np.float32)
    draw = process.draw(clean, split, np.random.default_rng(0))
    seen = set()
    for copy in range(copies):
        each = [set(draw.timesteps[copy, cells].tolist()) for cells in split]
        assert [len(one) for one in each] == [1, 1, 1]
        seen |= set.union(*each)
        a = process.alpha_bar[draw.timesteps[copy].astype(int)][:, None]
        expected = np.sqrt(a) * clean + np.sqrt(1 - a) * draw.target[copy]
        np.testing.assert_allclose(draw.latents[copy], expected, rtol=1e-4, atol=1e-5)
    assert len(seen) == copies * (3 if per == "step" else 1)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("ddpm", 2, 1000), ("ddim", 2, 1000), ("dpmsolver++", 1, 1000), ("unipc", 1, 998)],
)
def test_numbers_of_steps_that_a_scheduler_cannot_take_are_refused(
    name: Any, least: int, most: int
) -> None:
    config = model_config(diffusion={"prediction": "sample"})
    for number in (least - 1 or least, least, most, most + 1):
        why = config.refusal(Sampling(scheduler=name, num_inference_steps=number))
        fits = least <= number <= most
        assert why is None if fits else f"{name}; choose {least} to {most}" in str(why)
