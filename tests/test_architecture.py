"""What docs/architecture.md promises of the source itself, read from the files."""

import ast
import glob
import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
# Through the links too: mmfusion/eval is eval/, mmfusion/data_pipelines is data_pipelines/.
FILES = sorted(Path(name) for name in glob.glob(f"{CHECKOUT}/mmfusion/**/*.py", recursive=True))
LONGEST, LONGEST_ENTRY, LONGEST_FUNCTION = 350, 60, 60

# Each line may import from the lines above it, and from its own; a package stands for its modules.
LAYERS = [
    ["errors", "texts", "files", "home", "jsonl", "launcher", "locks"],
    ["rng", "overrides", "device"],
    ["config", "manifest"],
    ["hub"],
    ["split", "diffusion", "codecs", "sequence"],
    ["mask", "packing"],
    ["attention"],
    ["cache", "decoder"],
    ["losses"],
    ["card"],
    ["export"],
    ["importers"],
    ["generation"],
    ["pretrained"],
    ["pipeline"],
    ["training"],
    ["data_pipelines"],
    ["eval"],
    ["serving"],
    ["cli"],
    ["__main__"],
]
# The order inside a line, where one matters: who must not import whom.
NEVER = [
    ("sequence", "codecs"),
    ("diffusion", "codecs"),
    ("split", "sequence"),
    ("split", "diffusion"),
    ("packing", "mask"),
    ("mask", "packing"),
    ("cache", "decoder"),
    ("decoder", "cache"),  # how tokens attend is handed to it
    ("manifest", "config"),
    ("config", "manifest"),
    ("losses", "decoder"),  # the losses know predictions and batches, not who made them
    ("losses", "training"),
    ("generation", "losses"),
    ("generation", "training"),
    ("training", "generation"),
    ("decoder", "diffusion"),
    ("decoder", "codecs"),
]
BANNED = {
    "torch.load": "unpickles unless weights_only is True",
    "np.load": "unpickles unless allow_pickle is False",
    "numpy.load": "unpickles unless allow_pickle is False",
    "pickle": "runs what it reads",
    "dill": "runs what it reads",
    "joblib": "unpickles",
    "marshal": "runs what it reads",
    "shelve": "unpickles",
    "yaml.unsafe_load": "makes any object",
    "yaml.full_load": "makes objects",
    "eval": "runs text",
    "exec": "runs text",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
    "extractall": "writes outside its folder",
}


def part_of(module: str) -> str:
    """mmfusion.training.loop is part of `training`."""
    return module.split(".")[1]


def module_of(file: Path) -> str:
    """The name by which a file is imported."""
    name = file.relative_to(CHECKOUT).with_suffix("").as_posix().replace("/", ".")
    return name.removesuffix(".__init__")


def imported(file: Path, top: bool = False) -> set[str]:
    """All modules that a file names in an import: also inside functions, or only at its top.

    `from mmfusion import losses` names mmfusion.losses; names that are no module do no harm.
    """
    package = module_of(file) if file.name == "__init__.py" else module_of(file).rpartition(".")[0]
    tree = ast.parse(file.read_text("utf-8"))
    found = set()
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


PUBLIC = {
    "Pipeline": "pipeline",
    "ImageSlot": "generation",
    "TextSlot": "generation",
    "grid": "training",
}


def parts_imported(file: Path) -> set[str]:
    own = {name for name in imported(file) if name.split(".")[0] == "mmfusion" and "." in name}
    parts = {part_of(name) for name in own}
    parts = {PUBLIC.get(part, "errors" if part == "UserError" else part) for part in parts}
    return parts - {"__version__"}


def test_imports_go_one_way() -> None:
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    wrong = []
    for file in FILES:
        module = module_of(file)
        if module == "mmfusion":
            continue  # the package's front loads what is asked for, when it is asked for
        own = part_of(module)
        assert own in level, f"{module}: say in LAYERS where it stands"
        for other in parts_imported(file):
            assert other in level, f"{module} imports {other}, which LAYERS does not know"
            up = level[other] > level[own]
            if up or (own, other) in NEVER:
                wrong.append(f"{module} imports {other}")
    assert not wrong


