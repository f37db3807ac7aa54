"""FlexAttention over packed interleaved rows: is it right, and what does it cost?

    python -m benchmarks.attention [--json FILE] [--quick]

First `mmfusion.mask.attend` is compared with an explicit softmax in fp64 over 50 random rows, for
both forms of mask: outputs and gradients, of every row and every token, since PyTorch has known
bugs with wrong or NaN key and value gradients under masks like ours (issues 153799, 158212, 167116,
186775). Then attention is timed at XL (20 heads of 64, 16,384 tokens a batch) beside masked SDPA
and causal flash SDPA, the dense ceiling. Any wrong result makes it exit with status 1.
`--quick` compares a few short rows and times nothing; without a GPU it compares forwards only.

Shapes: B rows, L tokens, H heads, G key-value heads, d head dimension.
"""

import argparse
import json
import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo
import torch._functorch.config
import torch._inductor.config
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from mmfusion.mask import Mask, attend, block_mask, dense_mask
from mmfusion.packing import collate
from mmfusion.sequence import Document, Image, Label, Noise, Row, Segment, Text, count
from mmfusion.split import draw_split

Record = dict[str, Any]
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FP32, BF16 = torch.float32, torch.bfloat16
CASES = [(32, 4, FP32), (32, 4, BF16), (64, 4, BF16), (128, 4, BF16), (64, 2, BF16)]  # d, G, type
# Relative error of a row, of a token. Twice SDPA's error is right too, up to four of these.
TOLERANCE = {FP32: (5e-5, 5e-4), BF16: (1e-2, 5e-2)}
LABEL_TOKENS, XL_HEADS, XL_DIM, XL_IMAGE = 64, 20, 64, 256
XL_TOKENS, XL_LENGTHS = 16_384, (1024, 2048, 4096, 8192)
FLEX = {"flex 128": (128, False), "flex 64 tuned": (64, True), "flex 128 tuned": (128, True)}
PLAN = [
    (length, name)
    for length in XL_LENGTHS
    for name in ("flex 128", "flex 64 tuned", "SDPA masked", "SDPA causal")
] + [(2048, "flex 128 tuned")]  # one length tells whether it pays
REPLAYS, CALLS = 25, 5  # a timed CUDA graph holds so many calls
ERROR_COLUMNS = "d,G,type,block,of,flex row,sdpa row,flex token,sdpa token,worst row,repeats,right"
TIME_COLUMNS = (
    "L,B,attention,seen %,blocks %,mask ms,fwd ms,both ms,fwd TFLOP/s,both TFLOP/s,right,"
    "longest kernel"
)


def image(tokens: int, copies: int, rng: np.random.Generator) -> Image:
    """A context picture, or with noisy copies a target with a random split."""
    latents, noisy = np.zeros((tokens, 1), np.float32), np.zeros((copies, tokens, 1), np.float32)
    if not copies:
        return Image(latents, math.isqrt(tokens))
    split = draw_split(tokens, 0.9, "random", rng)
    return Image(latents, math.isqrt(tokens), split, Noise(noisy, noisy, noisy[..., 0], 2.0))


def random_document(rng: np.random.Generator) -> Document:
    """One to four texts, labels and pictures of 0 to 2 noisy copies, in any order."""

    def segment(kind: int) -> Segment:
        if kind < 2:
            return Text([0] * int(rng.integers(1, 61))) if kind else Label(0)
        return image(int(rng.choice([16, 64, 100])), kind - 2, rng)

    return [segment(int(kind)) for kind in rng.integers(5, size=rng.integers(1, 5))]


def xl_document(rng: np.random.Generator) -> Document:
    """Class to picture, caption to picture, picture to caption, or picture, text, picture."""
    text, context = Text([0] * int(rng.integers(20, 61))), image(XL_IMAGE, 0, rng)
    given: list[Document] = [[Label(0)], [text], [context], [context, text]]
    task = int(rng.choice(4, p=[0.3, 0.3, 0.2, 0.2]))
    return [*given[task], text if task == 2 else image(XL_IMAGE, 1, rng)]


