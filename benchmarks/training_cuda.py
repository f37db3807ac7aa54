"""A training step at true size on a GPU: `python -m benchmarks.training --device cuda`.

Equal on both sides: weights, images, latents, noise, timesteps, and one order of tokens and one
split in AR steps an image, drawn so that the last step has 32 to 64 of 256 tokens: 8 documents then
fill a row of 4,352 tokens to 94% or more. Both clip the gradient to a norm of 1 and do AdamW in
fp32 (PyTorch's own, foreach), with activation checkpointing in all blocks or in none
(`--checkpoint`). Ours computes in bf16 on copies of fp32 weights and sums no gradient in bf16, as
DeepSpeed's bf16 does; theirs keeps weights in fp32 under bf16 autocast (its --amp) and makes its
mask in the step, as its loop does. No side has data loading, EMA or DeepSpeed in its step.

Useful are FLOPs of linear layers on the tokens that there are (`benchmarks.layout.needed_flops`),
and of attention on visible pairs; backward counts twice, and nothing that is done again.
"""

import gc
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean, median, quantiles
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import cuda
from benchmarks.layout import needed_flops, visible_pairs
from benchmarks.parity.cases import Case, Given, given
from benchmarks.parity.official import OfficialModel
from benchmarks.parity.ours import document
from mmfusion import jsonl
from mmfusion.attention import ByRow
from mmfusion.config import ModelConfig
from mmfusion.decoder import Decoder
from mmfusion.losses import sums, total
from mmfusion.packing import Batch, collate
from mmfusion.rng import generator
from mmfusion.sequence import Counts, Row
from mmfusion.training.engine import compile_blocks

ROW, IMAGES = 4352, 8  # tokens of a row, and images in it
STEPS, LAST = 5, (32, 64)  # AR steps, and tokens of the last one
BATCHES, WARM = 4, 2
ADAMW: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-15, "weight_decay": 0.0}
OFF = 1e-2  # of a bf16 loss


@dataclass
class Side:
    """One way to do a step: the loss of a batch, and what is done with its gradient."""

    name: str
    loss: Callable[[int], Tensor]
    update: Callable[[], None]
    drop: Callable[[], None]
    seconds: list[float] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)

    def step(self, number: int) -> None:
        """A whole step on one of the batches."""
        self.loss(number % BATCHES).backward()
        self.update()

    def begin(self) -> None:
        """The first loss, before any step of any side, and what is made on the way."""

        def first() -> None:
            loss = self.loss(0)
            loss.backward()
            self.found["first loss"] = loss.item()
            self.drop()

        self.found["first pass, s"] = cuda.seconds(first)

    def warm(self) -> None:
        """Some steps; the memory of one."""
        for number in range(WARM):
            self.step(number)
        self.found["GiB beside these"] = cuda.peak(partial(self.step, 0)) / cuda.GIB


class Weights:
    """AdamW over a module's parameters; `mixed` leaves bf16 copies of them in the module."""

    def __init__(self, module: nn.Module, mixed: bool) -> None:
        self.used = [p.requires_grad_() for p in module.parameters()]
        self.own = [p.detach().clone() for p in self.used] if mixed else self.used
        if mixed:
            module.to(torch.bfloat16)
        self.mixed, self.optimizer = mixed, torch.optim.AdamW(self.own, **ADAMW)
        self.bytes = sum(p.numel() for p in self.own) * (14 if mixed else 12)

    def update(self) -> None:
        """Clip, step, and forget the gradient."""
        if self.mixed:
            for own, used in zip(self.own, self.used, strict=True):
                own.grad, used.grad = used.grad.float(), None  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(self.own, 1.0)
        self.optimizer.step()
        self.drop()
        if self.mixed:
            with torch.no_grad():
                torch._foreach_copy_(self.used, self.own)

    def drop(self) -> None:
        """Forget the gradient."""
        for p in [*self.own, *self.used]:
            p.grad = None


def drawn(case: Case, number: int, images: int) -> Given:
    """Inputs of a step."""
    rng = generator("training", "split", number)
    last = int(rng.integers(LAST[0], LAST[1] + 1))
    cuts = np.sort(rng.permutation(case.tokens - last - 1)[: STEPS - 2]) + 1
    sizes = np.diff([0, *cuts, case.tokens - last, case.tokens]).tolist()
    return replace(given(case, 3 + number, images), sizes=sizes)


def packed(config: ModelConfig, inputs: Given) -> Batch:
    """Our rows, padded, with lists of a set length, as training packs them for a GPU."""
    rows = []
    for start in range(0, len(inputs.labels), IMAGES):
        rows.append(Row.of(config, ROW))
        for image in range(start, start + IMAGES):
            rows[-1].document(document(config, inputs, image))
    tokens, label = config.image.tokens, config.decoder.label_tokens
    clean = (tokens - LAST[0]) * IMAGES
    room = Counts(ROW, 1, label * IMAGES, clean, tokens * IMAGES, 1)
    batch = collate(rows, padded=True, capacity=room)
    return batch.pin() if cuda.CUDA else batch


