"""Where models are exported to: what is ours there is replaced, and nothing else is touched."""

import json
import multiprocessing
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import LABEL_TOKENS, model_config, random_decoder
from material import limited

from mmfusion import Pipeline, UserError, export, manifest
from mmfusion.config import ModelConfig
from mmfusion.files import PART

fork = multiprocessing.get_context("fork")


def described(classes: int) -> ModelConfig:
    return model_config(text=None, classes=[f"class {n}" for n in range(classes)])


def save(folder: Path, classes: int = 3) -> Path:
    """A model of so many classes; it says by its config and its weights which one it is."""
    config = described(classes)
    export.export(config, random_decoder(config).state_dict(), folder)
    return folder


def classes_of(folder: Path) -> int:
    config, decoder, tokenizer = export.read(folder)
    assert tokenizer is None
    assert len(config.classes) == classes_of_table(decoder)
    return len(config.classes)


def classes_of_table(decoder: Any) -> int:
    return decoder.label.weight.shape[0] // LABEL_TOKENS - 1


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# What is there


NOTES = {"notes": "years of work"}
FOREIGN: dict[str, dict[str, str]] = {  # the files of a folder
    "a folder with files": NOTES,
    "a hidden file alone": {".env": ""},
    "a file": {},
    "a model of another project": {**NOTES, "config.json": "{}", "model.safetensors": "{}"},
    "an extension of a browser": {
        **NOTES,
        "config.json": "{}",
        "manifest.json": '{"manifest_version": 3, "config.json": "settings"}',
    },
    "a sealed folder of another kind": {**NOTES, "state.json": "{}"},
    "a manifest with digests of something else": {
        **NOTES,
        "config.json": "{}",
        "manifest.json": json.dumps(dict.fromkeys(("config.json", "notes"), "0" * 64)),
    },
}


def make(place: Path, kind: str) -> None:
    if kind == "a file":
        place.write_text("years of work")
        return
    place.mkdir()
    for name, text in FOREIGN[kind].items():
        (place / name).write_text(text)
    if "sealed" in kind:
        manifest.seal(place)


@pytest.mark.parametrize("written", ["place", "place/", "place/.", "x/../place", "link", "."])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_ours_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, written: str
) -> None:
    place = tmp_path / "place"
    make(place, kind)
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to("place")
    before = tree(tmp_path)
    monkeypatch.chdir(place if written == "." and place.is_dir() else tmp_path)
    with pytest.raises(UserError) as refused:
        save(Path(written))
    assert str(Path(written)) in str(refused.value)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "written", ["new", "new/deep/er/", "empty", "empty/.", "x/../new", "link", "nowhere", "."]
)
def test_a_model_is_exported_and_again_where_there_is_room_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    for name in ("empty", "x", "far"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("far")
    (tmp_path / "nowhere").symlink_to("far/away")
    monkeypatch.chdir(tmp_path / "empty" if written == "." else tmp_path)
    links = {p: os.readlink(p) for p in tmp_path.iterdir() if p.is_symlink()}
    for classes in (3, 4):
        save(Path(written), classes)
        assert os.path.exists(".")  # who stands there still does
        assert classes_of(Path(written)) == classes
        assert sorted(os.listdir(written)) == ["config.json", "manifest.json", "model.safetensors"]
    assert {p: os.readlink(p) for p in tmp_path.iterdir() if p.is_symlink()} == links
    assert not list(tmp_path.glob(".*"))


def test_a_place_where_nothing_can_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    for name in ("file/model", "circle"):
        with pytest.raises(UserError, match=name):
            save(tmp_path / name)


def coded(vae: Path) -> ModelConfig:
    """A config whose autoencoder's two files lie there, made now."""
    vae.mkdir()
    (vae / "config.json").write_text("{}")
    (vae / "diffusion_pytorch_model.safetensors").write_text("weights")
    config = described(3)
    return config.model_copy(update={"image": config.image.model_copy(update={"vae": str(vae)})})


def test_what_a_user_added_stays(tmp_path: Path) -> None:
    folder, vae = tmp_path / "model", tmp_path / "vae"
    export.export(coded(vae), random_decoder(described(3)).state_dict(), folder)
    assert (folder / "vae/diffusion_pytorch_model.safetensors").is_file()
    added = {
        "README.md": b"mine",
        "samples/a.png": b"png",
        "vae/notes": b"x",
        ".gitattributes": b"",
    }
    for name, data in added.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    save(folder, 5)  # has no autoencoder: that of before goes
    sealed = {"config.json", "manifest.json", "model.safetensors"}
    assert {n: d for n, d in tree(folder).items() if n not in sealed} == added
    assert classes_of(folder) == 5
    assert "README.md" not in json.loads((folder / "manifest.json").read_text("utf-8"))


def test_a_file_of_ours_that_a_user_changed_stays(tmp_path: Path) -> None:
    folder, vae = tmp_path / "model", tmp_path / "vae"
    export.export(coded(vae), random_decoder(described(3)).state_dict(), folder)
    (folder / "vae/diffusion_pytorch_model.safetensors").write_text("trained further, for weeks")
    save(folder, 5)
    assert (
        folder / "vae/diffusion_pytorch_model.safetensors"
    ).read_text() == "trained further, for weeks"
    assert not (folder / "vae/config.json").exists()


@pytest.mark.parametrize("what", ["file in the way", "link in the way"])
def test_nothing_is_written_over_or_through_what_a_user_added(tmp_path: Path, what: str) -> None:
    folder, config = save(tmp_path / "model"), coded(tmp_path / "vae")
    (tmp_path / "shared").mkdir()
    if what == "file in the way":
        (folder / "vae").write_text("mine")
    else:
        (folder / "vae").symlink_to(tmp_path / "shared")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"model/vae"):
        export.export(config, random_decoder(described(3)).state_dict(), folder)
    assert tree(tmp_path) == before
    assert classes_of(folder) == 3