def test_only_the_command_line_imports_data_pipelines_and_eval() -> None:
    for file in FILES:
        own = part_of(module_of(file)) if module_of(file) != "mmfusion" else "mmfusion"
        allowed = {
            "cli": {"data_pipelines", "eval"},
            "eval": {"eval", "data_pipelines"},
            "data_pipelines": {"data_pipelines"},
        }.get(own, set())
        assert parts_imported(file) & {"data_pipelines", "eval"} <= allowed, file
    seen = set().union(*(parts_imported(file) for file in FILES if "cli" in file.parts))
    assert {"data_pipelines", "eval"} <= seen  # or this test has gone blind


def test_converters_and_inspection_stand_on_the_shards_and_on_nothing_else_of_the_data() -> None:
    """Makers of shards and those who look at them know the core, which knows neither."""
    for file in FILES:
        if file.parts[-2] == "data_pipelines":
            found = imported(file)
            assert not any(".converters" in name or ".inspection" in name for name in found), file
        elif file.parts[-2] in ("converters", "inspection"):
            other = {"converters": ".inspection", "inspection": ".converters"}[file.parts[-2]]
            assert not any(other in name for name in imported(file)), file


def test_the_command_line_is_imported_by_nobody() -> None:
    for file in FILES:
        if "cli" not in file.parts and file.stem != "__main__":
            assert "cli" not in parts_imported(file), file


def test_each_module_has_one_name() -> None:
    """A bare `import eval` works in a checkout and gives a second copy of the module."""
    outside = [f for name in ("tests", "benchmarks") for f in (CHECKOUT / name).rglob("*.py")]
    for file in [*FILES, CHECKOUT / "train.py", *outside]:
        roots = {name.split(".")[0] for name in imported(file)}
        assert not roots & {"eval", "data_pipelines", "configs"}, file
        assert file in outside or not roots & {"tests", "benchmarks"}, file


