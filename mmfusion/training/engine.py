"""The DeepSpeed engine, made from the config alone, under a launcher or plain `python train.py`."""

import atexit
import io
import math
import os
import time
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import torch
from torch import nn

from mmfusion import launcher
from mmfusion.config import Config
from mmfusion.errors import UserError, first_line, user_error


def precision(config: Config) -> torch.dtype:
    """The training precision: bf16 on CUDA and fp32 on the CPU unless the config says."""
    named = config.train.precision
    if named == "auto":
        named = "bf16" if torch.cuda.is_available() else "fp32"
    if named == "bf16" and config.train.zero_stage == 0:
        raise UserError(
            "train.zero_stage: bf16 needs stage 1 or more, which keeps the weights in fp32 too"
        )
    return torch.bfloat16 if named == "bf16" else torch.float32


def flex(config: Config) -> bool:
    """Whether FlexAttention is used: on CUDA, unless the config says.

    Raises:
        UserError: it cannot be.
    """
    asked, cuda = config.train.attention, torch.cuda.is_available()
    if asked == "flex" and not cuda:
        raise UserError(
            "train.attention: flex needs a CUDA device, of which none is found here (on the CPU "
            "it has no backward pass); set train.attention=auto or dense"
        )
    chosen = cuda and asked != "dense"
    if chosen and config.row_length % 128:
        raise UserError(
            f"row_length: FlexAttention needs a multiple of 128, not {config.row_length}; "
            "change it, or set train.attention=dense"
        )
    return chosen


def start_distributed() -> tuple[int, int]:
    """Join the launcher's ranks, or be the only one; returns (rank, world size).

    Raises:
        UserError: the launcher's variables make no sense, or the ranks cannot meet.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    place = launcher.join(gpus)
    os.environ["DS_ACCELERATOR"] = "cuda" if gpus else "cpu"  # and nothing else that may be set
    with user_error("environment: a variable of torch or DeepSpeed has a wrong value", ValueError):
        _meet(place, gpus)
    atexit.register(_leave_group)
    return place.rank, place.world


def _meet(place: launcher.Place, gpus: int) -> None:
    """Start what torch and DeepSpeed need for all ranks together."""
    import deepspeed
    import deepspeed.ops

    if os.environ["DS_ACCELERATOR"] == "cpu":  # on a GPU to look here runs compilers, for nothing
        # gloo does what our few collectives need; DeepSpeed's own CPU one would be compiled here,
        # for a minute, by a C++ compiler that may not be there.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        # What lies on the host is exchanged there, and waits for no GPU.
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        deepspeed.init_distributed(dist_backend=backend, verbose=False)
    except RuntimeError as error:  # torch's errors of a network are
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"MASTER_ADDR, MASTER_PORT: rank {place.rank} of {place.world} cannot meet the others "
            f"at {where} ({first_line(error)}); another run may have the port: choose a free one "
            "(deepspeed --master_port, torchrun --master-port)"
        ) from None


def _leave_group() -> None:
    """Let gloo's threads end before the interpreter does.

    One that drops its last Python object while the interpreter goes aborts the process: about one
    two-rank run in twenty ended so.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(0.1)  # without the lock that such a thread waits for


def deepspeed_config(config: Config, world: int) -> dict[str, Any]:
    """DeepSpeed's settings; the config is the one source of truth."""
    data, train, bf16 = config.data, config.train, precision(config) == torch.bfloat16
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": data.micro_rows,
        "gradient_accumulation_steps": data.rows // (world * data.micro_rows),
        # At stage 0 `_clip` does it.
        "gradient_clipping": train.grad_clip if train.zero_stage else 0.0,
        "zero_optimization": {
            "stage": train.zero_stage,
            # Stage 3 would keep small parameters whole; our shards need no exception.
            "stage3_param_persistence_threshold": 0,
        },
        # At stage 1 a gradient is added up, and dropped, as soon as it is there.
        "bf16": {"enabled": bf16, "immediate_grad_update": train.zero_stage == 1},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if bf16:  # micro-batches are summed in fp32; DeepSpeed would take the weights' type
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
        if train.zero_stage == 1:  # the sum is exchanged, once a step; it would be rounded
            settings["communication_data_type"] = "fp32"
    return settings


def make_engine(config: Config, model: nn.Module, world: int) -> Any:
    """The model under DeepSpeed with AdamW; parameters without gradient are left alone.

    Weight decay is of matrices alone: the weights of linear layers, not tables, norms and biases.
    """
    train = config.train
    import deepspeed

    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = {m.weight for m in model.modules() if isinstance(m, nn.Linear)}
    groups = [
        {"params": [p for p in parameters if p in matrices], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p not in matrices], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=train.lr, betas=(train.betas[0], train.betas[1]), eps=train.eps
    )
    if train.zero_stage == 0:
        optimizer.register_step_pre_hook(partial(_clip, most=train.grad_clip or math.inf))
    with redirect_stdout(io.StringIO()):  # with bf16 it prints its memory, over and over
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=parameters,
            optimizer=optimizer,
            config=deepspeed_config(config, world),
        )
    if train.compile and engine.device.type == "cuda":
        # At stage 3 parameters are fetched between a block's operations: its graph has breaks.
        fixed = False if config.data.capacity else None
        compile_blocks(model, dynamic=fixed, fullgraph=train.zero_stage < 3)
    return engine


def compile_blocks(model: nn.Module, **options: Any) -> None:
    """Compile a decoder's blocks: one graph for the last, and one that serves all others."""
    for block in model.get_submodule("blocks").children():
        block.compile(**options)


def _clip(optimizer: Any, *_: Any, most: float) -> None:
    """Clip the gradients, or drop them where their norm is not finite, before a step at stage 0.

    DeepSpeed does the same at the other stages; a step that is dropped changes nothing.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, most)
    optimizer.overflow = not torch.isfinite(norm).item()  # where the engine looks for it
    if optimizer.overflow:
        optimizer.zero_grad(set_to_none=True)


def set_lr(engine: Any, lr: float) -> None:
    """Set the learning rate of the optimizer that does the step."""
    for group in engine.basic_optimizer.param_groups:
        group["lr"] = lr