@pytest.mark.parametrize("name", ["../precious", "/precious", "a/../../precious", "./config.json"])
def test_a_manifest_from_elsewhere_does_not_reach_out_of_its_folder(
    tmp_path: Path, name: str
) -> None:
    """Re-exporting removes what the old manifest lists and the new one does not."""
    folder, precious = save(tmp_path / "model"), tmp_path / "precious"
    precious.write_text("years of work")
    listed = json.loads((folder / "manifest.json").read_text("utf-8"))
    listed[name.replace("/precious", str(precious)) if name[0] == "/" else name] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(listed))
    with pytest.raises(UserError, match="model"):
        save(folder)
    assert precious.is_file()


@pytest.mark.parametrize("linked", ["place", "source", "part"])
def test_a_folder_from_elsewhere_moves_nothing_through_its_links(
    tmp_path: Path, linked: str
) -> None:
    """It looks as if a process was killed while it replaced it, and has a link to what is ours."""
    folder, mine = save(tmp_path / "model"), tmp_path / "mine"
    mine.mkdir()
    (mine / "notes").write_text("years of work")
    part = folder / PART
    if linked == "part":
        manifest.seal(mine)
        part.symlink_to(mine)
    else:
        (part / "vae").mkdir(parents=True)
        (part / "vae/notes").write_text("theirs")
        manifest.seal(part)
    if linked == "source":
        shutil.rmtree(part / "vae")
        (part / "vae").symlink_to(mine)
    if linked == "place":
        (folder / "vae").symlink_to(mine)
    before = tree(mine)
    classes_of(folder)
    assert tree(mine) == before


# Killed, or without room


def export_until(folder: Path, calls: int) -> None:
    """Export, and die at the `calls`th time that something is moved or removed."""
    count = 0

    def dying(real: Callable) -> Callable:
        def call(*given: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == calls:
                os._exit(9)
            return real(*given, **options)

        return call

    for name in ("replace", "rename", "unlink", "rmdir"):
        setattr(os, name, dying(getattr(os, name)))
    save(folder, 4)
    os._exit(0)


@pytest.mark.parametrize("healed_by", ["reading", "exporting"])
def test_killed_at_any_moment_one_of_both_models_is_there(tmp_path: Path, healed_by: str) -> None:
    before = save(tmp_path / "before", 3)
    (before / "README.md").write_text("mine")
    codes, found = [], []
    while not codes or codes[-1]:
        assert len(codes) < 40
        folder = Path(shutil.copytree(before, tmp_path / f"model-{len(codes)}"))
        process = fork.Process(target=export_until, args=(folder, len(codes) + 1))
        process.start()
        process.join()
        codes.append(process.exitcode)
        if healed_by == "exporting":
            save(folder, 5)
        found.append(classes_of(folder))
        assert (folder / "README.md").read_text() == "mine"
        if healed_by == "exporting":
            left = {"README.md", "config.json", "manifest.json", "model.safetensors"}
            assert {*os.listdir(folder)} == left
    assert set(codes) == {0, 9}
    assert set(found) <= ({3, 4} if healed_by == "reading" else {5})


def test_the_first_export_of_a_killed_process_does_not_bar_the_next(tmp_path: Path) -> None:
    for number in range(1, 4):
        folder = tmp_path / str(number)
        process = fork.Process(target=export_until, args=(folder, number))
        process.start()
        process.join()
        assert process.exitcode == 9
        save(folder, 5)
        assert classes_of(folder) == 5


def test_without_room_the_old_model_stays(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", 3)
    before = tree(tmp_path)
    for place in (folder, tmp_path / "new"):
        refused = pytest.raises(UserError, match=rf"{place.name}.*make room")
        with limited(resource.RLIMIT_FSIZE, 5000), refused:
            save(place, 4)
    assert tree(tmp_path) == before
    assert not list(tmp_path.glob("**/.*"))
    assert not (tmp_path / "new").exists()


def test_a_model_that_is_replaced_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "model", 3)
    real, done = export.load_file, []

    def late(path: Path) -> dict[str, torch.Tensor]:
        if not done:
            done.append(save(folder, 4))
        return real(path)

    monkeypatch.setattr(export, "load_file", late)
    pipeline = Pipeline.from_pretrained(folder, "cpu")
    assert len(pipeline.config.classes) == classes_of_table(pipeline.decoder) == 4


def test_a_folder_that_nobody_can_finish_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process was stopped, and here one may only read."""
    folder = save(tmp_path / "model", 3)
    shutil.copytree(save(tmp_path / "other", 4), folder / PART)
    os.replace(folder / PART / "config.json", folder / "config.json")
    monkeypatch.setattr(manifest, "finish", lambda folder: None)
    monkeypatch.setattr(manifest, "PAUSE", 0)
    with pytest.raises(UserError, match=str(folder)):
        Pipeline.from_pretrained(folder, "cpu")
