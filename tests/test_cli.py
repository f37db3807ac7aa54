"""The command line: what a user's mistake looks like, and what each command leaves behind."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import Command as Run
from helpers import model_config, picture, random_decoder, run_config
from material import encoded
from material import run as ran
from PIL import Image as PILImage
from ranks import overrides

import mmfusion
from mmfusion import ImageSlot, Pipeline, TextSlot, UserError
from mmfusion.cli import main
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Config, ModelConfig, load, save
from mmfusion.data_pipelines.shards import write_shards
from mmfusion.export import export
from mmfusion.manifest import seal
from mmfusion.training.loop import _check_output

CHECKOUT = Path(__file__).resolve().parents[1]
COMMANDS = ("train", "generate", "caption", "edit", "chat", "demo", "eval", "data", "import")
QUICK = {"num_inference_steps": 2, "max_new_tokens": 4}


@pytest.fixture
def run(command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`mmfusion ARGUMENTS` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return command


def assert_refused(answer: tuple[int, str, str], *named: object) -> None:
    """Exit code 2, one error, no traceback, and what is wrong is named."""
    code, out, err = answer
    assert code == 2, out + err
    assert "Traceback" not in out + err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    message = err[err.index("error: ") :]
    for name in named:
        assert str(name) in message, message


def write_model(folder: Path, data: Path, **changes: Any) -> Path:
    """A random model of the digits, exported."""
    tasks = ("class_to_image", "text_to_image", "image_to_text", "edit", "interleaved")
    changes = {"generation": dict.fromkeys(tasks, QUICK), **changes}
    config: ModelConfig = model_config(text={"tokenizer": str(data / "tokenizer.model")}, **changes)
    decoder = random_decoder(config, len(Tokenizer(data / "tokenizer.model")))
    export(config, decoder.state_dict(), folder)
    return folder


@pytest.fixture(scope="module")
def model(digits_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("cli") / "model", digits_data)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "given.png"
    picture(0).save(path)
    return path


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], ["prompts", "--label"]),
        (["a seven", "--label", "3"], ["either prompts or --label"]),
        ([""], ["prompt is empty"]),
        (["--label", "eleven"], ["unknown class 'eleven'", "0 to 9", "seven"]),
        (["--label", ""], ["unknown class"]),
        (["a", "--set", "ar_steps=17"], ["ar_steps", "17 AR steps do not fit 16 tokens"]),
        (["a", "--set", "guidance=two"], ["guidance", "two"]),
        (["a", "--set", "guidance=.nan"], ["guidance"]),
        (["a", "--set", "guidance"], ["key=value"]),
        (["a", "--set", "guidance=[1"], ["guidance=[1", "YAML"]),
        (["a", "--set", "scheduler=euler"], ["scheduler", "euler", "path ddpm", "dpmsolver++"]),
        (["a", "--set", "seed=3"], ["seed"]),
        (["a", "--set", "progress=false"], ["progress"]),
        (["a", "--set", "batch_size=0"], ["batch_size"]),
        (["a", "--set", "on_picture=1"], ["on_picture"]),
        (["a", "--seed", str(2**70)], ["seed"]),
        (["a", "-o", "picture.psd"], ["picture.psd", "cannot be written"]),
        (["a", "b", "-o", __file__], [__file__, "no folder"]),
        (["a", "--device", "cuda:77"], ["device 'cuda:77'", "cannot be used here"]),
        (["a", "--set", "guidance_scale=2"], ["guidance_scale", "did you mean guidance?"]),
        (["a", "--dtype", "int4"], ["dtype", "int4", "bfloat16"]),
        (["a", "--set", "steps=2"], ["steps", "did you mean num_inference_steps?"]),
        (["a", "--set", "guidanse=2"], ["guidanse", "did you mean guidance?", "top_p"]),
        (["a", "-o", "/proc/none/picture.png"], ["/proc/none/picture.png"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_generate_refuses(run: Run, model: Path, arguments: list[str], named: list[str]) -> None:
    assert_refused(run("generate", "--model", model, *arguments), *named)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("generate --scheduller x", "generate: no option --scheduller; did you mean --set sch"),
        (
            "generate a --guidance-scale 2",
            "generate: no option --guidance-scale; did you mean --set g",
        ),
        ("generate a --cout 2", "generate: no option --cout; did you mean --count?"),
        (
            "generate a --steps 9",
            "did you mean --set num_inference_steps=... or --set ar_steps=...?",
        ),
        ("generate a --zzz", "generate: no option --zzz; see mmfusion generate --help"),
        ("generate a --count 0", "invalid value for '--count': Input should be greater"),
        ("generate a --count 9999999999", "invalid value for '--count': Input should be less"),
        (
            "generate a --seed x",
            "generate: invalid value for '--seed': Input should be a valid int",
        ),
        ("generate a --seed", "option '--seed' requires an argument"),
        ("data autoencoder x --steps abc", "data autoencoder: invalid value for '--steps'"),
        (
            "data captions x --format gif",
            "'gif' is not one of 'jpeg', 'png'; see mmfusion data cap",
        ),
        ("data tokenizer -o x --vocabulary 1", "greater than or equal to 256"),
        ("caption", "caption: missing argument 'images'; see mmfusion caption --help"),
        ("edit x.png", "edit: missing option '--mask'; see mmfusion edit --help"),
        ("push a b c", "push: got unexpected extra argument"),
        ("genrate a", "no such command 'genrate'. Did you mean 'generate'?"),
        ("train --lr 3", "train: no option --lr; did you mean train.lr=...?"),
        ("train --train.lr=3", "train: no option --train.lr; did you mean train.lr=...?"),
        ("train --data.row 3", "train: no option --data.row; did you mean data.rows=...?"),
        ("eval frontir", "eval frontir: no such metric; choose fid, clip, "),
        ("generate a --set guidance= 2", "--set guidance=: give the value after the ="),
        ("generate a --set order=spiral", "order: Input should be 'random' or 'raster', or a"),
        ("train --dryrun", "train: no option --dryrun; did you mean --dry-run?"),
        ("train digits", "override digits: write it as key=value; the name of a config goes after"),
        ("train --config eval/digits", "says what to measure, as eval/digits does; here it is to"),
        (
            "eval --config digits",
            "says what to train, as digits does; here it is to say what to meas",
        ),
        ("eval -o given.png", "--output given.png: is a file; name a folder"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line(
    run: Run, image: Path, line: str, told: str
) -> None:
    code, out, err = run(*line.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert told in err


def test_a_device_that_there_is_not_is_told_which_there_are(run: Run) -> None:
    """And nothing of the library's own long texts."""
    for device in ("gpu", "cuda:x", "vulkan", "meta"):
        told = run("generate", "a", "--device", device)[2]
        assert told == (
            f"error: device '{device}': there is none of that name; give cpu, cuda, cuda:1 (the "
            "second GPU) or mps\n"
        )


