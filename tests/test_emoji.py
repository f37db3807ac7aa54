"""Emoji of several designers: three made-up sets, packed as npm packs them."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from material import run, save, tar

from mmfusion.codecs.text import Tokenizer
from mmfusion.config import load
from mmfusion.data_pipelines.converters.emoji import align, captions, distinct, render, split
from mmfusion.data_pipelines.converters.icon_sets import read_set
from mmfusion.data_pipelines.preflight import check_data
from mmfusion.data_pipelines.shards import Shards
from mmfusion.errors import CorruptSample, UserError

NAMES = ("red-apple", "owl", "rocket", "grapes", "cactus")
CODES = {
    **dict(zip(("1f34e", "1f989", "1f680", "1f347", "1f335"), NAMES, strict=True)),
    "2764-fe0f": "heart",
    "1f1e9-1f1ea": "germany",
    "1f44b-1f3fc": "wave-medium-light",
}
PARTS = ("draw", "train", "restyle", "analogy", "validation", "held_out")


def square(colour: str, side: int = 8) -> dict[str, Any]:
    return {"body": f'<path fill="{colour}" d="M0 0h{side}v{side}H0z"/>'}


def package(folder: Path, prefix: str, icons: dict[str, Any], **files: Any) -> Path:
    """An icon set of pictures of 16 x 16; files are `chars`, `metadata`, and more of `icons`."""
    described = {"prefix": prefix, "icons": icons, "width": 16, "height": 16}
    described |= files.pop("more", {})
    members = [
        (f"package/{name}.json", json.dumps(found).encode())
        for name, found in {"icons": described, **files}.items()
    ]
    return save(folder / f"iconify-json-{prefix}-1.0.0.tgz", tar(members, "w:gz"))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three styles; the third has no code points, and another name for the apple."""
    folder = tmp_path_factory.mktemp("sets")
    made = []
    for style, colour in (("dots", "#f00"), ("lines-emoji-flat", "#0f0")):
        icons = {name: square(colour, 4 + n) for n, name in enumerate(NAMES)}
        icons |= {name: square("#00f") for name in ("heart", "germany", "wave-medium-light")}
        icons |= {"flag-one": square("#00f"), "secret": square("#00f") | {"hidden": True}}
        metadata = {"categories": {"Food": ["red-apple", "grapes"], "Symbols": ["heart"]}}
        made.append(package(folder, style, icons, chars=CODES, metadata=metadata))
    others = (*NAMES[1:], "apple", "heart", "only-here")
    icons = {name: square("#ff0", 4 + n) for n, name in enumerate(others)}
    made.append(package(folder, "old", icons, more={"aliases": {"red-apple": {"parent": "apple"}}}))
    return made


def test_drawings_are_aligned_by_code_point_or_name(sets: list[Path]):
    found = distinct([read_set(path) for path in reversed(sets)])
    assert [s.style for s in found] == ["dots", "lines", "old"]  # those with code points first
    drawings = align(found, without=("Symbols",))
    assert set(drawings) == {"red apple", "owl", "rocket", "grapes", "cactus"}
    assert all(set(of) == {"dots", "lines", "old"} for of in drawings.values())
    assert set(align(found, without=("Food",))) == {"owl", "rocket", "cactus", "heart"}


def test_flags_skin_tones_and_turned_drawings_are_left_out(tmp_path: Path):
    names = ("wave", "wave-dark", "wave-light-skin-tone", "two-light-skin-tone-dark-skin-tone",
             "speaker-medium-volume", "very-dark", "flag-for-japan", "chequered-flag")  # fmt: skip
    aliases = {"left": {"parent": "wave", "hFlip": True}, "hello": {"parent": "wave"}}
    icons = {name: square("#f00") for name in names}
    icons["outside"] = {"body": '<image href="file:///etc/hostname" width="9" height="9"/>'}
    icons["inside"] = {"body": '<use href="#a"/>' + square("#f00")["body"]}
    found = read_set(package(tmp_path, "a", icons, more={"aliases": aliases}))
    kept = {"wave", "speaker-medium-volume", "very-dark", "chequered-flag", "inside"}
    assert set(found.icons) == kept
    assert found.other_names == {"wave": ["hello"]}


