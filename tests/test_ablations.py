"""The ablations compare what they say they compare."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.ablations import ARMS, STEPS, config, main, table
from mmfusion.data_pipelines.converters.digits import write_digits

SMALL = ["decoder.width=16", "decoder.depth=1", "decoder.heads=2", "train.steps=2", "data.rows=2",
         "data.micro_rows=2", "generation.image_to_text.max_new_tokens=2"]  # fmt: skip


def flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    return {k: v for name, item in value.items() for k, v in flat(item, f"{key}.{name}").items()}


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_differs_from_the_recipe_in_what_it_names(arm: str, tmp_path: Path) -> None:
    write_digits(tmp_path / "data")
    recipe, ours = (
        flat(config(tmp_path, name, 1, SMALL).model_dump()) for name in ("decay-0.9", arm)
    )
    changed = {key for key in ours if ours[key] != recipe[key]} - {".train.output"}
    assert changed == ({f".{ARMS[arm][0].split('=')[0]}"} if arm != "decay-0.9" else set())


def test_runs_become_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--output", str(tmp_path), "--pictures", "10", "--seeds", "1", *SMALL,
             "--workers", "1", "--arms"]  # fmt: skip
    main([*asked, "raster", "steps-2"])
    text = (tmp_path / "tables.md").read_text("utf-8")
    assert capsys.readouterr().out.strip() == text.strip()
    lines = text.splitlines()
    assert lines[0].startswith("2 steps of 2 rows, seeds: 1")
    heads = " | ".join(f"S = {steps}" for steps in STEPS)
    assert f"| Fréchet distance | {heads} |" in lines
    assert f"| accuracy | {heads} |" in lines
    assert [line.split(" | ")[0] for line in lines].count("| raster") == 3
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}
    main([*asked, "raster"])  # nothing is trained or drawn again
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}
    again = (tmp_path / "tables.md").read_text("utf-8").splitlines()
    assert [line for line in lines if "raster" in line] == [x for x in again if "raster" in x]


def test_a_table_has_means_and_spreads() -> None:
    found = {
        "a": [{"CIDEr": {"S = 1": v}} for v in (10.0, 12.0, 14.0)],
        "b": [{"CIDEr": {"S = 1": 3.0}}],
    }
    assert table("CIDEr", found).splitlines() == [
        "| CIDEr | S = 1 |", "| --- | --- |", "| a | 12.00 ± 2.00 |", "| b | 3.00 |",
    ]  # fmt: skip