def packed(
    rows: int, length: int, draw: Callable[[np.random.Generator], Document], fill: float = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Doc, order and stream (B, L) of rows packed next-fit; a share `fill` of them has no padding.

    With `fill`, the first row is padding only.
    """
    rng = np.random.default_rng(0)
    done = [Row(length, 1, LABEL_TOKENS)] if fill else []
    document = draw(rng)
    while len(done) < rows:
        row = Row(length, 1, LABEL_TOKENS)
        while row.used + count(document, LABEL_TOKENS).tokens <= length:
            row.document(document)
            document = draw(rng)
        if not row.used:  # longer than a row
            document = draw(rng)
            continue
        if row.used < length and rng.random() < fill:
            row.document([Text([0] * (length - row.used))])
        done.append(row)
    batch = collate(done).to(DEVICE)
    return batch.doc, batch.order, batch.stream


def tensors(rows: int, length: int, heads: int, groups: int, dim: int, kind: Any) -> list[Tensor]:
    """Random q, k, v and cotangent, the last two in the memory order that the decoder has."""
    draw = partial(torch.randn, dtype=kind, device=DEVICE)
    drawn = [draw(rows, heads, length, dim), draw(rows, groups, length, dim)]
    drawn += [draw(rows, length, n, dim).transpose(1, 2) for n in (groups, heads)]
    for x in drawn[:3]:
        x.requires_grad_(DEVICE == "cuda")  # FlexAttention has no backward on the CPU
    return drawn


def under(mask: Mask) -> Attention:
    """What is tested: the library's attention under a mask."""
    return lambda q, k, v: attend(q, k, v, mask)


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The ceiling: PyTorch's flash kernel under a dense causal mask."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return scaled_dot_product_attention(query, key, value, is_causal=True)


def results(attention: Attention, drawn: list[Tensor]) -> list[Tensor]:
    """The output and, where they are wanted, the gradients of q, k and v."""
    *qkv, cotangent = drawn
    out = attention(*qkv)
    wanted = out.requires_grad
    return [out.detach(), *(torch.autograd.grad(out, qkv, cotangent) if wanted else ())]


def reference(drawn: list[Tensor], mask: Tensor) -> list[Tensor]:
    """The same by an explicit softmax in fp64, ten rows at a time."""

    def softmax(seen: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        return scores.masked_fill(~seen[:, None], -math.inf).softmax(-1) @ v

    parts = []
    for at in (slice(start, start + 10) for start in range(0, len(mask), 10)):
        exact = [x.detach()[at].double().requires_grad_(x.requires_grad) for x in drawn]
        parts.append(results(partial(softmax, mask[at]), exact))
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def errors(got: Tensor, want: Tensor) -> Tensor:
    """Relative errors (2, B) of (B, H, L, d): of each row, and of its worst token; NaN is inf.

    What is small (padding has no query gradient) is measured against a tenth of the mean row, or
    the root mean square of all tokens.
    """
    want = want.double()
    norms, wrong = (x.norm(dim=(1, 3)) for x in (want, got.double() - want))  # (B, L)
    rows, typical = norms.norm(dim=1), norms.square().mean().sqrt()
    by_row = wrong.norm(dim=1) / rows.maximum(0.1 * rows.mean())
    by_token = (wrong / norms.maximum(typical)).amax(1)
    return torch.stack([by_row, by_token]).nan_to_num(nan=math.inf)


@contextmanager
def compiling(tuned: bool) -> Iterator[None]:
    """Compile anew, never silently fall back; `tuned` searches over kernel tiles.

    PyTorch 2.11 has one tile for an H100, bf16 and a head dimension of 64 or 128. It is 128 wide
    and raises on a smaller block; only the search knows others.
    """
    torch._dynamo.reset()
    with (
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True),
        torch._functorch.config.patch(force_non_lazy_backward_lowering=True),
        torch._inductor.config.patch(max_autotune=tuned, autotune_num_choices_displayed=0),
    ):
        yield


def kernels(run: Callable[[], object]) -> list[str]:
    """Names of the GPU kernels of a call, the longest-running first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    found = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    return [event.key for event in found if event.self_device_time_total > 0]


def compiled(flex: Attention, drawn: list[Tensor]) -> tuple[list[Tensor], bool]:
    """FlexAttention's results, and whether they repeat bit by bit.

    The second run is in memory that held NaN, so that an element left unwritten shows.

    Raises:
        RuntimeError: they do not come from FlexAttention's compiled kernels.
    """
    first = results(flex, drawn)
    if DEVICE == "cuda":
        names = kernels(lambda: results(flex, drawn))
        if not any("triton_tem" in name for name in names):
            raise RuntimeError(f"not compiled: no FlexAttention template among {names[:5]}")
        torch.cuda.empty_cache()
        torch.full((1 << 30,), math.nan, device=DEVICE)
    second = results(flex, drawn)
    return second, all(map(torch.equal, first, second))


def compare(rows: int, length: int, block: int, dim: int, groups: int, kind: Any) -> list[Record]:
    """Errors of both forms of attention against fp64, a record each for out, dq, dk and dv."""
    places = packed(rows, length, random_document, fill=0.3)
    drawn = tensors(rows, length, 4, groups, dim, kind)
    seen, blocks = dense_mask(*places), block_mask(*places, block)
    want, dense = reference(drawn, seen), results(under(seen), drawn)
    with compiling(tuned=block < 128 and dim > 32):
        flex, repeats = compiled(under(blocks), drawn)
    records = []
    tolerance = torch.tensor(TOLERANCE[kind], device=DEVICE, dtype=torch.float64)[:, None]
    for i, of in enumerate(("out", "dq", "dk", "dv")[: len(want)]):
        ours, theirs = errors(flex[i], want[i]), errors(dense[i], want[i])
        limit = (2 * theirs).maximum(tolerance).minimum(4 * tolerance)
        record = {"d": dim, "G": groups, "type": str(kind)[6:], "block": block, "of": of}
        for name, error in (("flex", ours), ("sdpa", theirs)):
            record |= dict(
                zip((f"{name} row", f"{name} token"), error.amax(1).tolist(), strict=True)
            )
        record |= {"worst row": int((ours / limit).amax(0).argmax()), "repeats": repeats}
        record["right"] = bool((ours <= limit).all() and (theirs <= 4 * tolerance).all())
        records.append(record)
    return records


def quartiles(run: Callable[[], object], calls: int = 1) -> list[float]:
    """Quartiles of the milliseconds of one of the calls that `run` makes, from GPU events."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in "ab"] for _ in range(REPLAYS + 3)]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.quantiles([a.elapsed_time(b) / calls for a, b in events[3:]], n=4)


def replayed(run: Callable[[], object]) -> list[float]:
    """The same of a CUDA graph: without the gaps that launching leaves between short kernels."""
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            run()
    return quartiles(graph.replay, CALLS)


def time_xl(length: int, name: str) -> list[Record]:
    """Forward, and forward and backward, of one kind of attention, as one record."""
    places = packed(XL_TOKENS // length, length, xl_document)
    seen = dense_mask(*places)
    rows, pairs = len(seen), int(seen.sum())
    drawn = tensors(rows, length, XL_HEADS, XL_HEADS, XL_DIM, BF16)
    record: Record = {"L": length, "B": rows, "attention": name, "right": True}
    attention, (block, tuned) = under(seen), FLEX.get(name, (0, False))
    if block:
        blocks, dense = block_mask(*places, block), results(attention, drawn)
        record["mask ms"] = quartiles(lambda: block_mask(*places, block))[1]
        record["blocks %"] = 100 - blocks.sparsity()
        attention = under(blocks)
    elif name == "SDPA causal":
        attention, pairs = causal, rows * length * (length + 1) // 2
    with compiling(tuned):
        if block:
            flex, _ = compiled(attention, drawn)
            off = [errors(a, b).amax(1) for a, b in zip(flex, dense, strict=True)]
            record["off SDPA"] = torch.stack(off).amax(0).tolist()
            pairwise = zip(record["off SDPA"], TOLERANCE[BF16], strict=True)
            record["right"] = all(a <= 2 * b for a, b in pairwise)  # both are in bf16
        forward = replayed(lambda: attention(*drawn[:3]))
        both = replayed(lambda: results(attention, drawn))
        record["longest kernel"] = kernels(lambda: results(attention, drawn))[0]
    work = 4 * XL_DIM * XL_HEADS * pairs / 1e9  # over milliseconds: TFLOP/s
    record |= {"seen %": 100 * pairs / (rows * length**2), "quartiles": [forward, both]}
    record |= {"fwd ms": forward[1], "fwd TFLOP/s": work / forward[1]}
    return [record | {"both ms": both[1], "both TFLOP/s": 3.5 * work / both[1]}]


def table(records: list[Record], columns: str) -> str:
    """The named columns of records that have some of them."""

    def text(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)[:44]

    names = columns.split(",")
    lines = [names] + [[text(record.get(name, "")) for name in names] for record in records]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def main() -> None:
    """Compare, time, write, print; exit with status 1 on a wrong result or an error."""
    parser = argparse.ArgumentParser(prog="benchmarks.attention", description=__doc__)
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.add_argument("--quick", action="store_true", help="a few short rows, nothing timed")
    args = parser.parse_args()
    if DEVICE == "cpu" and not args.quick:
        parser.error("no GPU here; --quick compares forwards on the CPU")
    torch.manual_seed(0)
    start, wrong, shape = time.monotonic(), [], (6, 512) if args.quick else (50, 1024)
    report: Record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python -m benchmarks.attention", *sys.argv[1:]]),
        "card": torch.cuda.get_device_name() if DEVICE == "cuda" else "none",
        "torch, triton": f"{torch.__version__}, {version('triton')}",
        "errors": [],
        "times": [],
    }
    steps = [("errors", compare, (*shape, block, *case)) for case in CASES for block in (128, 64)]
    steps += [("times", time_xl, at) for at in PLAN if not args.quick]
    for part, make, arguments in steps:
        what = f"{make.__name__}{arguments}"
        try:
            records = make(*arguments)
            wrong += [f"{what}: {record}" for record in records if not record["right"]]
            report[part] += records
        except Exception as error:  # the other steps are still worth knowing
            traceback.print_exc()
            wrong.append(f"{what} raised {type(error).__name__}")
        report |= {"wrong": wrong, "seconds": time.monotonic() - start}
        print(f"{report['seconds']:4.0f} s  {what} done, {len(wrong)} wrong", flush=True)
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    print("\n" + "\n".join(f"{name}: {v}" for name, v in report.items() if isinstance(v, str)))
    print("\nRelative errors against fp64, of the worst row and the worst token\n")
    print(table(report["errors"], ERROR_COLUMNS))
    if report["times"]:
        print("\nXL, 16,384 tokens a batch; useful TFLOP/s, over the pairs that are seen\n")
        print(table(report["times"], TIME_COLUMNS))
    if wrong:
        sys.exit("\n".join(["", "WRONG RESULTS OR ERRORS:", *wrong]))
    print("\nAll right." if DEVICE == "cuda" else "\nForwards are right; gradients need a GPU.")


if __name__ == "__main__":
    main()
