"""What a GPU would wait for, held without one.

On the meta device a tensor has no numbers: whoever reads one on the host raises. So a training step
and a denoising step that run there never wait. DeepSpeed's own optimizer step is not among them: it
reads the gradient's norm, once a step.

Blocks of padded rows trace into graphs without a break, and are not traced again for other rows.
FlexAttention has no backward pass on the CPU: it is traced without gradients, the dense mask with.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import model_config, random_decoder, random_document
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from mmfusion import losses
from mmfusion.attention import ByRow
from mmfusion.cache import Pool
from mmfusion.config import Sampling
from mmfusion.decoder import Decoder
from mmfusion.generation.session import Session
from mmfusion.generation.stepper import Guest, Stepper, run
from mmfusion.packing import Batch, collate
from mmfusion.sequence import Counts, Row, Text, count
from mmfusion.training.ema import Ema
from mmfusion.training.engine import compile_blocks
from mmfusion.training.loop import Trainer, Work
from mmfusion.training.metrics import Window
from mmfusion.training.zero_shards import Piece

VOCABULARY, LENGTH = 400, 128
CAPACITY = Counts(LENGTH, text=60, label=16, image=120, noisy=96, predict=40)
READS: dict[str, Callable[[Tensor], Any]] = {
    "item": Tensor.item, "bool": bool, "tolist": Tensor.tolist, "cpu": Tensor.cpu,
    "numpy": Tensor.numpy, "nonzero": Tensor.nonzero, "mask": lambda x: x[x > 0],
}  # fmt: skip


def packed(seed: int, capacity: Counts | None = CAPACITY) -> Batch:
    """Two rows of random documents, as the loader makes them for a GPU."""
    rng = np.random.default_rng(seed)
    config, rows = model_config(row_length=LENGTH), []
    for _ in range(2):
        row, used = Row.of(config, LENGTH), Counts()
        while used.plus(size := count(document := random_document(rng), 2)).fits(CAPACITY):
            row.document(document)
            used = used.plus(size)
        rows.append(row)
    return collate(rows, padded=True, capacity=capacity)


# Nothing is read on the host


class Engine:
    """In DeepSpeed's place: what it does with a step, apart from its look at the norm."""

    def __init__(self, module: Decoder) -> None:
        self.module, self.skipped_steps = module, 0
        self.basic_optimizer = torch.optim.AdamW(module.parameters(), foreach=True)

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.basic_optimizer.step()
        self.basic_optimizer.zero_grad()


def step(flex: bool) -> None:
    """A step of two micro-batches on the meta device, and what is kept of it."""
    with torch.device("meta"):
        model = Decoder(model_config(row_length=LENGTH), VOCABULARY).train()
    trainer = Trainer.__new__(Trainer)
    trainer.engine, trainer.device = Engine(model), torch.device("meta")
    trainer.world, trainer.flex = 1, flex
    trainer.state = SimpleNamespace(step=0)  # type: ignore[assignment]
    trainer.config = SimpleNamespace(train=SimpleNamespace(text_weight=0.5))  # type: ignore[assignment]
    trainer.ema = Ema([Piece(n, 0, p.numel(), p, 0) for n, p in model.named_parameters()], 0.9)
    trainer.health = SimpleNamespace(note=lambda step: None)  # type: ignore[assignment]
    window = Window(trainer.device)
    batches = [packed(0), packed(1)]
    work = Work(batches, sum(b.noisy for b in batches), sum(b.targets for b in batches), 0.0)
    window.add(trainer._step(work, lr=1e-3), work.noisy, work.targets, 0)


def test_a_training_step_reads_nothing() -> None:
    step(flex=False)


@pytest.mark.parametrize("read", READS)
def test_a_read_in_a_training_step_is_seen(monkeypatch: pytest.MonkeyPatch, read: str) -> None:
    plain = losses.sums

    def reading(latents: Tensor, *others: Any) -> losses.Sums:
        READS[read](latents.detach().sum() if read in ("item", "bool") else latents.detach())
        return plain(latents, *others)

    monkeypatch.setattr(losses, "sums", reading)
    with pytest.raises((RuntimeError, NotImplementedError, TypeError), match=r"(?i)meta"):
        step(flex=False)


