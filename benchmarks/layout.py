"""What does the layout of a batch waste? Operations executed over needed; nothing is timed.

    python -m benchmarks.layout [--config digits.yaml] [--steps 20] [key=value ...]

Attention: pairs of queries and keys that are multiplied, over those that are visible, in all
layers; in the last one the queries are the tokens that predict something. Linear layers: FLOPs of
a training step, counted as it runs, over those of the tokens that there are. Rows of `--config`
come from its shards, as training packs them for the CPU. Those of mm_xl and mm_l are drawn
(`benchmarks.attention.xl_document`, packed next-fit): on a GPU, where FlexAttention multiplies
whole blocks, and as the CPU would take them, at true width on the meta device.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import options
from benchmarks.attention import packed_rows, xl_document
from mmfusion import jsonl
from mmfusion.attention import Attend, ByDocument
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import ModelConfig, load
from mmfusion.data_pipelines.loader import Loader
from mmfusion.decoder import FREQUENCIES, Decoder
from mmfusion.losses import sums, total
from mmfusion.mask import block_mask, dense_mask
from mmfusion.packing import Batch, collate

ROWS, XL_VOCABULARY = 8, 32_000  # rows of mm_xl that are drawn; its tokenizer is not trained here
BLOCK = 128
Record = dict[str, Any]


class Unread:
    """Attention on the meta device that multiplies nothing."""

    def __init__(self, batch: Batch) -> None:
        self.asks = torch.cat([batch.noisy_at, batch.predict_at]).to("meta")

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, last: bool) -> Tensor:
        return query + key.sum() + value.sum()  # so that all have gradients


def linear_flops(loss: Callable[[], Tensor]) -> int:
    """FLOPs of a step in linear layers: matrix products that are not of attention."""
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    counts = counter.get_flop_counts()["Global"]
    return sum(flops for op, flops in counts.items() if "mm" in str(op) and "bmm" not in str(op))


def needed_flops(config: ModelConfig, vocabulary: int, batch: Batch) -> int:
    """The same of no more than the tokens that there are: forward, and backward twice.

    All tokens pass all blocks but the last, where they are keys and values; those that predict
    pass it whole. What goes into the first layers has no gradient.
    """
    c, dim = config.decoder, config.image.latent_dim
    tokens, queries = int((batch.doc >= 0).sum()), batch.noisy + batch.targets
    others = len(batch.text_id) + len(batch.label_id)
    images = int(((batch.doc >= 0) & (batch.place >= others)).sum())
    keys = 2 * (c.kv_heads or c.heads) * c.width // c.heads
    mlp = (2 + (c.mlp == "swiglu")) * int(c.width * c.mlp_ratio)
    blocks = c.depth * tokens * keys + ((c.depth - 1) * tokens + queries) * (2 * c.width + mlp)
    times = len(batch.timestep.unique())
    timed = times + (tokens if c.time_term and c.position != "rotary" else 0)
    out = batch.noisy * dim + batch.targets * vocabulary
    return c.width * (
        6 * (blocks + out + times * c.width) + 4 * (images * dim + timed * FREQUENCIES)
    )


def visible_pairs(batch: Batch, depth: int) -> int:
    """Pairs that are visible, in all layers; the last one's queries are tokens that predict."""
    seen = dense_mask(batch.doc, batch.order, batch.stream) & (batch.doc >= 0)
    asks = torch.cat([batch.noisy_at[: batch.noisy], batch.predict_at[: batch.targets]])
    return (depth - 1) * int(seen.sum()) + int(seen[asks].sum())


def multiplied_pairs(attend: ByDocument, depth: int) -> int:
    """Pairs that attention by documents multiplies, in all layers."""
    whole, pairs = attend.plans[False][0], []
    for places, uses in attend.plans:
        shapes = zip(places.shapes, whole.shapes, uses, strict=True)
        each = (n * (u.asks[0] * u.clean + u.asks[1] * keys) for (n, _), (_, keys), u in shapes)
        pairs.append(sum(each))
    return (depth - 1) * pairs[False] + pairs[True]


