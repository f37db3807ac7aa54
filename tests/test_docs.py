"""The documentation: the site builds strictly, has every key, call and command; commands run.

A fence of commands or Python in README.md, CONTRIBUTING.md and docs/ is one of three:

- it is run here as it stands, page by page, one fence after another in one folder;
- `<!-- run by tests/FILE.py -->` above it: another test runs such commands on files of its own;
- its first line, or its first below `#!`, says `# Not run by the tests: WHY`, for the reader too.

Of all three the commands, options, overrides and files of the checkout have to exist.
"""

import inspect
import os
import re
import shlex
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from PIL import Image as PILImage

import mmfusion
from mmfusion.cli import app
from mmfusion.config import Config, EvaluationConfig, load, load_evaluation
from mmfusion.config.section import dotted, keys
from mmfusion.overrides import read_override
from mmfusion.training.estimate import plan

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = [
    *(CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((CHECKOUT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"(?:^<!-- run by (\S+) -->\n)?^```(\w+)([^\n]*)\n(.*?)^```$", re.M | re.S)
NOT_RUN = "# Not run by the tests: "
COMMAND = typer.main.get_command(app)
OVERRIDE = re.compile(r"[a-z_]+(\.\w+)*=")
# What makes the documented training and evaluation short.
SHORT = ["train.steps=2", "train.max_minutes=null", "train.log_every=1", "decoder.depth=1"]
FEW = [
    "evaluation.text_to_image.pictures=2", "evaluation.text_to_image.cycle=false",
    "evaluation.image_to_text.pictures=2", "generation.text_to_image.num_inference_steps=1",
]  # fmt: skip


class Fence(NamedTuple):
    """A block of a page."""

    page: Path
    line: int
    kind: str
    title: str
    text: str
    elsewhere: str  # the test that runs it, or nothing

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(CHECKOUT)}:{self.line}"

    @property
    def runs(self) -> bool:
        return not self.elsewhere and not re.match(f"(#!.*\n)?{NOT_RUN}", self.text)

    def commands(self) -> list[list[str]]:
        """Its commands as words, without comments, prompts of variables, and line ends."""
        lines = self.text.replace("\\\n", " ").split("\n")
        words = [shlex.split(line, comments=True) for line in lines]
        return [line for line in words if line]


def fences(page: Path) -> list[Fence]:
    text = page.read_text("utf-8")
    found = []
    for match in FENCE.finditer(text):
        elsewhere, kind, info, body = match.groups()
        title = re.search(r'title="([^"]+)"', info)
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Fence(page, line, kind, title[1] if title else "", body, elsewhere or ""))
    return found


ALL = [fence for page in PAGES for fence in fences(page)]
RUN = [f for f in ALL if f.kind in ("sh", "python") and f.runs]


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning of mkdocs, such as a dead link, fails it."""
    pytest.importorskip("mkdocs", reason="needs mmfusion[docs]")
    folder = tmp_path_factory.mktemp("site")
    # In a process of its own: mkdocs' theme is a package `material`, and so is a file of ours here.
    options = ["build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", *options],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_public_call_has_an_entry(site: Path) -> None:
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    documented = {line.split(" ")[0] for line in zlib.decompress(packed).decode().split("\n")}
    public = {f"mmfusion.{name}" for name in mmfusion.__all__}
    public |= {
        f"mmfusion.Pipeline.{name}"
        for name, _ in inspect.getmembers(mmfusion.Pipeline, callable)
        if not name.startswith("_")
    }
    assert len(public) > 10
    assert not public - documented, "docs/reference/python.md lacks them, or they lack a docstring"


@pytest.mark.parametrize(("kind", "above"), [(Config, ""), (EvaluationConfig, "evaluation.")])
def test_every_config_key_has_an_entry(site: Path, kind: Any, above: str) -> None:
    page = (site / "reference/config.html").read_text("utf-8")
    entries = set(re.findall(r'id="([\w.]+)"', page))
    asked = {above + dotted(key).replace(".0", "") for key in keys(kind)}
    assert len(asked) > 20
    assert not asked - entries


def test_every_config_key_says_what_it_is(site: Path) -> None:
    page = (site / "reference/config.html").read_text("utf-8")
    rows = re.findall(r"<tr>\n<td>.*?<code>(\w+)</code></td>(.*?)</tr>", page, re.S)
    assert len(rows) > 80
    mute = [key for key, cells in rows if re.search(r"<td></td>\s*$", cells)]
    assert not mute, "write a docstring below them in mmfusion/config/"


def test_every_command_has_an_entry(site: Path) -> None:
    page = (site / "reference/commands.html").read_text("utf-8")

    def all_of(command: Any, path: str) -> Iterator[str]:
        below = getattr(command, "commands", {})
        yield from [] if below else [path]
        for name, each in below.items():
            yield from all_of(each, f"{path}-{name}")

    asked = {*all_of(COMMAND, "mmfusion")}
    assert len(asked) > 15
    assert not {path for path in asked if f'id="{path}"' not in page}


# Links that the site does not see


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_no_dead_link_from_the_front(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (CHECKOUT / target).exists(), f"{page.name}: {target}"


def test_the_readme_is_short() -> None:
    assert len((CHECKOUT / "README.md").read_text("utf-8").splitlines()) < 150


# Commands


def arguments(words: list[str]) -> list[str] | None:
    """What `mmfusion` is given by a command, whoever launches it; None of another program."""
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=.*", word)]
    if any(word in words for word in ("pip", "wheel", "export")):
        return None
    if "mmfusion" in words:
        return words[words.index("mmfusion") + 1 :]
    return ["train", *words[words.index("train.py") + 1 :]] if "train.py" in words else None


def check_command(words: list[str]) -> None:
    """Parse a command as the command line does, without running it."""
    given, command, path = list(words), COMMAND, "mmfusion"
    while given and given[0] in getattr(command, "commands", {}):
        path += f" {given[0]}"
        command = command.commands[given.pop(0)]
    if given[-1:] == ["..."]:
        return
    if command is COMMAND:  # `mmfusion --version`: options that act when they are read
        assert {*given} <= {"--help", *(name for each in command.params for name in each.opts)}
        return
    context = command.make_context(path, given)
    overrides = context.params.get("overrides") or []
    name = context.params.get("config")
    evaluates = path == "mmfusion eval"
    for override in overrides:
        read_override(override, Config)
    # A page's own file is read where the page is run; C stands for any.
    if name and not title(name) and not name.isupper():
        load_evaluation(name) if evaluates else load(name, overrides)


def title(name: str) -> Fence | None:
    """The block of a page that is a file of this name."""
    return next((fence for fence in ALL if fence.title == name), None)


@pytest.mark.parametrize(
    "fence", [f for f in ALL if f.kind in ("sh", "bash")], ids=lambda fence: fence.where
)
def test_commands_are_ours(fence: Fence) -> None:
    if fence.elsewhere:
        assert (CHECKOUT / fence.elsewhere).is_file(), fence.where
    targets = re.findall(r"^([\w-]+):", (CHECKOUT / "Makefile").read_text("utf-8"), re.M)
    for words in fence.commands():
        given = arguments(words)
        if given is not None:
            check_command(given)
        elif words[0] == "make":
            assert {*words[1:]} <= {*targets}, fence.where
        elif words[:2] == ["python", "-m"] and words[2].startswith("benchmarks"):
            module = CHECKOUT / words[2].replace(".", "/")
            assert module.with_suffix(".py").exists() or module.is_dir(), fence.where


def test_commands_within_sentences_are_ours() -> None:
    for page in PAGES:
        for text in re.findall(r"`(mmfusion [a-z][^`]*)`", page.read_text("utf-8")):
            command, words = COMMAND, text.split()[1:]
            while words and words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]
            known = {name for given in command.params for name in given.opts}
            assert command is not COMMAND, f"{page.name}: {text}"
            assert {w for w in words if w.startswith("-")} <= known, f"{page.name}: {text}"


def test_keys_within_sentences_are_there() -> None:
    known = {dotted(key).replace(".0", "") for key in keys(Config)}
    tops = "|".join(sorted({key.split(".")[0] for key in known if "." in key}))
    pattern = re.compile(rf"`((?:{tops})\.[a-z_.]+)(?:[=:][^`]*)?`")
    found = {(page.name, key) for page in PAGES for key in pattern.findall(page.read_text("utf-8"))}
    assert len(found) > 30
    files = (".py", ".yaml", ".md", ".tar", ".json", ".model")
    wrong = {(page, key) for page, key in found if key not in known and not key.endswith(files)}
    assert not wrong


# Running them


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run a page in, with the pictures that the guide speaks of."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for name, colour in (("hot_dog", "red"), ("taco", "gold"), ("amphora", "brown")):
        PILImage.new("RGB", (40, 40), colour).save(tmp_path / f"pictures/{name}.png")
    return tmp_path


def own_config(given: list[str]) -> Fence:
    """The block of the page that is the config of a training."""
    found = title(given[given.index("--config") + 1])
    assert found, "only a page's own config is trained here"
    return found


@pytest.mark.parametrize(
    "page", dict.fromkeys(f.page for f in RUN), ids=lambda p: str(p.relative_to(CHECKOUT))
)
def test_a_page_runs(page: Path, folder: Path, command: Callable[..., Any]) -> None:
    names: dict[str, Any] = {}
    for fence in fences(page):
        if fence.title and fence.kind in ("text", "yaml"):
            (folder / fence.title).write_text(fence.text)
        elif fence.kind == "python" and fence.runs:
            exec(compile(fence.text, fence.where, "exec"), names)
        elif fence.kind == "sh" and fence.runs:
            for words in fence.commands():
                given = arguments(words)
                assert given is not None, f"{fence.where}: say `{NOT_RUN}WHY` in its first line"
                assert words[0] == "mmfusion", fence.where
                assert given[0] not in ("serve", "demo", "chat"), f"{fence.where}: it waits"
                if given[0] == "train" and "--dry-run" not in given:
                    given += SHORT + FEW * ("evaluation:" in own_config(given).text)
                code, out, err = command(*given)
                assert code == 0, f"{fence.where}: {words}\n{out}{err}"


def test_the_large_plan_is_what_the_config_says() -> None:
    """The figures of docs/guides/mm_xl.md, worked out again."""
    page = (CHECKOUT / "docs/guides/mm_xl.md").read_text("utf-8")
    config = load("mm_xl")
    said, once = (
        dict(re.split(r"\s{2,}", line, maxsplit=1) for line in plan(c, 64).split("\n"))
        for c in (config, load("mm_xl", ["train.checkpoint_activations=false"]))
    )
    whole, model = (float(lines["FLOPs a step"].split()[0]) for lines in (said, once))
    assert f"{model:.3g}".replace("+", "") in page
    assert f"{whole:.3g}".replace("+", "") in page
    assert said["memory a rank"].split(":")[0] in page
    parameters = int(said["parameters"].split()[0].replace(",", ""))
    assert f"{parameters * 16 / 1e9:.1f} GB" in page
    weights = 2 * parameters / 1e9  # bf16; an all-reduce sends them twice, around a ring
    for batches in (1, 2):
        assert f"{weights * (2 * batches + 1):.1f} GB" in page
    fast = load("mm_xl", ["data.micro_rows=4", "train.checkpoint_activations=false"])
    memory = float(plan(fast, 64).split("memory a rank")[1].split()[0])
    assert f"{memory:.1f} GiB" in page
    for peak in (989e12, 312e12):
        step = model / (64 * 0.4 * peak)
        hours = step * config.train.steps / 3600
        row = next(line for line in page.split("\n") if f"| {peak / 1e12:.0f} TFLOP/s |" in line)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[2] == f"{step:.2f} s"
        assert cells[3] == f"{hours:.0f} hours"
        assert abs(int(cells[4].replace(",", "")) - hours * 64) < 0.001 * hours * 64
