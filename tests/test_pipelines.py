"""Raw data to shards, by the commands."""

from pathlib import Path

import pytest
from material import encoded, interleaved_lines, jsonl, make_vae, run, save

from mmfusion.data_pipelines.shards import Shards


def test_the_commands_prepare_data_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture):
    for number in range(6):
        save(tmp_path / f"classes/{'abc'[number // 2]}/{number}.png", encoded(number))
    out = tmp_path / "data"
    data = ("data", "imagenet", tmp_path / "classes", "--size", 16, "-o", out / "a")
    assert run(*data) == 0
    assert "wrote 1 of 1 shards" in capsys.readouterr().out
    assert run(*data) == 0
    assert "wrote 0 of 1 shards" in capsys.readouterr().out
    assert run(*data, "--seed", 3) == 2
    assert "made with other settings" in capsys.readouterr().err
    lines = interleaved_lines(tmp_path)
    assert run("data", "interleaved", lines, "-o", out / "b") == 0
    lines = jsonl(tmp_path / "c.jsonl", {"image": "p/a.jpg", "caption": "a dog"})
    assert run("data", "captions", lines, "-o", out / "c", "--format", "png", "--size", 8) == 0
    assert run("data", "tokenizer", "--shards", f"{out}/[abc]/*.tar", "--vocabulary", 320,
               "-o", out / "t.model") == 0  # fmt: skip
    assert run("data", "tokenizer", "-o", out / "t.model") == 2
    image = {"codec": "vae", "vae": make_vae(tmp_path / "vae"), "size": 16, "patch": 2,
             "channels": 3, "latent_channels": 4, "downsampling": 2, "latent_scale": 0.5,
             }  # fmt: skip
    section = [f"image.{key}={value}" for key, value in image.items()]
    latents = ["data", "latents", f"{out}/a/*.tar", "-o", out / "d", "--flip", "--config", "tiny"]
    latents += section
    assert run(*latents) == 0
    assert "wrote 1 of 1 shards" in capsys.readouterr().out
    assert run(*latents) == 0
    assert "wrote 0 of 1 shards" in capsys.readouterr().out
    assert Shards(f"{out}/d/*.tar")[0].array("moments.npy").shape == (2, 2, 4, 8, 8)
