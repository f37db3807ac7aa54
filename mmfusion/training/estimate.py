"""What a run will take, before anything is loaded: parameters, tokens, memory, FLOPs.

Memory follows the ZeRO paper (Rajbhandari et al. 2020, section 3): weights, gradients and AdamW's
state, each divided by the ranks from the stage on that shards it; activations are an estimate.
"""

from pathlib import Path

import torch

from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Config
from mmfusion.decoder import Decoder
from mmfusion.errors import UserError
from mmfusion.training.checkpoint import all_checkpoints
from mmfusion.training.engine import precision
from mmfusion.training.start import begin_from, locate

UNKNOWN_VOCABULARY = 32_000  # stands in while the tokenizer has not been trained
GIB = 2**30


def plan(config: Config, world: int) -> str:
    """The figures of a run on `world` ranks, as text."""
    train, data, c = config.train, config.data, config.decoder
    data.check_ranks(world)
    note = ""
    try:
        vocabulary = len(Tokenizer(config.text.tokenizer)) if config.text else 0
    except UserError:
        vocabulary, note = UNKNOWN_VOCABULARY, ", tokenizer not there yet: 32,000 assumed"
    with torch.device("meta"):
        model = Decoder(config, vocabulary)
    begins = _beginning(config, model, compared=not note)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    tables = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding))
    tokens = data.rows * config.row_length
    # 2 forward and 4 backward a weight and token; attention at most the square of the row.
    dense = 6.0 * (parameters - tables) * tokens
    attention = 12.0 * c.depth * c.width * config.row_length * tokens
    share = float(train.checkpoint_activations)
    dense, attention = dense * (1 + share / 3), attention * (1 + share / 3)
    bf16 = precision(config) == torch.bfloat16
    state = memory(parameters, train.zero_stage, world, bf16)
    micro = data.micro_rows * config.row_length
    kept = 2 * share + 34 * (1 - share)  # bytes of bf16 a width, token and layer
    activations = micro * c.width * (c.depth * kept + 34) * (1 if bf16 else 2)
    lines = {
        "parameters": f"{parameters:,} ({tables:,} in tables{note})",
        "decoder": f"width {c.width}, depth {c.depth}, heads {c.heads}",
        "tokens a step": f"{tokens:,} ({data.rows} rows of {config.row_length}), padding included",
        "ranks": f"{world}, {data.rows // (world * data.micro_rows)} micro-batches of "
        f"{data.micro_rows} rows each",
        "ZeRO": f"stage {train.zero_stage}, {'bf16' if bf16 else 'fp32'}",
        "memory a rank": f"{(sum(state.values()) + activations) / GIB:.2f} GiB: "
        + ", ".join(f"{name} {size / GIB:.2f}" for name, size in state.items())
        + f", activations about {activations / GIB:.2f}; without logits and DeepSpeed's buffers",
        "FLOPs a step": f"{dense + attention:.3g} over all ranks, "
        f"attention at most {attention:.3g} of it",
        **begins,
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def _beginning(config: Config, model: Decoder, compared: bool) -> dict[str, str]:
    """What a new run's weights begin from, checked as its start will: on the meta device."""
    name = config.train.start_from
    if not name or all_checkpoints(Path(config.train.output) / "checkpoints"):
        return {}
    if not compared:  # the size of the tables is not known yet
        locate(name)
        return {"begins from": f"{name}; whether it fits is told once the tokenizer is there"}
    begin_from(name, config, model)
    return {"begins from": name}


def memory(parameters: int, stage: int, world: int, bf16: bool) -> dict[str, float]:
    """Bytes a rank holds between steps, by what they are for."""
    moments = (12 if bf16 else 8) * parameters  # bf16 keeps fp32 weights with the moments
    return {
        "weights": (2 if bf16 else 4) * parameters / (world if stage >= 3 else 1),
        "gradients": 4 * parameters / (world if stage >= 2 else 1),  # summed in fp32
        "optimizer": moments / (world if stage >= 1 else 1),
        "EMA": 4 * parameters / (world if stage >= 1 else 1),
    }