def useful(config: ModelConfig, inputs: Given) -> float:
    """FLOPs that a step needs."""
    rows = [Row.of(config, ROW) for _ in inputs.labels]
    for image, row in enumerate(rows):
        row.document(document(config, inputs, image))
    pairs = visible_pairs(collate(rows[:1]), config.decoder.depth) * len(rows)
    return needed_flops(config, 0, collate(rows)) + 12 * config.decoder.width * pairs


@contextmanager
def compiled(decoder: Decoder, blocks: list[Any] | None) -> Iterator[None]:
    """The decoder with compiled blocks, or without."""
    modules = list(decoder.get_submodule("blocks").children())
    for module, made in zip(modules, blocks or [None] * len(modules), strict=True):
        module._compiled_call_impl = made
    yield


def ours(decoder: Decoder, batches: list[Batch], device: str) -> list[Side]:
    """Our ways: the same weights and numbers, in eager mode, compiled, and with a dense mask."""
    weights = Weights(decoder, mixed=True)
    decoder.train()
    compile_blocks(decoder, dynamic=False, fullgraph=True)  # as `training.engine` does
    made = [block._compiled_call_impl for block in decoder.get_submodule("blocks").children()]

    def loss(flex: bool, blocks: list[Any] | None, number: int) -> Tensor:
        with compiled(decoder, blocks):
            batch = batches[number].to(device)
            part = sums(*decoder(batch, ByRow(batch, flex and cuda.CUDA)), batch)
            return total(part, part.noisy, part.targets, text_weight=1.0)

    ways = {"compiled, flex": (True, made), "eager, masked SDPA": (False, None)}
    ways["eager, flex"] = (True, None)  # last: to compile it alone takes longest
    sides = [Side(n, partial(loss, *w), weights.update, weights.drop) for n, w in ways.items()]
    for side in sides:
        side.found["GiB of weights and moments"] = weights.bytes / cuda.GIB
    return sides


def official(model: OfficialModel, inputs: list[Given], checkpoint: bool, device: str) -> Side:
    """Theirs."""
    model.net.set_grad_checkpoint(checkpoint)
    weights = Weights(model.net.train(), mixed=False)

    def loss(number: int) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return model.trained(inputs[number])[1]

    side = Side("official, --amp", loss, weights.update, weights.drop)
    side.found["GiB of weights and moments"] = weights.bytes / cuda.GIB
    return side


def succeed(sides: list[Side], part: Callable[[Side], None], until: float) -> list[Side]:
    """Those sides that do a part of it; those that fail are told and left out."""
    left = []
    for side in sides:
        try:
            if perf_counter() > until:
                raise TimeoutError("no time is left")
            part(side)
            left.append(side)
        except Exception as error:
            traceback.print_exc()
            side.found["error"] = repr(error)[:60]
            side.drop()
            gc.collect()
            torch.cuda.empty_cache()
        print(side.name, side.found, flush=True)
    return left


def take_turns(sides: list[Side], splits: int, until: float) -> list[Side]:
    """Time the sides that can be."""
    left = succeed(succeed(sides, Side.begin, until), Side.warm, until)
    for number in range(splits):
        if perf_counter() > until and number > 2:
            break
        for side in left if number % 2 else left[::-1]:
            side.seconds.append(cuda.seconds(partial(side.step, number)))
    return left


def measure(args: Namespace, case: Case) -> bool:
    """Measure and print; whether all sides ran, and begin with the same loss."""
    began, device = perf_counter(), args.device
    folder = Path(args.against.partition("=")[2]) if args.against else None
    config, decoder, theirs = cuda.models(case, folder, device, ROW)
    decoder.checkpoint_activations = float(args.checkpoint)
    inputs = [drawn(case, number, args.rows) for number in range(BATCHES)]
    work = mean(useful(config, one) for one in inputs)
    sides = [official(theirs, inputs, args.checkpoint, device)] if theirs else []
    sides += ours(decoder, [packed(config, one) for one in inputs], device)
    speed = cuda.product_speed(device)
    left = take_turns(sides, args.splits, began + args.budget)
    for side in left:
        low, middle, high = quantiles(side.seconds, n=4)
        side.found |= {
            "ms a step, median": middle * 1e3,
            "quartiles": f"{low * 1e3:.1f} to {high * 1e3:.1f}",
            f"{left[0].name}: over this": median(left[0].seconds) / middle,
            "images a second": args.rows / middle,
            "useful TFLOP/s": work / middle / 1e12,
            "share of one large product": work / middle / speed,
        }
    lines = [{"side": side.name, **side.found} for side in sides]
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda.CUDA else "none",
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in decoder.parameters()),
        "images a step": args.rows,
        "checkpointed": bool(args.checkpoint),
        "useful TFLOP a step": work / 1e12,
        "TFLOP/s of one large product": speed / 1e12,
        "sides": lines,
    }
    if args.profile and left:
        seen = cuda.busy(partial(left[-1].step, 0))
        report["profiled"] = seen._asdict() | {"table": None, "side": left[-1].name}
        args.profile.write_text(f"{report['profiled']}\n{seen.table}\n")
        print(seen.table)
    print(*(f"{k}: {v}" for k, v in report.items() if k != "sides"), sep="\n")
    cuda.show(lines)
    print(jsonl.dumps(report))
    losses = [side.found.get("first loss", 0.0) for side in sides]
    failed = any("error" in side.found for side in sides)
    return not failed and max(losses) - min(losses) <= OFF * max(losses)