def test_one_of_two_sets_with_the_same_drawings_is_taken(tmp_path: Path):
    whole = package(tmp_path, "fluent-emoji", {"owl": square("#f00")})
    flat = package(tmp_path, "fluent-emoji-flat", {"owl": square("#0f0")}, chars={"1f989": "owl"})
    assert [s.prefix for s in distinct([read_set(whole), read_set(flat)])] == ["fluent-emoji-flat"]


@pytest.mark.parametrize(
    ("name", "first"),
    [("rocket", "a rocket"), ("owl", "an owl"), ("grapes", "grapes"), ("cactus", "a cactus")],
)
def test_captions(name: str, first: str):
    found = captions((name, "dots"))
    assert found[0] == f"{first}, dots style"
    assert {first, "dots style", f"{first} in dots style"} < set(found)


def test_each_kept_name_is_seen_in_other_styles_whatever_other_names_there_are():
    names = {f"name {i}": ["a", "b", "c", "d"] for i in range(1000)}
    cells = split(names, 0)
    kept = [*cells.held_out, *cells.validation]
    assert 0.13 < len(cells.held_out) / 4000 < 0.17
    assert 0.03 < len(cells.validation) / 4000 < 0.07
    assert len({name for name, _ in kept}) == len(kept)  # one of a name at most
    assert len({*kept, *cells.train}) == len(kept) + len(cells.train) == 4000
    fewer = split(dict(list(names.items())[::2]), 0)
    assert set(fewer.held_out) <= set(cells.held_out)
    assert split({"alone": ["a"]}, 0).train == [("alone", "a")]


def test_a_drawing_lies_in_the_middle_of_a_white_square(tmp_path: Path):
    pytest.importorskip("resvg_py")
    wide = square("#f00", 16) | {"height": 8}
    found = read_set(package(tmp_path, "a", {"wide": wide, "bad": {"body": "<path"}}))
    picture = np.asarray(_opened(render(found.icons["wide"], 32, "wide")))
    assert picture.shape == (32, 32, 3)
    assert (picture[:8] == 255).all()
    assert (picture[9:, 1:-1] == [255, 0, 0]).all()  # the body reaches past its own height
    with pytest.raises(CorruptSample, match="bad: not drawn"):
        render(found.icons["bad"], 32, "bad")


def _opened(data: bytes) -> Any:
    from mmfusion.codecs.image import open_image

    return open_image(data, "here").convert("RGB")


def test_the_shards_hold_no_kept_cell_in_any_task(
    sets: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
):
    pytest.importorskip("resvg_py")
    sizes = ("--size", 16, "--most", 600)
    command = ("data", "emoji", *sets, *sizes, "--without", "Symbols", "-o", tmp_path)
    assert run(*command) == 0
    cells: dict[str, set[tuple[str, str]]] = {}
    drawn = {}
    for part in ("train", "draw", "validation", "held_out"):
        for sample in Shards(f"{tmp_path}/{part}-*.tar") if _there(tmp_path, part) else ():
            facts = sample.json()
            cell = (facts["name"], facts["style"])
            cells.setdefault(part, set()).add(cell)
            drawn[sample["png"]] = cell
            assert facts["captions"] == captions(cell)[: None if part == "draw" else 1]
    kept = cells.get("validation", set()) | cells["held_out"]
    assert cells["train"] == cells["draw"]
    assert not kept & cells["train"]
    assert len(kept | cells["train"]) == 15
    for part, pictures in (("restyle", 2), ("analogy", 4)):
        for sample in Shards(f"{tmp_path}/{part}-*.tar"):
            shown = [part.value for part in sample.content() if part.kind == "image"]
            assert len(shown) == pictures
            assert sample.content()[-1].target
            assert {drawn[sample[name]] for name in shown} <= cells["train"]
    _check_analogies(tmp_path)
    tokenizer = Tokenizer(tmp_path / "tokenizer.model")
    assert tokenizer.decode(tokenizer.encode("an owl, dots style")) == "an owl, dots style"
    capsys.readouterr()
    assert run(*command) == 0  # nothing is left to do
    assert "wrote 0 of" in capsys.readouterr().out
    assert run(*command[:-2], "--seed", 1, "-o", tmp_path) == 2
    assert "with other settings (seed: 0, now 1)" in capsys.readouterr().err


