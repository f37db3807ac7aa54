"""A sampler's steps as numbers against diffusers' schedulers, run on a model that is not linear."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from mmfusion.config import DiffusionConfig
from mmfusion.diffusion import Diffusion
from mmfusion.errors import UserError
from mmfusion.generation import coefficients
from mmfusion.generation.coefficients import HISTORY, Step, probed, steps_of


def configs() -> list[DiffusionConfig]:
    """Both paths with every prediction that they allow."""
    found = []
    for path in ("ddpm", "flow"):
        for prediction in ("epsilon", "sample", "v_prediction"):
            try:
                found.append(DiffusionConfig(path=path, prediction=prediction))
            except ValidationError:
                assert (path, prediction) == ("flow", "epsilon")
    return found


CASES = [(config, name) for config in configs() for name in config.schedulers]


def model(x: Tensor, timestep: float) -> Tensor:
    mix = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    return torch.tanh(0.3 * x @ mix) + timestep / 1000


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in (5, 6)]


def by_scheduler(config: DiffusionConfig, name: str, steps: int, x: Tensor) -> Tensor:
    diffusion, drawn = Diffusion(config), generators()
    scheduler = diffusion.scheduler(name, steps)
    for number in range(len(scheduler.timesteps)):
        output = model(x, diffusion.timestep(scheduler, number))
        x = diffusion.step(scheduler, number, output, x, drawn)
    return x


def by_numbers(config: DiffusionConfig, name: str, steps: int, x: Tensor) -> Tensor:
    """As the docstring says it: x = Σ_k (a_k x_k + b_k o_k) + c z."""
    drawn, latents, outputs = generators(), [x], []
    for step in probed(config, name, steps):
        outputs.insert(0, model(latents[0], step.timestep))
        assert len(step.latents) == len(step.outputs) == min(HISTORY, len(outputs))
        made = sum(a * x for a, x in zip(step.latents, latents, strict=False))
        made += sum(b * o for b, o in zip(step.outputs, outputs, strict=False))
        if step.noise:
            made += step.noise * torch.cat(
                [torch.randn(1, *x.shape[1:], generator=g) for g in drawn]
            )
        latents.insert(0, made)
    return latents[0]


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 250])
@pytest.mark.parametrize(
    ("config", "name"), CASES, ids=[f"{c.path}-{c.prediction}-{name}" for c, name in CASES]
)
def test_numbers_do_what_the_scheduler_does(config: DiffusionConfig, name: str, steps: int) -> None:
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    expected, made = (f(config, name, steps, x) for f in (by_scheduler, by_numbers))
    scale = float(expected.abs().max())  # some of them go far astray on such a model
    torch.testing.assert_close(made / scale, expected / scale, rtol=0, atol=1e-5)


def test_only_ddpm_draws_and_timesteps_fall() -> None:
    for config, name in CASES:
        steps = probed(config, name, 5)
        drawn = [step.noise > 0 for step in steps]
        assert drawn == ([True] * 4 + [False] if name == "ddpm" else [False] * 5)
        falling = [step.timestep for step in steps]
        assert falling == sorted(falling, reverse=True)


def test_numbers_are_kept_and_made_anew_where_they_are_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMFUSION_CACHE", str(tmp_path))
    made: list[int] = []

    def spy(config: DiffusionConfig, name: str, steps: int) -> tuple[Step, ...]:
        made.append(steps)
        return probed(config, name, steps)

    def asked(config: DiffusionConfig, steps: int) -> tuple[Step, ...]:
        steps_of.cache_clear()
        return steps_of(config.model_dump_json(), "unipc", steps)

    monkeypatch.setattr(coefficients, "probed", spy)
    first, second = configs()[:2]
    expected = probed(first, "unipc", 4)
    assert asked(first, 4) == asked(first, 4) == expected
    assert made == [4]
    asked(second, 4)
    asked(first, 5)
    assert made == [4, 4, 5]
    for damage in (lambda text: text[:-9], lambda _: "[]", lambda _: '[["a", "b", "c", "d"]]'):
        for file in tmp_path.rglob("*.json"):
            file.write_text(damage(file.read_text("utf-8")), encoding="utf-8")
        assert asked(first, 4) == expected
    assert made == [4, 4, 5, 4, 4, 4]
    steps_of.cache_clear()


def test_without_room_for_them_numbers_are_made_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMFUSION_CACHE", str(tmp_path))

    def full(*_: object) -> None:
        raise UserError("no room")

    config = configs()[0]
    for name in ("cache_folder", "files.write"):
        with monkeypatch.context() as patch:
            patch.setattr(f"mmfusion.generation.coefficients.{name}", full)
            steps_of.cache_clear()
            found = steps_of(config.model_dump_json(), "ddim", 3)
        assert found == probed(config, "ddim", 3)
    steps_of.cache_clear()
