"""Models on the hub, and how they are saved for it, against a hub on this machine."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import run_config
from hub_stand_in import TOKEN, Hub, faults
from PIL import Image as PILImage

from mmfusion import Pipeline, UserError
from mmfusion.config import save

FAST: dict[str, Any] = {"num_inference_steps": 2}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The stand-in, as the only hub there is, for a user with a token and an empty cache."""
    from huggingface_hub import HfApi, constants

    stand_in = Hub()
    template = stand_in.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", stand_in.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert HfApi().endpoint == stand_in.address
    monkeypatch.chdir(tmp_path)
    yield stand_in
    stand_in.server.shutdown()
    stand_in.server.server_close()


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(model_folder, "cpu")


def files(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*")}


def same_picture(one: Pipeline, other: Pipeline) -> bool:
    made = [np.asarray(p.class_to_image(3, seed=5, **FAST)) for p in (one, other)]
    return bool((made[0] == made[1]).all())


def test_pushed_and_loaded_back_it_is_the_same(hub: Hub, pipe: Pipeline, tmp_path: Path) -> None:
    """Same bytes, same picture; also from a branch, and without a network once it was loaded."""
    address = pipe.push_to_hub("me/digits", commit_message="the first")
    assert address.startswith(hub.address)
    assert hub.repos["me/digits"].messages == ["made", "the first"]
    pipe.save_pretrained(tmp_path / "digits")
    assert hub.repos["me/digits"].files() == files(tmp_path / "digits")
    again = Pipeline.from_pretrained("me/digits", "cpu")
    assert again.source is not None
    assert files(again.source) == files(tmp_path / "digits")
    assert same_picture(again, pipe)

    half = Pipeline.from_pretrained("me/digits", "cpu", "bfloat16")
    half.push_to_hub("me/digits", revision="half")
    loaded = Pipeline.from_pretrained("me/digits", "cpu", revision="half")
    assert loaded.saved_dtype == torch.bfloat16
    asked = len(hub.asked)
    offline = Pipeline.from_pretrained("me/digits", "cpu", local_files_only=True)
    assert same_picture(offline, pipe)
    assert len(hub.asked) == asked


def test_where_from_and_where_to(hub: Hub, pipe: Pipeline, tmp_path: Path, command: Any) -> None:
    """`token`, `cache_dir`, `subfolder`, `revision`, and the command."""
    model = str(pipe.source)
    assert command("push", model, "new", "--license", "mit")[0] == 0
    assert b"license: mit" in hub.repos["me/new"].files()["README.md"]
    inner = {f"small/{name}": data for name, data in hub.repos["me/new"].files().items()}
    hub.repos["me/new"].commit("main", inner, "moved")
    cache = tmp_path / "elsewhere"
    loaded = Pipeline.from_pretrained("me/new", "cpu", subfolder="small", cache_dir=cache)
    assert loaded.source is not None
    assert cache in loaded.source.parents
    shutil.copytree(loaded.source, "here/small")
    for name in ("here", Path("here")):
        assert same_picture(Pipeline.from_pretrained(name, "cpu", subfolder="small"), pipe)
    for options, named in (
        ({"token": "hf_wrong", "cache_dir": "none"}, r"me/new.*401.*hf auth login"),
        ({"revision": "nowhere", "cache_dir": "none"}, r"me/new.*404.*Revision Not Found"),
        ({"local_files_only": True, "cache_dir": "none"}, "me/new"),
        ({"subfolder": "../small"}, "subfolder"),
        ({"subfolder": "large"}, "me/new"),
    ):
        with pytest.raises(UserError, match=named):
            Pipeline.from_pretrained("me/new", "cpu", **options)
    with pytest.raises(UserError, match=r"401.*hf auth login"):
        pipe.push_to_hub("me/new", token="hf_wrong")
    with pytest.raises(UserError, match="push to a b"):
        pipe.push_to_hub("a b")


def test_what_others_have_put_there_stays(hub: Hub, pipe: Pipeline) -> None:
    pipe.push_to_hub("me/m", max_shard_size="20KB")
    repo = hub.repos["me/m"]
    cut = [name for name in repo.files() if name.endswith(".safetensors")]
    assert len(cut) > 1
    edited = {**repo.files(), "README.md": b"---\nlicense: mit\n---\nmine", "notes.txt": b"mine"}
    repo.commit("main", edited, "on the page")
    pipe.push_to_hub("me/m")
    now = repo.files()
    assert {name for name in now if name.endswith(".safetensors")} == {"model.safetensors"}
    assert "model.safetensors.index.json" not in now
    assert (now["README.md"], now["notes.txt"]) == (edited["README.md"], b"mine")
    pipe.push_to_hub("me/m")  # still theirs, though a manifest lists a card
    assert repo.files()["README.md"] == edited["README.md"]
    assert same_picture(Pipeline.from_pretrained("me/m", "cpu"), pipe)
    repo.commit("main", {"config.json": b"{}", "model.safetensors": b"theirs"}, "another project")
    with pytest.raises(UserError, match="another project"):
        pipe.push_to_hub("me/m")
    repo.commit("main", {"README.md": b"---\nlicense: mit\n---\n", ".gitattributes": b""}, "new")
    pipe.push_to_hub("me/m")  # as the hub's page makes one
    assert repo.files()["README.md"] == b"---\nlicense: mit\n---\n"


# What is saved


def test_weights_in_several_files(pipe: Pipeline, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    pipe.save_pretrained(tmp_path / "cut", max_shard_size=20_000)
    index = json.loads((tmp_path / "cut/model.safetensors.index.json").read_text("utf-8"))
    parts = sorted({*index["weight_map"].values()})
    assert parts == [
        f"model-{n:05d}-of-{len(parts):05d}.safetensors" for n in range(1, len(parts) + 1)
    ]
    assert len(parts) > 2
    for name, file in index["weight_map"].items():
        assert torch.equal(
            load_file(tmp_path / "cut" / file)[name], pipe.decoder.state_dict()[name]
        )
    again = Pipeline.from_pretrained(tmp_path / "cut", "cpu")
    assert same_picture(again, pipe)
    assert len({p.budget.digest for p in (again, Pipeline.from_pretrained(tmp_path / "cut"))}) == 1
    again.save_pretrained(tmp_path / "cut")
    assert not [*(tmp_path / "cut").glob("model-*")]
    again.save_pretrained(tmp_path / "cut", max_shard_size=20_000)
    (tmp_path / "cut" / parts[1]).unlink()
    with pytest.raises(UserError, match=f"{parts[1]} is missing"):
        Pipeline.from_pretrained(tmp_path / "cut", "cpu")
    for wrong in ("much", None, "5 elephants"):
        with pytest.raises(UserError, match="max_shard_size"):
            pipe.save_pretrained(tmp_path / "new", max_shard_size=wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "index",
    ["[]", "{}", "{", '{"weight_map": {"a": "../x.safetensors"}}', '{"weight_map": {"a": 1}}'],
)
def test_an_index_names_no_file_outside(pipe: Pipeline, tmp_path: Path, index: str) -> None:
    pipe.save_pretrained(tmp_path / "m", max_shard_size=20_000)
    (tmp_path / "m/model.safetensors.index.json").write_text(index)
    from mmfusion.manifest import seal

    seal(tmp_path / "m")
    with pytest.raises(UserError, match="index of weights"):
        Pipeline.from_pretrained(tmp_path / "m", "cpu")


@pytest.fixture
def run(model_folder: Path, tmp_path: Path) -> Path:
    """A run that has trained and was evaluated, with its model."""
    folder = tmp_path / "run"
    shutil.copytree(model_folder, folder / "model")
    save(run_config(tmp_path / "data", folder), folder / "config.yaml")
    report = {
        "judge": {},
        "text_to_image": {"accuracy": 0.75, "n": 200},
        "settings": {"class_to_image": {"reference": "/home/me/held_out-*.tar"}},
        "figures": {
            "class_to_image": {
                "fid": {"value": 7.5, "n": 1000, "warning": "few"},
                "cycle": {"gain": {"value": float("nan"), "n": 10}},
                "left_out": {"kid": "too few"},
            }
        },
    }
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "training.json").write_text('{"steps": 1800, "seconds": 540, "ranks": 1}')
    (folder / "samples").mkdir()
    for step in (9, 10):
        PILImage.new("L", (step, 1)).save(folder / f"samples/step-{step:08d}.png")
    PILImage.new("L", (77, 1)).save(folder / "samples/step-00000010-best.png")  # a user's
    return folder


def test_a_card_tells_what_is_known_of_the_run(run: Path, tmp_path: Path) -> None:
    """And the hub's own reader and check take it."""
    from huggingface_hub import ModelCard

    Pipeline.from_pretrained(run, "cpu").save_pretrained(
        tmp_path / "digits-small", license="apache-2.0", datasets=["me/data"]
    )
    card = ModelCard.load(tmp_path / "digits-small/README.md")
    head = card.data.to_dict()
    assert not faults(card.content)
    assert (head["license"], head["library_name"]) == ("apache-2.0", "mmfusion")
    assert (head["pipeline_tag"], head["datasets"]) == ("any-to-any", ["me/data"])
    assert card.data.model_name == "digits-small"
    found = {(r.task_name, r.metric_type, r.metric_value) for r in card.data.eval_results}
    assert found == {("text_to_image", "accuracy", 0.75), ("class_to_image", "fid", 7.5)}
    assert head["metrics"] == ["accuracy", "fid"]
    assert "1800 steps" in card.text
    assert "| fid | 7.5 | 1000 | held_out-*.tar |" in card.text
    assert str(tmp_path) not in card.content  # a user's folders are nobody's business
    assert "/home/me" not in card.content
    assert PILImage.open(tmp_path / "digits-small/samples.png").width == 10  # the newest


def test_a_card_goes_with_its_model_and_is_the_users(run: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    Pipeline.from_pretrained(run, "cpu").save_pretrained(first)
    assert b"license: unknown" in (first / "README.md").read_bytes()
    assert b"license: unknown" not in (first / "config.json").read_bytes()
    text = (first / "README.md").read_bytes()
    (first / "README.md").write_bytes(b"\xef\xbb\xbf" + text)  # as some editors save it
    pipeline = Pipeline.from_pretrained(first, "cpu")
    pipeline.save_pretrained(second, license="mit")
    changed = text.replace(b"license: unknown", b"license: mit")
    assert (second / "README.md").read_bytes() == changed
    (first / "README.md").write_text("mine")  # shorter than all other files but config.json
    (second / "samples.png").unlink()
    for folder in (first, second):
        Pipeline.from_pretrained(folder, "cpu").save_pretrained(folder)
        assert same_picture(Pipeline.from_pretrained(folder, "cpu"), pipeline)
    assert (first / "README.md").read_text() == "mine"
    assert (second / "README.md").read_bytes() == changed
    Pipeline.from_pretrained(first, "cpu").save_pretrained(tmp_path / "third")
    assert (tmp_path / "third/README.md").read_text() == "mine"
    Pipeline.from_pretrained(run, "cpu").save_pretrained(first)  # another's card is not put over it
    assert (first / "README.md").read_text() == "mine"


def test_a_pipeline_moves(pipe: Pipeline, model_folder: Path) -> None:
    pipeline = Pipeline.from_pretrained(model_folder, torch_dtype=torch.float16, device="cpu")
    assert (pipeline.device.type, pipeline.dtype) == ("cpu", torch.float16)
    assert pipeline.to("cpu") is pipeline.to(torch.bfloat16)
    assert (pipeline.dtype, pipeline.budget.machine.dtype) == (torch.bfloat16, "bfloat16")
    assert pipeline.to("cpu", "float32").dtype == torch.float32
    assert pipeline.to("cpu").dtype == torch.float32
    for wrong in ({"device": "gpu"}, {"dtype": "int8"}, {"device": "meta"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            pipeline.to(**wrong)
    with pytest.raises(UserError, match="torch_dtype are the same"):
        Pipeline.from_pretrained(model_folder, dtype="float16", torch_dtype="float16")


# Names that users of other libraries try


def test_names_of_other_libraries(pipe: Pipeline) -> None:
    from mmfusion import ImageSlot
    from mmfusion.generation.arguments import INSTEAD, SAME

    given = [
        pipe.class_to_image(3, **{name: 2.5}, **FAST) for name in ("guidance", "guidance_scale")
    ]
    assert np.array_equal(*given)
    assert ImageSlot(guidance_scale=2.0).options == {"guidance": 2.0}
    assert pipe.image_to_text(given[0], num_beams=2) == pipe.image_to_text(given[0], beams=2)
    assert np.array_equal(pipe.class_to_image(3, guidance=2.5, generator=None, **FAST), given[0])
    for name in INSTEAD:
        with pytest.raises(UserError, match=f"^{name}: there is no such option"):
            pipe.text_to_image("a", **{name: 1})
    for name, own in SAME.items():
        with pytest.raises(UserError, match=f"{own} and {name} are the same"):
            pipe.text_to_image("a", **{name: 1, own: 1})
    with pytest.raises(UserError, match=r"pipeline\.text_to_image"):
        pipe("a seven")


def test_a_pipeline_says_what_it_is(pipe: Pipeline, model_folder: Path) -> None:
    said = repr(pipe)
    count = sum(w.numel() for w in pipe.decoder.state_dict().values())
    assert said.startswith(f"Pipeline of {count / 1e6:.2f}M parameters, float32 on cpu: 8 x 8")
    for word in ("10 classes", "text", "class_to_image", "text_to_image", "edit", "generate"):
        assert word in said
