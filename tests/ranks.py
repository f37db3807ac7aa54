"""How tests start ranks, and the jobs of tests/test_training.py: short runs in one process a rank.

    python tests/ranks.py DATA FOLDER

as one rank, or as two by the DeepSpeed launcher. Importing torch and DeepSpeed takes seconds, so
one process trains everything that its number of ranks is needed for, and leaves it under FOLDER for
the tests to compare. One rank also writes down what plain PyTorch makes of the same batch. The last
runs end early, or nearly: something happens on the last rank alone, before a step, or on the first,
which writes. What each ended with on a rank is left in ended-RANK.json.
"""

import errno
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from mmfusion import losses
from mmfusion.attention import ByDocument, ByRow
from mmfusion.cli import main
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Config, load
from mmfusion.data_pipelines.loader import Loader
from mmfusion.decoder import Decoder
from mmfusion.diffusion import Diffusion
from mmfusion.errors import UserError
from mmfusion.packing import Batch, collate
from mmfusion.sequence import Image, Label, Row, Text
from mmfusion.split import cut
from mmfusion.training import loop
from mmfusion.training.engine import start_distributed
from mmfusion.training.loop import Trainer

CHECKOUT = Path(__file__).resolve().parents[1]
CLIP, LR, DECAY, EPS = 0.5, 0.1, 0.1, 1.0


SHEET = loop.sample_sheet


def blank(*_: Any) -> np.ndarray:
    """In place of a sample sheet, which takes longer than the steps before it."""
    return np.zeros((1, 1, 3), np.uint8)


