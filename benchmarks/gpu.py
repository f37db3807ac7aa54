"""All that a GPU is to show, bounded in time.

    python -m benchmarks.gpu --out DIR [--official DIR] [--only NAME,...] [--budget SECONDS]

The parts that check (`tests`, `attention`) run side by side, then those that take times alone, one
after another. Each is a process with a log in DIR; at its limit it is killed with all that it has
started. DIR/gpu.json holds what they found. A table is printed last; the exit status is 1 if a part
that checks has failed. `--official` is a checkout of the official CausalFusion code.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch

from benchmarks import options
from mmfusion import jsonl

XL = "--device cuda --width 1280 --depth 32"


class Part(NamedTuple):
    """A command, how many seconds it may take, and whether it checks or takes times."""

    command: str
    limit: int
    checks: bool = False
    official: bool = False


PARTS = {
    "tests": Part("pytest tests/test_cuda.py -o addopts= -q -rP -p no:logging", 400, checks=True),
    "attention": Part("benchmarks.attention --only compare --budget 60", 150, checks=True),
    "losses": Part(  # two layers of XL, all ways: what is compiled here, `training` need not
        f"benchmarks.training {XL} --depth 2 --rows 16 --splits 3 --budget 120",
        150,
        checks=True,
        official=True,
    ),
    "training": Part(
        f"benchmarks.training {XL} --rows 16 --splits 10 --budget 180", 240, official=True
    ),
    "sampling": Part(
        f"benchmarks.sampling {XL} --batch 1,64 --steps 20 --repeat 3 --budget 75 --profile",
        120,
        official=True,
    ),
    "times": Part("benchmarks.attention --only time --budget 45", 80),
    "checkpointed": Part(
        f"benchmarks.training {XL} --rows 64 --splits 6 --budget 120 --checkpoint",
        180,
        official=True,
    ),
}


def run(name: str, out: Path, official: Path | None, until: float) -> dict[str, Any]:
    """One part: how it ended, its seconds, and what it found."""
    part, started = PARTS[name], time.monotonic()
    command = [sys.executable, "-m", *part.command.split()]
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    if part.checks:  # they share the cores
        env["TORCHINDUCTOR_COMPILE_THREADS"] = "4"
    if part.official and official:
        command += ["--against", f"causalfusion={official}"]
    if name == "training":
        command += ["--profile", os.devnull]  # its log has it, too
    if name == "tests" and importlib.util.find_spec("xdist"):
        command += ["-n", "6", "--dist", "worksteal"]
    limit, log = max(min(part.limit, until - started), 0), out / f"{name}.log"
    with tempfile.NamedTemporaryFile() as found, log.open("wb") as file:
        if "attention" in part.command:
            command += ["--json", found.name]
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it has started, too
            process.wait()
        written = Path(found.name).read_text(encoding="utf-8")
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    objects = [line for line in lines if line.startswith("{")]
    try:
        numbers = json.loads(written or objects[-1])
    except (IndexError, ValueError):
        numbers = None
    ended = "too long" if code is None else "done" if code == 0 else f"FAILED ({code})"
    print(f"{name}: {ended}", flush=True)
    return {
        "command": " ".join(command[1:]),
        "ended": ended,
        "seconds": round(time.monotonic() - started, 1),
        "last line": next((n for n in reversed(lines) if not n.startswith("{")), "")[:150],
        "found": numbers,
    }


def main() -> None:
    """Run, write, print; exit with status 1 where something is wrong."""
    parser = options("gpu", __doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--official", type=Path)
    parser.add_argument("--only", default=",".join(PARTS), help="of: %(default)s")
    parser.add_argument("--budget", type=float, default=1200, help="seconds in all")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device is found here")
    args.out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + args.budget
    names = args.only.split(",")
    if unknown := set(names) - set(PARTS):
        parser.error(f"--only: {', '.join(unknown)}; known are {', '.join(PARTS)}")
    found: dict[str, Any] = {}

    one_at_a_time = Lock()

    def done(name: str) -> None:
        told = run(name, args.out, args.official, until)
        with one_at_a_time:
            found[name] = told
            (args.out / "gpu.json").write_text(jsonl.dumps(found, indent=1) + "\n")

    checks = [name for name in names if PARTS[name].checks]
    with ThreadPoolExecutor(len(PARTS)) as threads:
        list(threads.map(done, checks))
    for name in names:
        if name not in checks and time.monotonic() < until:
            done(name)
    for name in names:
        told = found.get(name, {"ended": "left out: no time", "seconds": 0, "last line": ""})
        print("{name:14}{ended:18}{seconds:7} s  {last line}".format(name=name, **told))
    if any(found[name]["ended"] != "done" for name in checks):
        sys.exit("a part that checks has failed")


if __name__ == "__main__":
    main()
