"""FlexAttention over packed interleaved rows: is it right, and what does it cost?

    python -m benchmarks.attention [--json FILE] [--quick] [--only compare|time] [--budget 600]

First the decoder's attention is compared with an explicit softmax in fp64 over 50 random rows, for
both forms of mask: outputs and gradients, of every row and token, since PyTorch has known bugs with
key and value gradients under masks like ours (its issues 153799, 158212, 167116, 186775). Then it
is timed at XL (20 heads of 64, 16,384 tokens a batch) beside masked SDPA and, as a ceiling, causal
flash SDPA. Any wrong result makes it exit with status 1. `--quick` compares a few rows and times
nothing; without a GPU it compares forwards only.
Shapes: B rows, L tokens, H heads, G key-value heads, d head dimension.
"""

import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._functorch.config
import torch._inductor.config
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import options
from mmfusion import jsonl
from mmfusion.attention import attention
from mmfusion.mask import block_mask, dense_mask, flex_attention
from mmfusion.packing import collate
from mmfusion.sequence import Document, Image, Label, Noise, Row, Segment, Text, count
from mmfusion.split import draw_split

Record = dict[str, Any]
Places = tuple[Tensor, Tensor, Tensor]  # doc, order, stream, each (B, L)
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FP32, BF16 = torch.float32, torch.bfloat16
CASES = [(32, 4, FP32), (32, 4, BF16), (64, 4, BF16), (128, 4, BF16), (64, 2, BF16)]  # d, G, type
# Relative error of a row, of a token. Twice SDPA's error is right too, up to four of these.
TOLERANCE = {FP32: (5e-5, 5e-4), BF16: (5e-3, 3e-2)}
LABEL_TOKENS, XL_IMAGE, XL_HEADS, XL_DIM, XL_TOKENS = 64, 256, 20, 64, 16_384
VARIANTS = [("flex 128", 128), ("flex 64 tuned", 64, True), ("SDPA masked",), ("SDPA causal",)]
LENGTHS = 4096, 1024, 8192, 2048
PLAN: list[tuple] = [(n, *v) for n in LENGTHS for v in VARIANTS if not v[2:]]
PLAN += [(n, *v) for n in LENGTHS for v in VARIANTS if v[2:]]
PLAN += [(2048, "flex 128 tuned", 128, True)]  # one length tells whether the search pays
REPLAYS, CALLS = 25, 5  # a timed CUDA graph holds so many calls


def image(tokens: int, copies: int, rng: np.random.Generator) -> Image:
    """A context picture, or with noisy copies a target with a random split."""
    zeros = np.zeros((max(copies, 1), tokens, 1), np.float32)
    noise = Noise(zeros, zeros, zeros[..., 0], zeros[..., 0] + 1, 2.0)
    target = (draw_split(tokens, 0.9, "random", rng), noise) if copies else ()
    return Image(zeros[0], math.isqrt(tokens), *target)


def random_document(rng: np.random.Generator) -> Document:
    """One to three texts, labels and pictures of 0 to 2 noisy copies, in any order."""
    kinds = rng.integers(5, size=rng.integers(1, 4)).tolist()
    told: list[Segment] = [Label(0), Text([0] * int(rng.integers(1, 61)))]
    side = int(rng.choice([4, 8, 10]))
    return [told[kind] if kind < 2 else image(side * side, kind - 2, rng) for kind in kinds]


def xl_document(rng: np.random.Generator) -> Document:
    """Class to picture, caption to picture, picture to caption, or picture, text, picture."""
    text, context = Text([0] * int(rng.integers(20, 61))), image(XL_IMAGE, 0, rng)
    given: list[Document] = [[Label(0)], [text], [context], [context, text]]
    task = int(rng.choice(4, p=[0.3, 0.3, 0.2, 0.2]))
    return [*given[task], text if task == 2 else image(XL_IMAGE, 1, rng)]


def packed_rows(
    rows: int, length: int, draw: Callable[..., Document], fill: float = 0
) -> list[Row]:
    """Rows packed next-fit; with `fill`, one has padding alone and such a share has none."""
    rng = np.random.default_rng(0)
    done, document = [Row(length, 1, LABEL_TOKENS, null_label=0)] * (fill > 0), draw(rng)
    while len(done) < rows:
        row = Row(length, 1, LABEL_TOKENS, null_label=0)
        while row.used + count(document, LABEL_TOKENS).tokens <= length:
            row.document(document)
            document = draw(rng)
        if row.used < length and rng.random() < fill:
            row.document([Text([0] * (length - row.used))])
        done.append(row)
    return done


