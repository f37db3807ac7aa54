"""What is said when data are missing."""

import json
from pathlib import Path
from typing import Any

import pytest
from material import save

from mmfusion.config import load
from mmfusion.data_pipelines.preflight import check_data
from mmfusion.errors import UserError


def test_the_class_names_of_a_file_take_their_place_in_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    overrides = ["classes=[]", "classes_file=names.json", "class_count=3"]
    missing = load("tiny", overrides)
    assert (missing.classes_file, missing.classes) == ("names.json", ["0", "1", "2"])
    names = save(tmp_path / "names.json", b'["a", "b", "c"]')
    config = load("tiny", overrides)
    assert (config.classes_file, config.class_count) == (None, None)
    assert config.classes == config.model_part().classes == ["a", "b", "c"]
    for broken in (b"{}", b"[]", b"[1]", b"{", b"\xff"):
        names.write_bytes(broken)
        with pytest.raises(UserError, match=r"classes_file names\.json"):
            load("tiny", overrides)
    names.write_bytes(b'["a"]')
    with pytest.raises(UserError, match="has 1 names; class_count says 3"):
        load("tiny", overrides)
    with pytest.raises(UserError, match="class_count goes with `classes_file`"):
        load("tiny", ["class_count=10"])


def test_mm_xl_without_its_data_lists_every_missing_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    config = load("mm_xl")
    assert len(config.classes) == 1000  # known before the names are
    with pytest.raises(UserError) as caught:
        check_data(config, "mm_xl")
    said = str(caught.value)
    vae, tokenizer = "data/vae/mar-kl16", "data/tokenizer.model"
    for piece, command in (
        (f"image.vae: no folder {vae}", f"mmfusion import mar-vae kl16.ckpt {vae}"),
        ("imagenet, recaption: no shards", 'latents "data/imagenet/*.tar" --config mm_xl --flip'),
        ("sources draw, caption: no shards", "captions CAPTIONS.jsonl -o data/captions\n"),
        ("sources interleaved: no shards", "interleaved DOCUMENTS.jsonl -o data/interleaved\n"),
        ("no file data/imagenet/classes.json", "--captions RECAPTIONS -o data/imagenet\n"),
        (f"text.tokenizer: no file {tokenizer}", f"-o {tokenizer}"),
    ):
        assert piece in said
        assert command in said.split(piece)[1]
    for path in ("vae/mar-kl16/x", "imagenet-latents/a.tar", "imagenet/classes.json"):
        save(tmp_path / "data" / path, json.dumps(["a"] * 1000).encode())
    with pytest.raises(UserError, match="3 of its data are missing"):
        check_data(load("mm_xl"), "mm_xl")
    for path in ("captions-latents/a.tar", "interleaved-latents/a.tar", "tokenizer.model"):
        save(tmp_path / "data" / path, b"")
    check_data(load("mm_xl"), "mm_xl")


def test_a_mistyped_path_is_no_reason_to_make_the_demo_there(tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "mine/train-00000.tar", b"")
    wrong = [f"data.sources.{n}.shards=mine/trian-*.tar" for n in range(4)]
    with pytest.raises(UserError) as refused:
        check_data(load("digits", [*wrong, "text.tokenizer=mine/t.model"]), "digits")
    assert "mine has train-00000.tar" in str(refused.value)
    assert "data digits" not in str(refused.value)


def test_what_is_there_under_nearly_that_name_is_told(tmp_path: Path, monkeypatch: Any):
    """Of each path in a config of one's own; nothing is said where nothing is alike."""
    monkeypatch.chdir(tmp_path)
    for name in ("coco-train/a.tar", "text/tokens.model", "codec.safetensors", "classes.json"):
        save(tmp_path / name, b"")
    (tmp_path / "mine.yaml").write_text(
        "base: digits\nimage: {codec: linear, linear: codek.safetensors, latent_channels: 4}\n"
        "text: {tokenizer: text/token.model}\nclasses_file: class.json\ndata: {sources: ["
        "{name: a, task: text_to_image, shards: coco-trian/*.tar},"
        "{name: b, task: class_to_image, shards: elsewhere/*.tar}]}",
        encoding="utf-8",
    )
    with pytest.raises(UserError) as refused:
        check_data(load("./mine.yaml"), "mine")
    told = [line for line in str(refused.value).splitlines()[1:] if ": no " in line]
    told = [line.rpartition(" has ")[2].split(",")[0] for line in told]
    assert told == [
        "codec.safetensors", "coco-train", "  data.sources b: no shards elsewhere/*.tar",
        "classes.json", "tokens.model",
    ]  # fmt: skip


def test_the_digits_configs_name_their_one_command(tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="mmfusion data digits -o runs/digits/data"):
        check_data(load("digits"), "digits")
    with pytest.raises(UserError, match=r"tokenizer --take FOLDER_OR_HUB_ID -o taken\.json"):
        check_data(load("digits", ["text.tokenizer=taken.json"]), "digits")