def environment(**variables: str) -> dict[str, str]:
    """This process's, without what a launcher may have left in it."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {k: v for k, v in os.environ.items() if k not in launcher}
    return {**kept, "OMP_NUM_THREADS": "1", **variables}


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launch(command: list[str], ranks: int = 1, limit: float = 400) -> str:
    """Run a command in the checkout, as so many ranks; all that they said."""
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    with TemporaryFile("w+") as said:
        processes = [
            subprocess.Popen(
                command,
                cwd=CHECKOUT,
                env=environment(**(common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}))
                if ranks > 1
                else environment(),
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for rank in range(ranks)
        ]
        end = time.monotonic() + limit
        try:
            # One that fails leaves the others waiting.
            while any(p.poll() is None for p in processes) and not any(p.poll() for p in processes):
                if time.monotonic() > end:
                    raise AssertionError(f"{' '.join(command)}: takes more than {limit} s")
                time.sleep(0.05)
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # and what a launcher started
                process.wait()
        said.seek(0)
        text = said.read()
    codes = [process.returncode for process in processes]
    assert not any(codes), f"{' '.join(command)}: exit codes {codes}\n{text[-6000:]}"
    return text


def deepspeed(*arguments: str) -> list[str]:
    """The DeepSpeed launcher with two CPU ranks, on a port of its own."""
    program = str(Path(sys.executable).with_name("deepspeed"))
    return [program, "--num_accelerators", "2", "--master_port", free_port(), *arguments]


def one_step(data: Path, output: Path, **train: object) -> Config:
    """A config whose single step is smooth in the gradient (large eps) and clips it."""
    settings = {"lr": LR, "weight_decay": DECAY, "eps": EPS, "grad_clip": CLIP, "text_weight": 0.7}
    return tiny(data, output, **{**settings, "steps": 1, **train})


def tiny(data: Path, output: Path, **train: object) -> Config:
    """tiny.yaml on this data."""
    return load("tiny", overrides(data, output, **train))


def overrides(data: Path, output: Path, **train: object) -> list[str]:
    """What puts tiny.yaml on this data."""
    shards = ["train-*.tar"] * 3 + ["interleaved-*.tar"]
    return [
        f"text.tokenizer={data}/tokenizer.model",
        *(f"data.sources.{i}.shards={data}/{name}" for i, name in enumerate(shards)),
        f"data.micro_rows={train.pop('micro_rows', 2)}",
        f"data.workers={train.pop('workers', 0)}",
        *(f"train.{key}={v if isinstance(v, str) else json.dumps(v)}" for key, v in train.items()),
        f"train.output={output}",
    ]


def mixed_rows(config: Config) -> list[Row]:
    """Four rows: two of text alone, then two of pictures alone, no two equally full."""
    rng, diffusion = np.random.default_rng(0), Diffusion(config.diffusion)
    rows = [Row.of(config, config.row_length) for _ in range(4)]
    for row, lengths in zip(rows, ([40, 7], [3]), strict=False):
        for length in lengths:
            row.document([Text(rng.integers(5, 200, length).tolist(), loss=True)])
    for row, pictures in zip(rows[2:], (3, 1), strict=True):
        for _ in range(pictures):
            latents = rng.standard_normal((config.image.tokens, config.image.latent_dim))
            latents = latents.astype(np.float32)
            split = cut(rng.permutation(len(latents)), [6, 5, 5])  # three such pictures fit a row
            noise = diffusion.draw(latents, split, rng)
            picture = Image(latents, config.image.grid[1], split, noise)
            row.document([Label(int(rng.integers(10))), picture])
    return rows


class MixedRows:
    """`mixed_rows` as a Trainer takes them: of two ranks, the first gets text alone."""

    order = (0, 1, 2, 3)

    def __init__(self, config: Config, rank: int, world: int) -> None:
        rows, micro = [mixed_rows(config)[i] for i in self.order], config.data.micro_rows
        share = len(rows) // world
        mine = rows[rank * share : (rank + 1) * share]
        self.batches = [collate(mine[at : at + micro]) for at in range(0, share, micro)]
        self.rank = rank

    def __iter__(self) -> Iterator[list[Batch]]:
        while True:
            yield self.batches

    def lost(self) -> list[dict[str, Any]]:
        return []

    def layout(self) -> dict[str, Any]:
        return {"columns": ["documents"]}

    def state(self) -> dict[int, list[int]]:
        return {self.rank: [1]}

    def resume(self, layout: dict[str, Any], state: dict[int, list[int]]) -> None:
        raise AssertionError("nothing to go on from")


class UnevenRows(MixedRows):
    """The same rows: both ranks get text and pictures, but the first much more of them."""

    order = (0, 2, 1, 3)


class Awake(Decoder):
    """A decoder whose latent head is not zero: with it no other gradient of the pictures is."""

    def initialise(self) -> None:
        super().initialise()
        torch.nn.init.normal_(self.latent_out.weight, std=0.2)


def step(config: Config, rows: type[MixedRows] = MixedRows) -> None:
    """One step of a decoder that is awake."""
    loop.Decoder = Awake  # type: ignore[misc]
    Trainer(config, rows).run()
    loop.Decoder = Decoder  # type: ignore[misc]


def reference(config: Config, path: Path) -> None:
    """Losses, gradients and updated weights of one step in plain PyTorch, one batch, one rank."""
    torch.manual_seed(config.seed)
    assert config.text
    model = Awake(config, len(Tokenizer(config.text.tokenizer)))
    tensors = {f"before/{n}": p.detach().clone() for n, p in model.named_parameters()}
    batch = collate(mixed_rows(config), padded=True)
    latents, logits = model(batch, ByRow(batch, flex=False))
    noisy = batch.weight > 0
    error = ((latents - batch.target) ** 2).mean(-1)[noisy]
    image = (error * batch.weight[noisy]).sum() / noisy.sum()
    targets = batch.predict_id >= 0
    text = cross_entropy(logits[targets], batch.predict_id[targets])
    (image + config.train.text_weight * text).backward()
    tensors |= {"image_loss": image.detach(), "text_loss": text.detach()}
    tensors |= {f"gradient/{n}": p.grad.clone() for n, p in model.named_parameters()}
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    betas = (config.train.betas[0], config.train.betas[1])
    tables = ("text.", "label.", "label_position.", "grid_position.")
    decayed = {n for n, p in model.named_parameters() if p.ndim == 2 and not n.startswith(tables)}
    torch.optim.AdamW(
        [{"params": [p], "weight_decay": DECAY if n in decayed else 0.0}
         for n, p in model.named_parameters()],
        LR, betas, EPS,
    ).step()  # fmt: skip
    tensors |= {f"weight/{n}": p.detach().clone() for n, p in model.named_parameters()}
    save_file({**tensors, "norm": norm}, path)


class ManyRows(MixedRows):
    """The same rows sixteen times: 64 micro-batches of one."""

    order = (0, 1, 2, 3) * 16


def summed(data: Path, folder: Path) -> None:
    """Gradients of 64 micro-batches in bf16: by plain PyTorch, and at each stage that has it."""
    for stage in (1, 2, 3):
        output = folder / f"summed-{stage}"
        config = one_step(data, output, zero_stage=stage, micro_rows=1, grad_clip=0.0)
        rows = config.data.model_copy(update={"rows": 64})
        bf16 = config.train.model_copy(update={"precision": "bf16"})
        with redirect_stdout(io.StringIO()) as said:
            step(config.model_copy(update={"data": rows, "train": bf16}), ManyRows)
        (output / "said").write_text(said.getvalue(), "utf-8")
    torch.manual_seed(config.seed)
    assert config.text
    model = Awake(config, len(Tokenizer(config.text.tokenizer))).bfloat16()
    batches = ManyRows(config, 0, 1).batches
    noisy, targets = (sum(getattr(b, n) for b in batches) for n in ("noisy", "targets"))
    exact = {n: torch.zeros(p.shape) for n, p in model.named_parameters()}
    rounded = {n: torch.zeros_like(p, requires_grad=False) for n, p in model.named_parameters()}
    for batch in batches:
        latents, logits = model(batch, ByDocument(batch))
        part = losses.sums(latents, logits, batch)
        losses.total(part, noisy, targets, config.train.text_weight).backward()
        for name, parameter in model.named_parameters():
            exact[name] += parameter.grad
            rounded[name] += parameter.grad
        model.zero_grad()
    tensors = {f"exact/{n}": g for n, g in exact.items()}
    tensors |= {f"rounded/{n}": g.float() for n, g in rounded.items()}
    save_file(tensors, folder / "summed.safetensors")


def go_on(data: Path, folder: Path, stage: int) -> None:
    """Four steps at once, and two and then two more."""
    train = {"steps": 4, "keep": 9, "weight_decay": 0.1, "warmup": 3, "decay": 0.5}
    straight = tiny(data, folder / "straight", zero_stage=stage, save_every=1, **train)
    halves = tiny(data, folder / "halves", zero_stage=stage, **train)
    Trainer(straight, Loader).run()
    loop.sample_sheet = SHEET
    Trainer(halves, Loader).run(until=2)
    Trainer(halves, Loader).run()
    loop.sample_sheet = blank


def start(data: Path, folder: Path) -> None:
    """A new run from a checkpoint's raw weights, and two from a model that is gone later."""
    Trainer(tiny(data, folder / "first", steps=4, save_every=1), MixedRows).run()
    raw = str(folder / "first/checkpoints/step-00000003")
    Trainer(tiny(data, folder / "next", steps=1, start_from=raw), MixedRows).run()
    source = shutil.copytree(folder / "first/model", folder / "source")
    given = {"steps": 2, "save_every": 1, "warmup": 2, "start_from": str(source)}
    Trainer(tiny(data, folder / "straight", **given), Loader).run()
    halves = tiny(data, folder / "halves", **given)
    Trainer(halves, Loader).run(until=1)
    shutil.move(source, folder / "gone")
    Trainer(halves, Loader).run()