PICTURES: dict[str, Callable[[Path], Any]] = {
    "missing.png": lambda p: None,
    "folder.png": lambda p: p.mkdir(),
    "empty.png": lambda p: p.write_bytes(b""),
    "text.png": lambda p: p.write_text("a handwritten seven"),
    "cut.png": lambda p: _cut(picture(0), p),
    "odd\nname.png": lambda p: None,
}


def _cut(image: PILImage.Image, path: Path) -> None:
    image.resize((200, 200)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", PICTURES)
def test_what_is_no_picture_is_refused(run: Run, model: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    PICTURES[name](path)
    common = ("--model", model)
    assert_refused(run("caption", path, *common), path)
    assert_refused(run("edit", path, "--mask", "top", "--label", "3", *common), path)


MODELS: dict[str, tuple[str, Callable[[bytes], bytes] | None, str]] = {  # file, change, message
    "cut weights": ("model.safetensors", lambda b: b[: len(b) // 2], "cut short or damaged"),
    "flipped bit": ("model.safetensors", lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:], "damaged"),
    "no weights": ("model.safetensors", None, "is missing"),
    "no tokenizer": ("tokenizer.model", None, "is missing"),
    "cut config": ("config.json", lambda b: b[:-40], "config.json"),
    "no manifest": ("manifest.json", None, "manifest.json"),
    "odd manifest": ("manifest.json", lambda b: b"[]", "manifest.json"),
    "no config": ("config.json", None, "config.json"),
    # and its manifest holds
    "sealed: cut weights": ("model.safetensors", lambda b: b[: len(b) // 2], "model.safetensors"),
    "sealed: cut tokenizer": ("tokenizer.model", lambda b: b[: len(b) // 2], "tokenizer.model"),
    "sealed: no UTF-8": ("config.json", lambda b: b"\xff\xfe{}", "config.json"),
    "sealed: no object": ("config.json", lambda b: b"[1]", "config.json"),
    "sealed: unknown key": (
        "config.json", lambda b: b.replace(b'"width"', b'"breadth"'), "decoder.breadth"
    ),
    "sealed: another width": (
        "config.json", lambda b: b.replace(b'"width": 32', b'"width": 64'), "model.safetensors"
    ),
    "sealed: another depth": (
        "config.json", lambda b: b.replace(b'"depth": 2', b'"depth": 1'), "model.safetensors"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", MODELS)
def test_a_damaged_model_is_refused(run: Run, model: Path, tmp_path: Path, damage: str) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    name, change, message = MODELS[damage]
    if change is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(change((copy / name).read_bytes()))
    if damage.startswith("sealed"):
        seal(copy)
    assert_refused(run("generate", "a", "--model", copy), copy, message)
    shutil.rmtree(copy)
    assert_refused(run("generate", "a", "--model", copy), copy, "no such folder")


def test_train_refuses(
    run: Run, digits_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmfusion.training import loop

    monkeypatch.setattr(loop, "start_distributed", lambda: (0, 1))
    good = ["train", "--config", "tiny", *overrides(digits_data, tmp_path / "run")]
    broken = tmp_path / "train-00000.tar"
    broken.write_bytes(b"no tar" * 1000)
    for wrong, *named in (
        ("train.lr=fast", "the command line", "train.lr", "fast"),
        ("data.sources.1.shards=nowhere/x-*.tar", "nowhere/x-*.tar", "draw"),
        ("text.tokenizer=nowhere/tokenizer.model", "nowhere/tokenizer.model", "mmfusion data"),
        ("data.rows=3", "data.rows", "micro_rows"),
        (f"data.sources.1.shards={broken}", broken, "not a tar file"),
    ):
        assert_refused(run(*good, wrong), *named)
    assert_refused(run("train", "--config", "mm_xl"), "mm_xl", "data/tokenizer.model")
    assert not (tmp_path / "runs").exists()  # its output


@pytest.mark.parametrize(
    ("until", "said"),
    [(None, "trained 2 steps; the model is run/model"), (1, "at step 1, as asked; the same")],
)
def test_train_says_at_its_end_where_the_model_is(
    run: Run, digits_data: Path, monkeypatch: pytest.MonkeyPatch, until: int | None, said: str
) -> None:
    from mmfusion.training import loop

    class Trainer:
        def __init__(self, *_: object) -> None:
            self.rank, self.output = 0, Path("run")
            self.state = SimpleNamespace(step=0, seconds=0.0)

        def run(self, until: int | None) -> None:
            self.state.step = until or 2

    monkeypatch.setattr(loop, "Trainer", Trainer)
    to = [] if until is None else ["--until", until]
    code, out, err = run(
        "train", "--config", "tiny", *to, *overrides(digits_data, Path("run")), "train.steps=2"
    )
    assert (code, err) == (0, "")
    assert out.startswith(said)


def test_eval_refuses(run: Run, model: Path, digits_data: Path, tmp_path: Path) -> None:
    common = ("eval", model, "-o", tmp_path / "report")
    assert_refused(run(*common, "--data", tmp_path), tmp_path, "mmfusion data digits")
    assert_refused(run("eval", tmp_path / "none", "--data", digits_data), tmp_path / "none")
    (tmp_path / "report").mkdir()
    (tmp_path / "report/report.json").write_text("[]")
    assert_refused(run(*common, "--data", digits_data), tmp_path / "report/report.json")


# A real process


def test_the_programs_exit_with_2_and_one_line(model: Path) -> None:
    program = str(Path(sys.executable).with_name("mmfusion"))
    for command, named in (
        ([program, "generate", "", "--model", str(model)], "prompt is empty"),
        ([sys.executable, "train.py", "--config", "tiny", "train.lr=fast"], "train.lr"),
    ):
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
        assert_refused((done.returncode, done.stdout, done.stderr), named)


def test_help_is_quick_and_lists_all_commands() -> None:
    program = str(Path(sys.executable).with_name("mmfusion"))
    script = """if True:
        import sys
        from mmfusion.cli import main
        try:
            main(["--help"])
        except SystemExit:
            assert "torch" not in sys.modules, "torch was loaded"
    """
    for command in ([program, "--help"], [sys.executable, "-c", script]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert all(re.search(rf"\b{name}\b", done.stdout) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(run: Run, name: str) -> None:
    code, out, _ = run(name, "--help")
    assert code == 0
    assert "Usage" in out
    assert len(out.splitlines()) > 5
    assert run(name, "-h") == (0, out, "")


def test_an_interruption_is_no_error(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "text_to_image", stop)
    code, out, err = run("generate", "a", "--model", model)
    assert code == 130
    assert err == "interrupted\n"
    assert "Traceback" not in out


def test_a_closed_stderr_ends_nothing(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", None)
        assert run("generate", "a", "--model", model)[0] == 0


# What the commands make


def pixels(path: Path) -> np.ndarray:
    return np.asarray(PILImage.open(path))


def test_generate_writes_a_picture_that_its_seed_repeats(
    run: Run, model: Path, tmp_path: Path
) -> None:
    def made(name: str, *arguments: object) -> np.ndarray:
        path = tmp_path / "new folder" / name
        code, out, err = run("generate", "--model", model, "-o", path, *arguments)
        assert code == 0, err
        assert str(path) in out
        return pixels(path)

    first = made("a.png", "a seven", "--seed", 3)
    assert first.shape == (256, 256)  # enlarged to be seen
    assert np.array_equal(first, made("b.png", "a seven", "--seed", 3))
    assert not np.array_equal(first, made("c.png", "a seven", "--seed", 4))
    assert not np.array_equal(first, made("d.png", "a nine", "--seed", 3))
    exact = made("e.png", "a seven", "--seed", 3, "--exact")
    assert exact.shape == (8, 8)
    assert np.array_equal(first[::32, ::32], exact)
    named = made("f.png", "--label", "three", "--exact")
    assert np.array_equal(named, made("g.png", "--label", "3", "--exact"))
    options = ("--set", "guidance=3", "--set", "ar_steps=4", "--set", "scheduler=ddim")
    assert not np.array_equal(exact, made("h.png", "a seven", "--seed", 3, "--exact", *options))


def test_generate_counts(run: Run, model: Path, tmp_path: Path) -> None:
    """`--count` rounds of the prompts, picture i with seed + i."""
    many = ("generate", "a seven", "a nine", "--count", 2, "--model", model, "--exact")
    code, out, _ = run(*many, "--seed", 5, "-o", tmp_path / "many")
    assert code == 0
    files = sorted((tmp_path / "many").iterdir())
    assert [file.name for file in files] == [f"{i:04d}.png" for i in range(4)]
    assert len(out.splitlines()) == 4
    for number, prompt in enumerate(["a seven", "a nine"] * 2):
        alone = tmp_path / "alone.png"
        run("generate", prompt, "--seed", 5 + number, "--model", model, "--exact", "-o", alone)
        assert np.array_equal(pixels(alone), pixels(files[number]))
    assert run(*many, "-o", tmp_path / "sheet.png")[0] == 0
    height, width = pixels(tmp_path / "sheet.png").shape[:2]
    assert 3 * 64 > width == height > 2 * 64  # one column a prompt, one row a round


OUTPUTS: list[tuple[str, int, bool, list[str]]] = [  # -o, pictures, a folder already, what is made
    ("v1.2.3/g2.0", 3, False, [f"v1.2.3/g2.0/000{i}.png" for i in range(3)]),
    ("lr3e-4.final", 2, False, ["lr3e-4.final/0000.png", "lr3e-4.final/0001.png"]),
    ("plain", 1, False, ["plain/0000.png"]),
    ("runs/v1.0", 1, False, ["runs/v1.0/0000.png"]),
    ("a.b.c", 1, False, ["a.b.c/0000.png"]),
    ("m.tar.gz/", 1, False, ["m.tar.gz/0000.png"]),
    ("sheet.png/", 1, False, ["sheet.png/0000.png"]),
    ("best.model", 1, True, ["best.model/0000.png"]),
    ("notes.txt", 1, True, ["notes.txt/0000.png"]),
    ("sheet.png", 2, True, ["sheet.png/0000.png", "sheet.png/0001.png"]),
    ("sheet.PNG", 2, False, ["sheet.PNG"]),
    ("a.b/c.d.webp", 1, False, ["a.b/c.d.webp"]),
]


@pytest.mark.parametrize(("name", "count", "there", "made"), OUTPUTS)
def test_where_pictures_go(
    run: Run, model: Path, tmp_path: Path, name: str, count: int, there: bool, made: list[str]
) -> None:
    if there:
        (tmp_path / name).mkdir()
    code, out, err = run("generate", "--label", 3, "--count", count, "-o", name, "--model", model)
    assert code == 0, err
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")]
    assert sorted(f for f in files if (tmp_path / f).is_file()) == made
    assert all(name in out for name in made)


@pytest.mark.parametrize("name", ["seven.doc", "a/b.txt", "m.tar.gz", "seven.pgn", "x.jpgg"])
def test_a_name_that_ends_as_no_picture_does_is_refused(
    run: Run, image: Path, tmp_path: Path, name: str
) -> None:
    for command in (("generate", "a"), ("edit", image, "--mask", "top", "--label", 3)):
        answer = run(*command, "-o", name)
        assert_refused(answer, f"{name}: pictures end in .png, .jpg", f"write {name}/")
    assert run("generate", "a", "-o", f"{image}/")[2].startswith(f"error: {image}: is a file")
    assert [*tmp_path.iterdir()] == [image]


def test_a_device_and_a_precision_are_chosen(
    run: Run, model: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: list[Any] = []
    load_model = Pipeline.from_pretrained

    def watched(*arguments: Any) -> Pipeline:
        pipeline = load_model(*arguments)
        weights.append(pipeline.decoder.latent_in.weight)
        return pipeline

    monkeypatch.setattr(Pipeline, "from_pretrained", watched)
    monkeypatch.setattr(sys, "stdin", io.StringIO("/say\n"))
    edit = ("edit", image, "--mask", "top", "--label", 3)
    for command in (("generate", "a"), ("caption", image), edit, ("chat",)):
        done = run(*command, "--model", model, "--device", "cpu", "--dtype", "bfloat16")
        assert done[0] == 0, done
    assert [(w.device.type, str(w.dtype)) for w in weights] == [("cpu", "torch.bfloat16")] * 4


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_any_name_can_be_shown(
    run: Run, model: Path, image: Path, tmp_path: Path, encoding: str, monkeypatch: Any
) -> None:
    names = ["☃ é.png", "half\udcff.png"]
    for name in names:
        shutil.copy(image, tmp_path / name)
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, errors="strict") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    with pytest.raises(SystemExit) as stop:
        main(["caption", *names, "--model", str(model)])
    assert not stop.value.code
    with pytest.raises(SystemExit) as stop:
        main(["caption", "missing ☃\udcff.png", "--model", str(model)])
    assert stop.value.code == 2
    out, err = (stream.buffer.getvalue() for stream in streams if not stream.flush())
    assert out.count(b".png: ") == 2
    assert b"missing" in err
    assert b"Traceback" not in out + err


def test_caption_says_something_of_each_picture(
    run: Run, model: Path, image: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jpg"
    PILImage.new("RGBA", (40, 30), "red").convert("RGB").save(other)
    code, out, _ = run("caption", image, "--model", model)
    assert code == 0
    (alone,) = out.splitlines() or [""]
    code, out, _ = run("caption", image, other, "--model", model)
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == f"{image}: {alone}"
    assert lines[1].startswith(f"{other}: ")
    sampled = ("--set", "temperature=1.5", "--set", "top_p=0.9", "--set", "max_new_tokens=12")
    texts = [run("caption", image, "--model", model, "--seed", s, *sampled)[1] for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_edit_keeps_what_the_mask_does_not_touch(
    run: Run, model: Path, image: Path, tmp_path: Path
) -> None:
    before = pixels(image)
    out = tmp_path / "edited.png"
    common = ("edit", image, "--model", model, "-o", out, "--exact")
    assert run(*common, "--mask", "bottom", "--label", "3")[0] == 0
    assert np.array_equal(pixels(out)[:4], before[:4])
    assert not np.array_equal(pixels(out)[4:], before[4:])
    drawn = np.zeros((8, 8), np.uint8)
    drawn[0, 7] = 255  # one pixel: its whole token is drawn anew
    PILImage.fromarray(drawn).save(tmp_path / "mask.png")
    assert run(*common, "--mask", tmp_path / "mask.png", "--prompt", "a seven")[0] == 0
    token = np.zeros((8, 8), bool)
    token[:2, 6:] = True
    assert np.array_equal(pixels(out)[~token], before[~token])
    assert not np.array_equal(pixels(out)[token], before[token])
    wide = tmp_path / "wide.png"
    PILImage.new("L", (24, 8)).save(wide)
    for given, told in ((image, False), (wide, True)):
        code, _, err = run("edit", given, *common[2:], "--mask", "top", "--label", "3")
        assert (code, f"{given}: its centre square is edited" in err) == (0, told)


def test_chat_follows_a_script(
    run: Run, model: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        "/say",  # out of nothing
        "a seven, please", "", "/draw", "and then comes", "/draw", f"/image {image}", "/say",
        "/image nowhere.png", "/dance", "word " * 90, "/draw",  # three mistakes
        "/new", "a nine", "/draw", "/quit", "/draw",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    code, out, err = run("chat", "--model", model, "-o", tmp_path / "chat", "--exact")
    assert code == 0, err
    files = sorted((tmp_path / "chat").iterdir())
    assert [file.name for file in files] == ["0000.png", "0001.png", "0002.png"]
    assert "picture nowhere.png: no such file" in out
    assert "no command /dance" in out
    assert "rows hold 96" in out
    assert out.count("error: ") == 2
    # Each drawing is what the whole conversation so far asks for; /new forgets it.
    pipeline = Pipeline.from_pretrained(model)
    said = pipeline.generate([TextSlot()])
    answered = pipeline.generate([*filter(None, said), "a seven, please", ImageSlot()])
    assert np.array_equal(np.asarray(answered[-1]), pixels(files[0]))
    fresh = pipeline.generate(["a nine", ImageSlot()])
    assert np.array_equal(np.asarray(fresh[-1]), pixels(files[2]))


def test_an_answer_of_no_words_does_not_end_a_chat(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Any]] = []

    def silent(_: Pipeline, prompt: list[Any], **__: Any) -> list[Any]:
        asked.append(prompt)
        return [*prompt[:-1], "" if len(asked) == 1 else "two"]

    monkeypatch.setattr(Pipeline, "generate", silent)
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n/say\n/say\n/say\n"))
    code, out, _ = run("chat", "--model", model)
    assert (code, out.count("two")) == (0, 2)
    assert [prompt[:-1] for prompt in asked] == [["one"], ["one"], ["one", "two"]]


def test_chat_takes_a_picture_as_terminals_drop_it(
    run: Run, model: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a b.png", "'c.png"):  # as it is typed, where that is there
        shutil.copyfile(image, tmp_path / name)
    lines = ["/image a b.png", "/image 'a b.png'", '/image "a b.png"', "/image a\\ b.png"]
    lines += ["/image 'c.png", "/image 'd.png", "/image 'e.png'"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    code, out, err = run("chat", "--model", model)
    assert (code, err, out.count("error: ")) == (0, "", 2)
    assert "picture 'd.png: no such file" in out
    assert "picture e.png: no such file" in out


def test_chat_goes_on_after_mistakes_and_interruptions(
    run: Run, model: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:50])
    (tmp_path / "notes.txt").write_text("no picture")
    lines = ["/help", "/image", "/image cut.png", "/image notes.txt", f"/image {tmp_path}"]
    lines += ["/image ~nobody/x.png", f"/image {'x' * 5000}.png", "/imagine", "/", "/draw", "/say"]
    lines += ["/draw a seven", "/say hello"]  # not drawn without the words: nothing is asked
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    answers = iter([KeyboardInterrupt, UserError("too long")])

    def stop(*_: Any, **__: Any) -> None:
        raise next(answers)

    monkeypatch.setattr(Pipeline, "generate", stop)
    code, out, err = run("chat", "--model", model)
    assert (code, err) == (0, "")
    assert out.count("error: ") == 9
    assert "/draw: takes nothing" in out
    assert out.count("no command") == 2
    assert "stopped" in out
    assert out.count("/image FILE") == 2  # at the beginning, and by /help
    assert_refused(run("chat", "--model", model, "-o", "notes.txt"), "notes.txt: is a file and no")
    monkeypatch.setattr("builtins.input", stop)
    answers = iter([KeyboardInterrupt])
    code, out, err = run("chat", "--model", model)
    assert code == 130
    assert "Traceback" not in out + err


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version") == (0, f"mmfusion {mmfusion.__version__}\n", "")


def test_eval_reports_on_a_run(run: Run, model: Path, digits_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(model, folder / "model")
    suite = f"{{data: '{digits_data}', pictures: 20, held_out: 10, edits: 10}}"
    config = load("tiny", [*overrides(digits_data, folder), f"evaluation={{digits: {suite}}}"])
    save(config, folder / "config.yaml")
    code, out, err = run("eval", folder)
    assert code == 0, err
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert report["class_to_image"]["n"] == 20
    assert report["image_to_text"]["n"] == report["interleaved"]["n"] == report["edit"]["n"] == 10
    assert report["edit"]["kept_identical"] is True
    for told in ("report.html", "report.json"):
        assert str(folder / told) in out
    shown = f"{100 * report['text_to_image']['accuracy']:.1f}%"
    assert re.search(rf"Text → image +{shown} +n = 20", out)
    assert "<img" in (folder / "report.html").read_text("utf-8")
    written = (folder / "report.json").stat().st_mtime_ns
    code, out, _ = run("eval", folder)
    assert (code, "already there" in out) == (0, True)
    assert re.search(rf"Text → image +{shown} +n = 20", out)
    assert (folder / "report.json").stat().st_mtime_ns == written
    write_model(folder / "model", digits_data, diffusion={"prediction": "epsilon"})
    assert "wrote" in run("eval", folder)[1]  # the same weights, another model


@pytest.mark.parametrize("held_out", [True, False])
def test_eval_measures_a_run_on_its_own_sources(
    run: Run,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    held_out: bool,
) -> None:
    monkeypatch.setattr("mmfusion.eval.own.COUNT", 4)
    monkeypatch.setenv("PATH", str(tmp_path))  # without Java, which takes long to start
    monkeypatch.setenv("MMFUSION_CACHE", str(tmp_path / "cache"))
    names = {"training": "ab", "test": "cd"} if held_out else {"shards": "ab"}
    for name, keys in names.items():
        samples = [(k, {"png": encoded(ord(k)), "json": {"captions": [f"a {k}"]}}) for k in keys]
        write_shards(tmp_path / "data", f"{name}-of-mine", samples)
    shutil.copytree(model, tmp_path / "run/model")
    source = f"{tmp_path}/data/{next(iter(names))}-*.tar"
    sources = [{"name": t, "task": t, "shards": source} for t in ("text_to_image", "image_to_text")]
    sources += [{"name": "gone", "task": "class_to_image", "shards": f"{tmp_path}/gone/*.tar"}]
    described = json.loads((model / "config.json").read_text("utf-8"))
    trained = {"rows": 1, "micro_rows": 1, "sources": sources}
    config = {**described, "data": trained, "train": {"output": "x", "steps": 1, "lr": 1}}
    save(Config.model_validate(config), tmp_path / "run/config.yaml")
    code, out, err = run("eval", tmp_path / "run")
    assert code == 0, err
    assert "class_to_image is left out: no pictures at" in caplog.text
    figures = json.loads((tmp_path / "run/report.json").read_text("utf-8"))["figures"]
    measured_on = f"{tmp_path}/data/{list(names)[-1]}-*.tar"
    assert figures.keys() == {"text_to_image", "image_to_text"}
    for figure in (
        figures["text_to_image"]["cycle_log_likelihood"],
        figures["image_to_text"]["perplexity"],
    ):
        assert figure["data"] == measured_on
        assert figure.get("training_shards", False) is not held_out
    page = (tmp_path / "run/report.html").read_text("utf-8")
    assert ("training shards: yes" in out) == ("training shards: yes" in page) == (not held_out)


def test_a_folder_of_its_name_is_not_the_run_of_a_shipped_model(run: Run, tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits/config.yaml").write_text("of: something else")
    answer = run("eval", "digits", "--data", tmp_path / "none")
    assert_refused(answer, "none")
    assert "config.yaml" not in answer[2]


def test_eval_says_what_to_give_where_nothing_says_what_to_measure(
    run: Run, digits_data: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "run/model", digits_data, classes=["cat", "dog"])
    assert_refused(
        run("eval", model), model, "--config", "text_to_image.data", "image_to_text.data"
    )
    save(run_config(tmp_path / "none", tmp_path), tmp_path / "run/config.yaml")
    assert_refused(run("eval", tmp_path / "run"), tmp_path / "none/train-*.tar", "--config")


def test_a_report_is_of_the_same_only_if_all_it_depends_on_is(tmp_path: Path) -> None:
    from mmfusion.cli.eval import _of_the_same

    report = tmp_path / "report.json"
    facts = {"model": "m", "settings": {"seed": 0}, "inputs": {"data": "ab"}, "size": (1, 2)}
    assert not _of_the_same(report, facts)
    report.write_text(json.dumps({**facts, "figures": {}, "seconds": {}}), "utf-8")
    assert _of_the_same(report, facts)
    for name, value in (("settings", {"seed": 1}), ("inputs", {"data": "cd"}), ("versions", {})):
        assert not _of_the_same(report, {**facts, name: value})
    for foreign in ("{", "[]", "{}"):
        report.write_text(foreign, "utf-8")
        with pytest.raises(UserError, match=r"report\.json: not a report of this program"):
            _of_the_same(report, facts)


def test_a_dry_run_needs_no_data(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("train", "--config", "mm_xl", "--dry-run", "--ranks", 64)
    assert code == 0, err
    figures = dict(line.split(None, 1) for line in out.splitlines() if line[:1].isalpha())
    assert re.search(r"\b6\d\d,\d{3},\d{3}\b|\b7\d\d,\d{3},\d{3}\b", figures["parameters"])
    assert "GiB" in out
    assert not list(tmp_path.iterdir())


def draw(*more: object) -> int:
    return ran("generate", "--label", "3", "--set", "num_inference_steps=2", *more)


def test_pictures_that_are_there_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "album").mkdir()
    (tmp_path / "album/0000.png").write_text("mine")
    for number in (1, 2):
        assert draw("-o", tmp_path / "album") == 0
        assert (tmp_path / f"album/000{number}.png").stat().st_size > 50
    plain = Pipeline.class_to_image

    def beside_another(*arguments: Any, **options: Any) -> Any:
        (tmp_path / "album/0003.png").write_text("another's")  # while ours is drawn
        return plain(*arguments, **options)

    monkeypatch.setattr(Pipeline, "class_to_image", beside_another)
    assert draw("-o", tmp_path / "album") == 0
    assert (tmp_path / "album/0003.png").read_text() == "another's"
    assert (tmp_path / "album/0004.png").stat().st_size > 50
    assert (tmp_path / "album/0000.png").read_text() == "mine"


def test_a_name_that_nobody_gave_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("picture.png").write_text("mine")
    assert draw() == draw() == 0
    assert sorted(os.listdir()) == ["picture-2.png", "picture-3.png", "picture.png"]
    assert Path("picture.png").read_text() == "mine"


def test_who_draws_into_the_same_folder_meanwhile_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [1]

    def drawn(self: Pipeline, labels: list[str], **options: Any) -> list[PILImage.Image]:
        if others:
            others.clear()
            assert draw("-o", tmp_path / "album") == 0  # of another process, while this one draws
        return [PILImage.new("L", (8, 8))] * len(labels)

    monkeypatch.setattr(Pipeline, "class_to_image", drawn)
    assert draw("-o", tmp_path / "album") == 0
    assert sorted(os.listdir(tmp_path / "album")) == ["0000.png", "0001.png"]


def test_home_in_paths_of_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert draw("--output=~/a.png") == draw("-o", "~/b.png") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_digits_replace_nothing_and_are_made_whole(tmp_path: Path) -> None:
    mine = tmp_path / "mine/held_out-00000.tar"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert ran("data", "digits", "-o", mine.parent) == 2
    assert mine.read_text() == "mine"
    data = tmp_path / "data"
    assert ran("data", "digits", "-o", data) == 0
    (data / "tokenizer.model").unlink()
    assert ran("data", "digits", "-o", data) == 0
    assert (data / "tokenizer.model").is_file()


def test_training_writes_into_no_folder_of_something_else(tmp_path: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl", "training.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("a: b")
        with pytest.raises(UserError, match=name):
            _check_output(tmp_path / name)
    _check_output(tmp_path / "new")
    with pytest.raises(UserError, match=r"train\.output.*UTF-8"):
        _check_output(tmp_path / "half\udcff")