def test_no_circle_of_modules() -> None:
    """Imports at the top of files, followed to their end."""
    modules = {module_of(file) for file in FILES} - {"mmfusion"}
    graph = {module_of(file): imported(file, top=True) & modules for file in FILES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in graph[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_files_stay_short() -> None:
    long = {
        str(file.relative_to(CHECKOUT)): lines
        for file in FILES
        if (lines := len(file.read_text("utf-8").splitlines())) > LONGEST
    }
    assert not long


def test_functions_stay_short() -> None:
    long = {
        f"{file.relative_to(CHECKOUT)}: {node.name}": lines
        for file in [*FILES, *(CHECKOUT / "benchmarks").rglob("*.py")]
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    }
    assert not long


def test_the_entry_only_wires() -> None:
    assert len((CHECKOUT / "train.py").read_text("utf-8").splitlines()) < LONGEST_ENTRY


def test_each_file_says_what_it_is() -> None:
    for file in [*FILES, CHECKOUT / "train.py"]:
        assert ast.get_docstring(ast.parse(file.read_text("utf-8"))), file


def test_nothing_runs_or_unpickles_what_it_reads() -> None:
    found = [f"{file.relative_to(CHECKOUT)}: {what}" for file in FILES for what in banned(file)]
    assert not found


def banned(file: Path) -> list[str]:
    tree = ast.parse(file.read_text("utf-8"))
    found = sorted(name for name in imported(file) if name.split(".")[0] in BANNED)
    safe = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any("SafeLoader" in ast.unparse(b) for b in node.bases)
    } | {"yaml.SafeLoader", "SafeLoader", "yaml.CSafeLoader"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if options.get("shell", "False") != "False":
            found.append("shell=")
        if options.get("trust_remote_code", "False") != "False":
            found.append("trust_remote_code=")
        if options.get("allow_pickle", "False") != "False":
            found.append("allow_pickle=")
        if name in ("yaml.load", "yaml.load_all"):
            loaders = {ast.unparse(a) for a in node.args[1:]} | {options.get("Loader", "")}
            if not loaders & safe:
                found.append(name)
        elif name == "torch.load":
            if options.get("weights_only") != "True":
                found.append(name)
        elif name in ("np.load", "numpy.load"):
            if options.get("allow_pickle") != "False":
                found.append(name)
        elif name in BANNED or name.split(".")[-1] == "extractall":  # not model.eval()
            found.append(name)
    return found


def test_the_ban_finds_what_it_bans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "CHECKOUT", tmp_path)
    bad = [
        "import pickle", "from pickle import loads", "import torch\ntorch.load(f)",
        "torch.load(f, weights_only=False)", "eval(x)",
        "from pickle import UnpicklingError, loads",
        "import subprocess\nsubprocess.run(x, shell=True)", "import yaml\nyaml.load(x)",
        "import yaml\nyaml.load(x, yaml.Loader)", "import numpy as np\nnp.load(f)",
        "import numpy as np\nnp.load(f, allow_pickle=True)", "tar.extractall(x)",
    ]  # fmt: skip
    good = [
        "import yaml\nyaml.load(x, yaml.SafeLoader)", "model.eval()", "subprocess.run(x)",
        "torch.load(f, weights_only=True)",
        "import yaml\nclass L(yaml.SafeLoader): pass\nyaml.load(x, L)",
        "import numpy as np\nnp.load(f, allow_pickle=False)", "safetensors.torch.load_file(x)",
    ]  # fmt: skip
    for number, text in enumerate(bad + good):
        file = tmp_path / f"m{number}.py"
        file.write_text(text)
        assert bool(banned(file)) == (text in bad), text


REMOVERS = {
    "replace", "rename", "renames", "remove", "removedirs", "unlink", "rmdir", "rmtree", "move",
}  # fmt: skip


def removals(file: Path) -> list[str]:
    """Calls that replace, rename or remove files: of os, shutil, or of a path."""
    found = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil"):
            found += [name.name for name in node.names if name.name in REMOVERS]
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, of = node.func.attr, ast.unparse(node.func.value)
        if name not in REMOVERS or of == "files":
            continue
        if of in ("os", "shutil") or name in ("unlink", "rmdir", "rmtree"):
            found.append(ast.unparse(node.func))
        elif name in ("replace", "rename") and len(node.args) == 1 and not node.keywords:
            found.append(ast.unparse(node.func))  # a path's: that of a string has two
    return found


def test_one_module_replaces_and_removes_files() -> None:
    found = {}
    for file in [*FILES, *(CHECKOUT / "benchmarks").rglob("*.py"), CHECKOUT / "train.py"]:
        if file != CHECKOUT / "mmfusion/files.py" and (calls := removals(file)):
            found[str(file.relative_to(CHECKOUT))] = calls
    assert not found, "let mmfusion/files.py do it, which knows what is ours"
    assert {"os.replace", "shutil.rmtree"} <= {*removals(CHECKOUT / "mmfusion/files.py")}


ONLY_OURS = {
    "data_pipelines/autoencoder.py": "test_somebody_elses_autoencoder_stays",
    "data_pipelines/shard_writer.py": "test_leftovers_are_ours_by_their_whole_names",
    "data_pipelines/shards.py": "test_another_tools_index_stays",
    "eval/features.py": "test_a_damaged_part_is_made_again",
    "mmfusion/importers/mar_vae.py": "test_the_folder_one_stands_in_is_filled",
    "mmfusion/locks.py": "test_another_programs_locks_stay",
    "mmfusion/manifest.py": "test_what_a_user_added_stays",
    "mmfusion/training/checkpoint.py": "test_only_exactly_our_names_are_removed_or_resumed_from",
}
"""Who removes or renames, and the test that what is not ours stays there."""


def test_who_removes_is_tested_to_remove_what_is_ours() -> None:
    asked = re.compile(
        r"\bfiles\.(remove|move|staging)|^from mmfusion\.files import .*\b(remove|move|staging)",
        re.M,
    )
    who = [f.resolve().relative_to(CHECKOUT) for f in FILES if asked.search(f.read_text("utf-8"))]
    assert {*map(str, who)} == ONLY_OURS.keys()
    tests = "".join(file.read_text("utf-8") for file in (CHECKOUT / "tests").glob("test_*.py"))
    assert not [name for name in ONLY_OURS.values() if f"def {name}(" not in tests]


def test_what_removes_is_found(tmp_path: Path) -> None:
    bad = [
        "os.replace(a, b)", "shutil.rmtree(a)", "from shutil import move", "path.unlink()",
        "Path(a).rename(b)", "path.replace(b)", "os.remove(a)", "from os import unlink as gone",
    ]  # fmt: skip
    good = ["text.replace(a, b)", "dataclasses.replace(a, b=c)", "found.remove(a)", "os.stat(a)"]
    for number, text in enumerate(bad + good):
        file = tmp_path / f"m{number}.py"
        file.write_text(text)
        assert bool(removals(file)) == (text in bad), text


def test_nothing_imports_all_names() -> None:
    for file in FILES:
        assert not re.search(r"^\s*from \S+ import \*", file.read_text("utf-8"), re.M), file