def one_rank(data: Path, folder: Path) -> None:
    start(data, folder / "start")
    reference(one_step(data, folder), folder / "reference.safetensors")
    step(one_step(data, folder / "whole", zero_stage=0, micro_rows=4))
    for stage in (0, 2):
        name = f"accumulated-{stage}"
        step(one_step(data, folder / name, zero_stage=stage, micro_rows=1))
    summed(data, folder)
    go_on(data, folder / "go-on-0", 0)
    alone = tiny(data, folder / "alone", eps=1e-3, zero_stage=0, steps=4)
    Trainer(alone, Loader).run(until=2)
    again = Trainer(alone, Loader)
    again.run(until=2)  # it is there already
    (folder / "until.json").write_text(json.dumps(again.state.step), encoding="utf-8")
    Trainer(alone, Loader).run()
    # One trainer may be told to go on, also with workers that have read ahead.
    Trainer(tiny(data, folder / "paused" / "straight", eps=1e-3, steps=3), Loader).run()
    paused = Trainer(tiny(data, folder / "paused" / "halves", eps=1e-3, steps=3, workers=2), Loader)
    paused.run(until=1)
    paused.run(until=2)
    paused.run()
    timed = {"max_minutes": 0.02, "steps": 10**6, "decay": 0.5, "save_every": 10**6}
    Trainer(tiny(data, folder / "minutes", **timed), Loader).run()
    with (folder / "again.txt").open("w") as said, redirect_stdout(said):
        assert command("--config", f"{folder}/minutes/config.yaml") == 0
    refused = shutil.copytree(folder / "go-on-0/halves", folder / "refused")
    other = ["decoder.depth=1", "diffusion.prediction=sample", "train.steps=9", "seed=3"]
    with (folder / "refused.txt").open("w") as said, redirect_stderr(said):
        assert command("--config", f"{refused}/config.yaml", f"train.output={refused}", *other) == 2


def command(*arguments: str) -> Any:
    """The exit code of `mmfusion train` in this process."""
    try:
        main(["train", *arguments])
    except SystemExit as ended:
        return ended.code or 0


