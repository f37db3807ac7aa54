"""Raw data to shards."""

from pathlib import Path

import pytest
from material import encoded, interleaved_lines, jsonl, make_vae, run, save
from mmfusion.data_pipelines.interleaved import write_interleaved
from mmfusion.data_pipelines.shards import Shards, write_shards
from mmfusion.data_pipelines.tokenizer import corpus, train_tokenizer

from mmfusion.codecs.text import Tokenizer
from mmfusion.errors import UserError

# Interleaved documents, tokenizer


def test_interleaved_documents_become_shards(tmp_path: Path):
    made = write_interleaved(interleaved_lines(tmp_path), tmp_path / "out", seed=None)
    first, second = Shards(f"{tmp_path}/out/*.tar")
    assert first.json()["content"] == [
        {"image": "0.jpg"}, {"text": "then comes"}, {"answer": "this"},
        {"image": "1.png", "target": True},
    ]  # fmt: skip
    assert (first["0.jpg"], first["1.png"]) == (encoded(0, "jpeg"), encoded(1))
    assert second.json()["content"] == [{"image": "0.png"}, {"answer": "one"}]
    assert made.lost == {"content": 5}


def test_a_tokenizer_is_trained_from_shards_and_text(tmp_path: Path):
    write_shards(
        tmp_path,
        "a",
        [
            ("0", {"json": {"captions": ["alpha beta", "gamma"]}, "png": encoded(0)}),
            (
                "1",
                {"json": {"content": [{"text": "delta"}, {"answer": "eps"}, {"image": "0.png"}]}},
            ),
            ("2", {"txt": b"zeta"}),
        ],
    )
    text = save(tmp_path / "more.txt", b"eta\ntheta\n")
    lines = list(corpus([f"{tmp_path}/a-*.tar"], [text]))
    assert lines == ["alpha beta", "gamma", "delta", "eps", "zeta", "eta", "theta", ""]
    model = Tokenizer(train_tokenizer(lines, tmp_path / "t.model", 300))
    assert model.decode(model.encode("theta gamma")) == "theta gamma"
    with pytest.raises(UserError, match="cannot be trained"):
        train_tokenizer([" "], tmp_path / "t.model", 300)
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        list(corpus([], [tmp_path / "none.txt"]))


# The command line


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