def test_names_are_taken_from_a_list(
    sets: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
):
    pytest.importorskip("resvg_py")
    listed = save(tmp_path / "names.txt", b"\xef\xbb\xbfowl\n\n rocket \r\nowl\n")
    assert run("data", "emoji", *sets, "--size", 16, "--names", listed, "-o", tmp_path) == 0
    parts = [part for part in ("train", "validation", "held_out") if _there(tmp_path, part)]
    samples = [s.json() for part in parts for s in Shards(f"{tmp_path}/{part}-*.tar")]
    assert len(samples) == 6
    assert {facts["name"] for facts in samples} == {"owl", "rocket"}
    assert run("data", "emoji", *sets, "--names", listed, "--most", 2, "-o", tmp_path / "b") == 2
    assert "give one of them" in capsys.readouterr().err
    save(listed, b"owl\nhorse\n")
    assert run("data", "emoji", *sets, "--names", listed, "-o", tmp_path / "b") == 2
    assert "names.txt:2: 'horse' is not in all sets" in capsys.readouterr().err
    assert run("data", "emoji", *sets, "-o", tmp_path / "b") == 2
    assert "emoji_names.txt:" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def _there(folder: Path, part: str) -> bool:
    return bool(list(folder.glob(f"{part}-*.tar")))


def _check_analogies(folder: Path) -> None:
    """The third picture is to the fourth as the first to the second: by colour and size."""
    for sample in Shards(f"{folder}/analogy-*.tar"):
        shown = [np.asarray(sample.picture(f"{n}.png").convert("RGB"))[0, 0] for n in range(4)]
        assert (shown[0] == shown[2]).all()
        assert (shown[1] == shown[3]).all()
        assert (shown[0] != shown[1]).any()


def test_mistakes_are_one_line(
    sets: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    out = tmp_path / "out"
    whole = sets[0].read_bytes()
    bad = package(tmp_path, "bad", {"owl": {"width": 3}})
    for path, said in (
        (tmp_path / "none.tgz", r"none\.tgz: no such file; fetch it with `npm pack"),
        (save(tmp_path / "a.png", b"no tar"), r"a\.png: not a whole package"),
        (save(tmp_path / "cut.tgz", whole[: len(whole) // 2]), r"cut\.tgz: not a whole package"),
        (bad, r"bad-1\.0\.0\.tgz: not a whole package"),
    ):
        with pytest.raises(UserError, match=said):
            read_set(path)
    assert run("data", "emoji", sets[0], "-o", out) == 2
    assert "give two or more sets" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert run("data", "emoji", *sets, "-o", out) == 2
    assert "pip install 'mmfusion[emoji]'" in capsys.readouterr().err
    assert not out.exists()


def test_the_config_names_its_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = load("emoji")
    with pytest.raises(UserError) as caught:
        check_data(config, "emoji")
    commands = {line.strip() for line in str(caught.value).splitlines() if "mmfusion data" in line}
    assert commands == {
        "mmfusion data emoji iconify-json-*.tgz -o runs/emoji/data",
        'mmfusion data linear-codec "runs/emoji/data/draw-*.tar" --config emoji '
        "-o runs/emoji/data/codec.safetensors",
    }
    names = [f"{part}-00000.tar" for part in PARTS[:4]]
    for name in (*names, "tokenizer.model", "codec.safetensors"):
        save(tmp_path / "runs/emoji/data" / name, b"")
    check_data(config, "emoji")
