"""The DeepSpeed engine, made from the config alone, under a launcher or plain `python train.py`."""

import os
import socket
from typing import Any

import torch
from torch import nn

from mmfusion.config import Config
from mmfusion.errors import UserError


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


def start_distributed() -> tuple[int, int]:
    """Join the launcher's ranks, or be the only one; returns (rank, world size)."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed
    import deepspeed.ops

    # gloo does what our few collectives need; DeepSpeed's own CPU one would be compiled here,
    # for a minute, by a C++ compiler that may not be there.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if "RANK" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ.update(
            RANK="0",
            LOCAL_RANK="0",
            WORLD_SIZE="1",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    deepspeed.init_distributed(
        dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False
    )
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def deepspeed_config(config: Config, world: int) -> dict[str, Any]:
    """DeepSpeed's settings; the config is the one source of truth."""
    data, train = config.data, config.train
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": data.micro_rows,
        "gradient_accumulation_steps": data.rows // (world * data.micro_rows),
        "gradient_clipping": train.grad_clip,
        "zero_optimization": {
            "stage": train.zero_stage,
            # Stage 3 would keep small parameters whole; our shards need no exception.
            "stage3_param_persistence_threshold": 0,
        },
        "bf16": {"enabled": precision(config) == torch.bfloat16},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if settings["bf16"]["enabled"] and train.zero_stage > 1:
        # Micro-batches are summed in fp32. At stage 1 that would take another optimizer of
        # DeepSpeed's, whose shards are not cut as ours.
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def make_engine(config: Config, model: nn.Module, world: int) -> Any:
    """The model under DeepSpeed with AdamW; parameters without gradient are left alone.

    Weight decay is of matrices alone: the weights of linear layers, not tables, norms and biases.

    Raises:
        UserError: the attention asked for needs a GPU, and there is none.
    """
    train = config.train
    if train.attention == "flex" and not torch.cuda.is_available():
        raise UserError(
            "train.attention: flex needs a CUDA device, of which none is found here (on the CPU "
            "it has no backward pass); set train.attention=auto or dense"
        )
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
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=parameters,
        optimizer=optimizer,
        config=deepspeed_config(config, world),
    )
    return engine


def set_lr(engine: Any, lr: float) -> None:
    """Set the learning rate of the optimizer that does the step."""
    for group in engine.basic_optimizer.param_groups:
        group["lr"] = lr