def packed(rows: int, length: int, draw: Callable[..., Document], fill: float = 0) -> Places:
    """The same as tensors."""
    batch = collate(packed_rows(rows, length, draw, fill), padded=True).to(DEVICE)
    doc, order, stream = (x.view(rows, -1) for x in (batch.doc, batch.order, batch.stream))
    return doc, order, stream


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
    """What the decoder calls, over (B, H, L, d), under a dense mask (B, L, L) or a block mask."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if isinstance(mask, Tensor):
        return attention(q, k, v, mask[:, None]).transpose(1, 2)
    return flex_attention(q, k, v, mask).transpose(1, 2)


def tensors(rows: int, length: int, heads: int, groups: int, dim: int, kind: Any) -> list[Tensor]:
    """Random q, k, v and cotangent, the last two in the memory order that the decoder has."""
    draw = partial(torch.randn, dtype=kind, device=DEVICE)
    drawn = [draw(rows, heads, length, dim), draw(rows, groups, length, dim)]
    drawn += [draw(rows, length, n, dim).transpose(1, 2) for n in (groups, heads)]
    for x in drawn[:3]:
        x.requires_grad_(DEVICE == "cuda")  # FlexAttention has no backward on the CPU
    return drawn


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The ceiling: PyTorch's flash kernel under a dense causal mask."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return scaled_dot_product_attention(query, key, value, is_causal=True)


def results(attention: Attention, drawn: list[Tensor]) -> list[Tensor]:
    """The output and, where they are wanted, the gradients of q, k and v."""
    *qkv, cotangent = drawn
    out = attention(*qkv)
    gradients = torch.autograd.grad(out, qkv, cotangent) if out.requires_grad else ()
    return [out.detach(), *gradients]


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
    """Relative errors (2, B) of (B, H, L, d): of each row, and of its worst token; NaN is 1e9."""
    norms, wrong = (x.norm(dim=(1, 3)) for x in (want.double(), got.double() - want))  # (B, L)
    rows, typical = norms.norm(dim=1), norms.square().mean().sqrt()
    by_row = wrong.norm(dim=1) / rows.maximum(0.1 * rows.mean())  # padding's dq and dk are nought
    by_token = (wrong / norms.maximum(typical)).amax(1)
    return torch.stack([by_row, by_token]).nan_to_num(nan=1e9)


@contextmanager
def compiling(tuned: bool) -> Iterator[None]:
    """Compile anew; `tuned` searches over kernel tiles, which blocks of 64 need.

    PyTorch 2.11's one tile for an H100, bf16 and d of 64 or 128 is 128 wide: smaller blocks raise.
    """
    torch._dynamo.reset()
    with torch._inductor.config.patch(max_autotune=tuned, autotune_num_choices_displayed=0):
        yield


def kernels(run: Callable[[], object]) -> list[str]:
    """Names of the GPU kernels of a call, the longest-running first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    found = sorted(profile.key_averages(), key=lambda e: -e.self_device_time_total)
    return [e.key for e in found if e.device_type == torch.autograd.DeviceType.CUDA]


def compiled(flex: Attention, drawn: list[Tensor]) -> tuple[list[Tensor], bool]:
    """FlexAttention's results, and whether they repeat; raises where its kernels did not run."""
    first = results(flex, drawn)
    if DEVICE == "cuda":
        names = kernels(lambda: results(flex, drawn))
        if not any("triton_tem" in name for name in names):
            raise RuntimeError(f"not compiled: no FlexAttention template among {names[:5]}")
        torch.cuda.empty_cache()
        torch.full((1 << 30,), math.nan, device=DEVICE)  # shows elements left unwritten
    second = results(flex, drawn)
    return second, all(map(torch.equal, first, second))


def compare(rows: int, block: int, dim: int, groups: int, kind: Any) -> Iterator[Record]:
    """Errors of both forms of attention against fp64, a record each for out, dq, dk and dv."""
    places = packed(rows, 1024, random_document, fill=0.3)
    drawn = tensors(rows, 1024, 4, groups, dim, kind)
    seen, blocks = dense_mask(*places), block_mask(*places, block)
    want, dense = reference(drawn, seen), results(partial(attend, mask=seen), drawn)
    with compiling(tuned=block < 128 and dim > 32):
        flex, repeats = compiled(partial(attend, mask=blocks), drawn)
    tolerance = torch.tensor(TOLERANCE[kind], device=DEVICE, dtype=torch.float64)[:, None]
    for of, got, other, ref in zip(("out", "dq", "dk", "dv"), flex, dense, want, strict=False):
        ours, theirs = errors(got, ref), errors(other, ref)
        limit = (2 * theirs).maximum(tolerance).minimum(4 * tolerance)
        record: Record = {"d": dim, "G": groups, "type": str(kind)[6:], "block": block, "of": of}
        record["flex row"], record["flex token"] = ours.amax(1).tolist()
        record["sdpa row"], record["sdpa token"] = theirs.amax(1).tolist()
        record |= {"worst row": int((ours / limit).amax(0).argmax()), "repeats": repeats}
        record["right"] = bool((ours <= limit).all() and (theirs <= 4 * tolerance).all())
        yield record


def quartiles(run: Callable[[], object], calls: int) -> list[float]:
    """Quartiles of a call's GPU milliseconds; of several calls as one CUDA graph, without gaps."""
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    if calls > 1:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                run()
    event = partial(torch.cuda.Event, enable_timing=True)
    events = [(event(), event()) for _ in range(REPLAYS + 3)]
    for start, end in events:
        start.record()
        graph.replay() if calls > 1 else run()
        end.record()
    torch.cuda.synchronize()
    times = [start.elapsed_time(end) / calls for start, end in events[3:]]
    return np.quantile(times, [0.25, 0.5, 0.75]).tolist()