def two_ranks(data: Path, folder: Path, rank: int, arguments: list[str]) -> None:
    for stage in (0, 1, 2, 3):
        step(one_step(data, folder / f"ranks-{stage}", zero_stage=stage))
    for stage in (2, 3):
        config = one_step(data, folder / f"uneven-{stage}", zero_stage=stage, micro_rows=1)
        step(config, UnevenRows)
        go_on(data, folder / f"go-on-{stage}", stage)
    # What one rank began at stage 0 is finished by two at stage 3.
    if rank == 0:
        begun = "checkpoints/step-00000002"
        shutil.copytree(folder / "alone" / begun, folder / "grown" / begun)
    torch.distributed.barrier()
    Trainer(tiny(data, folder / "grown", eps=1e-3, zero_stage=3, steps=4), Loader).run()
    # What two begin at stage 2, with what the launcher appends, one finishes by `train.py`.
    begun = overrides(data, folder / "command", eps=1e-3, zero_stage=2)
    assert command("--config", "tiny", *begun, "--until", "2", *arguments) == 0


# Runs that end early


def nan(batch: Batch) -> Batch:
    return replace(batch, target=batch.target * torch.nan)


def terminate(batch: Batch) -> Batch:
    os.kill(os.getpid(), signal.SIGTERM)
    return batch


def damage(batch: Batch) -> Batch:
    raise UserError("shard 7: is gone")


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the disk")


@contextmanager
def nobody_reads() -> Iterator[None]:
    """While stderr is a pipe that the other side has closed, as `| tee log` does at Ctrl-C."""
    kept, (reader, writer) = os.dup(2), os.pipe()
    os.close(reader)
    os.dup2(writer, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)


def broken(*_: Any) -> None:
    raise ValueError("no colour named mauve")


def happening(happens: dict[int, Callable[[Batch], Batch]]) -> type[MixedRows]:
    """Rows of which the last rank's first batch of some steps is changed."""

    class Changed(MixedRows):
        def __init__(self, config: Any, rank: int, world: int) -> None:
            super().__init__(config, rank, world)
            self.last = rank == world - 1

        def __iter__(self) -> Iterator[list[Batch]]:
            for step in range(1, 100):
                first, *others = self.batches
                if self.last and step in happens:
                    first = happens[step](first)
                yield [first, *others]

    return Changed


def ended(config: Any, happens: dict[int, Callable[[Batch], Batch]], rank: int) -> None:
    """Run, and write down how it ended on this rank."""
    trainer = Trainer(config, happening(happens))
    try:
        trainer.run()
        told: Any = ["", ""]
    except (Exception, SystemExit) as error:
        told = [type(error).__name__, str(error)]
    path = Path(config.train.output) / f"ended-{rank}.json"
    path.write_text(json.dumps(told), encoding="utf-8")


def unexported(data: Path, output: Path) -> None:
    """A run that has no room for its model when all is trained, and its next start."""
    config, export = tiny(data, output, steps=1), loop.export
    loop.export = full  # type: ignore[assignment]
    with suppress(OSError):
        Trainer(config, Loader).run()
    loop.export = export
    Trainer(config, Loader).run()


def endings(data: Path, folder: Path, rank: int, world: int) -> None:
    def config(name: str, **train: Any) -> Any:
        given = {"steps": 5, "save_every": 1, "keep": 9, "zero_stage": 0 if world == 1 else 2}
        return tiny(data, folder / name, micro_rows=1, **{**given, **train})

    ended(config("once"), {2: nan}, rank)
    ended(config("thrice", steps=9), dict.fromkeys((3, 4, 5, 6), nan), rank)
    ended(config("at-the-end", steps=3), {3: nan}, rank)
    if world == 1:
        unexported(data, folder / "unexported")
        with nobody_reads():
            ended(config("unheard", save_every=50), {3: terminate}, rank)
        return
    ended(config("signal", save_every=50), {3: terminate}, rank)
    ended(config("data", save_every=50), {3: damage}, rank)
    loop.sample_sheet = broken
    ended(config("sheet", steps=1), {}, rank)
    loop.export = full  # type: ignore[assignment]
    ended(config("export", steps=2), {}, rank)


if __name__ == "__main__":
    arguments = [word for word in sys.argv[1:] if word.startswith("--")]  # of the launcher
    data, folder = (Path(word) for word in sys.argv[1:] if word not in arguments)
    rank, world = start_distributed()
    loop.sample_sheet = blank
    if world == 1:
        one_rank(data, folder)
    else:
        two_ranks(data, folder, rank, arguments)
    endings(data, folder / f"ranks-{world}", rank, world)