def denoise() -> None:
    """Four steps of two guided pictures on the meta device."""
    config = model_config()
    with torch.device("meta"):
        decoder = Decoder(config, VOCABULARY).eval()
    generators = [torch.Generator().manual_seed(n) for n in range(2)]
    session = Session(decoder, config, None, 20, generators, guided=True)
    sampling = Sampling(scheduler="ddpm", num_inference_steps=4, guidance=2.0)
    latents = torch.zeros(2, 16, 4, device="meta")
    cells = torch.arange(16).repeat(2, 1)
    run(decoder, session._denoise(latents, cells, sampling, 1.0, None))


def test_denoising_reads_nothing() -> None:
    denoise()


def test_a_read_in_a_denoising_step_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Decoder.forward

    def reading(self: Decoder, *inputs: Any) -> Any:
        latents, logits = plain(self, *inputs)
        latents.sum().item()
        return latents, logits

    monkeypatch.setattr(Decoder, "forward", reading)
    with pytest.raises(RuntimeError, match=r"(?i)meta"):
        denoise()


def test_passes_that_begin_on_the_host_are_joined_to_those_of_a_device() -> None:
    config = model_config()
    with torch.device("meta"):
        decoder = Decoder(config, VOCABULARY).eval()
    pool, stepper = Pool(decoder.config, "meta"), Stepper(decoder)
    denoising, reading = (
        Session(decoder, config, None, 20, [torch.Generator()], False, pool) for _ in range(2)
    )
    latents, cells = torch.zeros(1, 16, 4, device="meta"), torch.arange(16)[None]
    sampling = Sampling(scheduler="ddpm", num_inference_steps=4)
    guests = [
        Guest(denoising._denoise(latents, cells, sampling, 1.0, None)),
        Guest(reading.reading([Text([1, 2])])),
    ]
    for guest in guests:
        stepper.join(guest)
    stepper.turn()
    assert stepper.passes == 1
    assert [guest.error for guest in guests] == [None, None]


# One trace serves all batches


@contextmanager
def compiled(flex: bool) -> Iterator[tuple[Decoder, CompileCounterWithBackend]]:
    """A decoder of three compiled blocks, in which a break raises, and a count of their graphs."""
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    decoder = random_decoder(model_config({"depth": 3, **STYLE}, row_length=LENGTH), VOCABULARY)
    compile_blocks(decoder, backend=counter, fullgraph=True)
    try:
        with torch.set_grad_enabled(not flex):
            yield decoder.train(), counter
    finally:
        torch._dynamo.reset()


STYLE: dict[str, Any] = {"norm": "rms", "mlp": "swiglu", "position": "rotary"}


def forward(decoder: Decoder, batch: Batch, flex: bool) -> None:
    latents, logits = decoder(batch, ByRow(batch, flex))
    if latents.requires_grad:
        (latents.square().sum() + logits.square().sum()).backward()


@pytest.mark.parametrize("flex", [False, True])
def test_blocks_are_traced_once_for_all_batches(flex: bool) -> None:
    """The last block is another graph than the others, which share one."""
    with compiled(flex) as (decoder, counter):
        for seed in range(50):
            forward(decoder, packed(seed), flex)
            assert counter.frame_count == 2


def test_a_shape_that_varies_is_seen() -> None:
    """Rows without a capacity have lists as long as what they hold."""
    with compiled(False) as (decoder, counter):
        for seed in range(3):
            forward(decoder, packed(seed, capacity=None), False)
        assert counter.frame_count > 2


def test_a_break_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ByRow.__call__

    def reading(self: ByRow, *inputs: Any) -> Tensor:
        read = plain(self, *inputs)
        return read if read.sum() > 0 else -read

    monkeypatch.setattr(ByRow, "__call__", reading)
    with compiled(False) as (decoder, _), pytest.raises(torch._dynamo.exc.Unsupported):
        forward(decoder, packed(0), False)