def time_xl(length: int, name: str, block: int = 0, tuned: bool = False) -> Iterator[Record]:
    """Forward, and forward and backward, of one kind of attention, as one record."""
    places = packed(XL_TOKENS // length, length, xl_document)
    seen = dense_mask(*places)
    rows, pairs = len(seen), int(seen.sum())
    read: Attention = partial(attend, mask=seen)
    drawn = tensors(rows, length, XL_HEADS, XL_HEADS, XL_DIM, BF16)
    record: Record = {"L": length, "B": rows, "attention": name, "right": True}
    if block:
        blocks, dense = block_mask(*places, block), results(read, drawn)
        record["mask ms"] = quartiles(lambda: block_mask(*places, block), 1)[1]
        record["blocks %"] = 100 - blocks.sparsity()
        read = partial(attend, mask=blocks)
    elif name == "SDPA causal":
        read, pairs = causal, rows * length * (length + 1) // 2
    with compiling(tuned):
        if block:
            pairwise = zip(compiled(read, drawn)[0], dense, strict=True)
            off = torch.stack([errors(*pair).amax(1) for pair in pairwise])
            record["off SDPA"] = off.amax(0).tolist()  # both are in bf16: doubled tolerance
            record["right"] = bool((off.cpu().numpy() <= 2 * np.array(TOLERANCE[BF16])).all())
        forward = quartiles(lambda: read(*drawn[:3]), CALLS)
        both = quartiles(lambda: results(read, drawn), CALLS)
        longest = kernels(lambda: results(read, drawn))[0]
    work = 4 * XL_DIM * XL_HEADS * pairs / 1e9  # over milliseconds: TFLOP/s
    record |= {"seen %": 100 * pairs / (rows * length**2), "quartiles": [forward, both]}
    record |= {"fwd ms": forward[1], "both ms": both[1], "fwd TFLOP/s": work / forward[1]}
    yield record | {"both TFLOP/s": 3.5 * work / both[1], "longest kernel": longest}


def table(title: str, records: list[Record]) -> str:
    """Whatever the records hold but lists."""
    names = list(dict.fromkeys(k for r in records for k, v in r.items() if type(v) is not list))
    lines = [names] + [[r.get(name, "") for name in names] for r in records]
    cells = [[f"{v:.3g}" if isinstance(v, float) else str(v)[:44] for v in row] for row in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join([f"\n{title}\n", *("  ".join(map(str.ljust, r, widths)) for r in cells)])


def main() -> None:
    """Compare, time, write, print; exit with status 1 on a wrong result or an error."""
    parser = options("attention", __doc__)
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.add_argument("--quick", action="store_true", help="a few rows, nothing timed")
    parser.add_argument("--only", choices=["compare", "time"], nargs=1)
    parser.add_argument("--budget", type=float, default=600, help="seconds; none begins after")
    args = parser.parse_args()
    if DEVICE == "cpu" and not args.quick:
        parser.error("no GPU here; --quick compares forwards on the CPU")
    torch.manual_seed(0)
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # not silently eager
    torch._functorch.config.force_non_lazy_backward_lowering = True  # while `compiling`
    start, rows = time.monotonic(), 3 if args.quick else 50
    done: dict[Any, list[Record]] = {compare: [], time_xl: []}
    report: Record = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(["python -m benchmarks.attention", *sys.argv[1:]]),
        "card": torch.cuda.get_device_name() if DEVICE == "cuda" else "none",
        "torch, triton": f"{torch.__version__}, {version('triton')}",
    } | {"errors": done[compare], "times": done[time_xl]}
    parts: dict[str, list[tuple]] = {
        "compare": [(compare, rows, block, *case) for block in (128, 64) for case in CASES],
        "time": [(time_xl, *at) for at in PLAN if not args.quick],
    }
    for make, *given in [step for name in args.only or parts for step in parts[name]]:
        step = f"{make.__name__}{tuple(given)}"
        if time.monotonic() - start > args.budget:
            done[make].append({"step": step, "error": "left out: no time", "right": True})
            continue
        try:
            done[make] += list(make(*given))
        except Exception as error:  # the other steps are still worth knowing
            traceback.print_exc()
            done[make].append({"step": step, "error": repr(error)[:300], "right": False})
        print(f"{time.monotonic() - start:4.0f} s: {step}", flush=True)
        if args.json:
            args.json.write_text(jsonl.dumps(report, indent=1) + "\n")
    print(*(f"{key}: {value}" for key, value in report.items() if type(value) is str), sep="\n")
    print(table("Relative errors against fp64, of the worst row and token", done[compare]))
    print(table("XL, 16,384 tokens a batch; useful TFLOP/s over what is seen", done[time_xl]))
    wrong = [str(record) for part in done.values() for record in part if not record["right"]]
    if wrong:
        sys.exit("\n".join(["", f"WRONG: {len(wrong)} of the results above", *wrong]))
    print("\nAll right." if DEVICE == "cuda" else "\nForwards are right; gradients need a GPU.")


if __name__ == "__main__":
    main()