def block_pairs(batch: Batch, depth: int) -> int:
    """Pairs of the blocks that FlexAttention multiplies, in all layers."""
    parts = (x.view(batch.rows, -1) for x in (batch.doc, batch.order, batch.stream))
    blocks = block_mask(*parts, BLOCK)
    full = 0 if blocks.full_kv_num_blocks is None else int(blocks.full_kv_num_blocks.sum())
    return depth * BLOCK**2 * (int(blocks.kv_num_blocks.sum()) + full)


def linear_waste(decoder: Decoder, config: ModelConfig, batch: Batch, attend: Attend) -> float:
    """Linear layers, executed over needed, of a training step on a batch of the CPU."""
    device = decoder.latent_in.weight.device
    there = batch.to(device)

    def loss() -> Tensor:
        part = sums(*decoder(there, attend), there)
        return total(part, part.noisy, part.targets, text_weight=1.0)

    return linear_flops(loss) / needed_flops(config, decoder.vocabulary, batch)


def from_shards(name: str, overrides: list[str], steps: int) -> list[Record]:
    """Waste of the rows of a config, as training packs them for the CPU."""
    config = load(name, [*overrides, "data.workers=0"])
    decoder = Decoder(config, len(Tokenizer(config.text.tokenizer)) if config.text else 0)
    depth, pairs, linear = config.decoder.depth, [0, 0], []
    for batch in (batch for step in islice(Loader(config), steps) for batch in step):
        attend = ByDocument(batch)
        pairs[0] += multiplied_pairs(attend, depth)
        pairs[1] += visible_pairs(batch, depth)
        linear.append(linear_waste(decoder, config, batch, attend))
    return [
        {"rows": name, "where": "CPU", "what": "attention", "waste": pairs[0] / pairs[1]},
        {"rows": name, "where": "CPU", "what": "linear layers", "waste": mean(linear)},
    ]


def drawn(name: str) -> list[Record]:
    """Waste of drawn rows: attention of a GPU and of the CPU, linear layers of the CPU."""
    config = load(name)
    depth, rows = config.decoder.depth, packed_rows(ROWS, config.row_length, xl_document)
    batches = [collate([row], padded=True) for row in rows]
    visible = sum(visible_pairs(batch, depth) for batch in batches)
    blocks = sum(block_pairs(batch, depth) for batch in batches)
    batch = collate(rows)
    pairs = multiplied_pairs(ByDocument(batch), depth)
    with torch.device("meta"):
        decoder = Decoder(config, XL_VOCABULARY)
    latent, target = (x.expand(-1, config.image.latent_dim) for x in (batch.latent, batch.target))
    batch = replace(batch, latent=latent, target=target)
    linear = linear_waste(decoder, config, batch, Unread(batch))
    real = float(mean((b.doc >= 0).double().mean().item() for b in batches))
    of: Record = {"rows": name}
    return [
        of | {"where": f"GPU, blocks of {BLOCK}", "what": "attention", "waste": blocks / visible},
        of | {"where": "GPU, padded rows", "what": "linear layers, tokens", "waste": 1 / real},
        of | {"where": "CPU", "what": "attention", "waste": pairs / visible},
        of | {"where": "CPU (meta)", "what": "linear layers", "waste": linear},
    ]


def main() -> None:
    """Count and print."""
    parser = options("layout", __doc__)
    parser.add_argument("--config", help="name or path of a config whose shards are there")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    records = from_shards(args.config, args.overrides, args.steps) if args.config else []
    records += [record for name in ("mm_l", "mm_xl") for record in drawn(name)]
    print(jsonl.dumps(records))
    for record in records:
        print("{rows:16} {where:22} {what:24} {waste:.3f}".format(**record))


if __name__ == "__main__":
    main()
