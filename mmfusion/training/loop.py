"""The training loop: rows in, steps, records, checkpoints, an exported model out."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, distributed

from mmfusion import losses
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Config, save
from mmfusion.decoder import Decoder
from mmfusion.errors import UserError
from mmfusion.export import export
from mmfusion.mask import Mask, block_mask, dense_mask
from mmfusion.packing import Batch
from mmfusion.training import checkpoint, resume
from mmfusion.training.ema import Ema
from mmfusion.training.engine import make_engine, precision, set_lr, start_distributed
from mmfusion.training.metrics import Lost, Metrics
from mmfusion.training.partition import pieces
from mmfusion.training.schedule import learning_rate, progress
from mmfusion.training.sheet import sample_sheet

log = logging.getLogger("mmfusion")


class Rows(Protocol):
    """What training needs of its data: a step's micro-batches, and a state to go on from."""

    def __iter__(self) -> Iterator[list[Batch]]: ...
    def lost(self) -> list[dict[str, Any]]: ...
    def layout(self) -> dict[str, Any]: ...
    def state(self) -> dict[int, list[int]]: ...
    def resume(self, layout: dict[str, Any], state: dict[int, list[int]]) -> None: ...


class Trainer:
    """A run on this rank, going on from its newest whole checkpoint if there is one."""

    def __init__(self, config: Config, make_rows: Callable[[Config, int, int], Rows]) -> None:
        """Open data, model and engine.

        Raises:
            UserError: anything in config, data or checkpoints that the user can mend.
        """
        self.config = config
        self.output = Path(config.train.output)
        precision(config)
        self.rank, self.world = start_distributed()
        self.rows = make_rows(config, self.rank, self.world)
        self._same_data()
        self.tokenizer = Tokenizer(config.text.tokenizer) if config.text else None
        torch.manual_seed(config.seed)
        model = Decoder(config, len(self.tokenizer) if self.tokenizer else 0)
        model.checkpoint_activations = config.train.checkpoint_activations
        saved = self._newest()
        if saved:
            resume.go_on(saved, config, self.rows)
            model.load_state_dict(saved.weights(checkpoint.WEIGHT, model))
        with torch.device("meta"):
            self.shell = Decoder(config, model.vocabulary)  # names and shapes, for the export
        self.engine = make_engine(config, model, self.world)
        self.device = self.engine.device
        if config.train.compile and self.device.type == "cuda":
            self.engine.compile()
        self.pieces = pieces(self.engine, config.train.zero_stage, self.rank)
        self.ema = Ema(self.pieces, config.train.ema)
        self.state = checkpoint.State()
        if saved:
            saved.restore(self.pieces, self.ema, self.engine.basic_optimizer)
            self.state = saved.state
        attention = config.train.attention
        self.flex = attention == "flex" or (attention == "auto" and self.device.type == "cuda")
        if self.flex and config.row_length % 128:
            raise UserError(
                f"row_length: FlexAttention needs a multiple of 128, not {config.row_length}; "
                "change it, or set train.attention=dense"
            )

    def _same_data(self) -> None:
        """Make sure that all ranks see the same data: a disk may have failed for one of them."""
        layouts: list[Any] = [None] * self.world
        distributed.all_gather_object(layouts, self.rows.layout())
        other = next((rank for rank, layout in enumerate(layouts) if layout != layouts[0]), None)
        if other is not None:
            raise UserError(
                f"rank {other} finds other samples in the shards than rank 0; check that all hosts "
                "can read the same files, and start again"
            )

    def _newest(self) -> checkpoint.Checkpoint | None:
        """Rank 0 verifies and picks; all ranks read the same."""
        found: list[Any] = [None]
        error = None
        if self.rank == 0:
            try:
                found = [checkpoint.newest(self.output / "checkpoints")]
            except Exception as failure:  # told to the other ranks before it is raised
                error, found = failure, [failure]
        distributed.broadcast_object_list(found)
        if error or isinstance(found[0], Exception):
            raise error or found[0]
        return checkpoint.Checkpoint(found[0]) if found[0] else None

    def run(self, until: int | None = None) -> None:
        """Train to the end, or only to step `until`; writes metrics, checkpoints and the model."""
        if self.rank == 0:
            save(self.config, self.output / "config.yaml")
        metrics = Metrics(self.config, self.state.step, self.rank == 0)
        try:
            self._run(metrics, until)
        finally:
            metrics.close()  # or an error's line would be written beside the bar

    def _run(self, metrics: Metrics, until: int | None) -> None:
        train, state = self.config.train, self.state
        started = time.monotonic() - state.seconds
        lost = Lost(self.output, state.step, self.rank)
        window = torch.zeros(5, device=self.device, dtype=torch.float64)
        share = progress(train, state.step, state.seconds)
        metrics.advance(share)
        over = share >= 1 or (until is not None and state.step >= until)
        steps: Iterable[list[Batch]] = [] if over else self.rows
        since, since_step = time.monotonic(), state.step
        for batches in steps:
            set_lr(self.engine, learning_rate(train, state.step, share))
            sums, elapsed = self._step(batches, time.monotonic() - started)
            window[:4] += sums
            window[4] += lost.write(state.step + 1, self.rows.lost())
            state.step, state.seconds = state.step + 1, elapsed
            share = progress(train, state.step, elapsed)
            metrics.advance(share)
            last = share >= 1 or state.step == until
            if state.step % train.log_every == 0 or last:
                distributed.all_reduce(window)
                seconds = time.monotonic() - since
                metrics.log(state.step, self._figures(window, state.step - since_step, seconds))
                window.zero_()
                since, since_step = time.monotonic(), state.step
            if state.step % train.save_every == 0 or last:
                self._save(metrics, complete=share >= 1)
            if last:
                break

    def _step(self, batches: list[Batch], seconds: float) -> tuple[Tensor, float]:
        """One optimizer step over the micro-batches; sums of losses and counts, and rank 0's time.

        Counts are taken over all ranks and micro-batches before the first backward, and
        DeepSpeed's averaging is undone, so that world size and packing do not change the loss.
        """
        each = [torch.stack(losses.counts(batch)) for batch in batches]
        whole = torch.zeros(3, dtype=torch.float64)
        whole[:2] = torch.stack(each).sum(0)
        whole[2] = seconds if self.rank == 0 else 0.0
        whole = whole.to(self.device)
        distributed.all_reduce(whole)
        noisy, targets = whole[0].float(), whole[1].float()
        undo = self.world * len(batches)
        sums = torch.zeros(4, device=self.device, dtype=torch.float64)
        for batch in batches:
            batch = batch.to(self.device)
            latents, logits = self.engine(batch, self._mask(batch))
            part = losses.sums(latents, logits, batch)
            loss = losses.total(part, noisy, targets, self.config.train.text_weight)
            self.engine.backward(loss * undo)
            self.engine.step()
            sums += torch.stack([value.detach().double() for value in part])
        self.ema.update(self.state.step + 1)
        return sums, float(whole[2])

    def _mask(self, batch: Batch) -> Mask:
        make = block_mask if self.flex else dense_mask
        return make(batch.doc, batch.order, batch.stream)

    def _figures(self, window: Tensor, steps: int, seconds: float) -> dict[str, float]:
        image, text, noisy, targets, lost = window.tolist()
        image, text = image / max(noisy, 1), text / max(targets, 1)
        norm = self.engine.get_global_grad_norm()
        figures = {
            "loss": image + self.config.train.text_weight * text,
            "image_loss": image,
            "text_loss": text,
            "lr": self.engine.basic_optimizer.param_groups[0]["lr"],
            "seconds": self.state.seconds,
            "seconds_per_step": seconds / steps,
            "noisy_tokens_per_second": noisy / seconds,
            "samples_lost": lost,
        }
        # DeepSpeed does not tell the norm at stage 0.
        return figures if norm is None else {**figures, "grad_norm": float(norm)}

    def _save(self, metrics: Metrics, complete: bool) -> None:
        self.state.slots, self.state.layout = self.rows.state(), self.rows.layout()
        path = checkpoint.write(
            self.output / "checkpoints",
            self.config,
            self.state,
            self.pieces,
            self.ema,
            self.engine.basic_optimizer,
        )
        if self.rank == 0:
            weights = checkpoint.Checkpoint(path).weights(checkpoint.EMA, self.shell)
            export(self.config.model_part(), weights, self.output / "model")
            sheet = self.output / "samples" / f"step-{self.state.step:08d}.png"
            metrics.sheet(self.state.step, sample_sheet(self.config, self.output / "model", sheet))
            facts = {
                "complete": complete,
                "steps": self.state.step,
                "seconds": self.state.seconds,
                "ranks": self.world,
                "zero_stage": self.config.train.zero_stage,
                "device": str(self.device.type),
                "threads": torch.get_num_threads(),
            }
            part = self.output / ".training.json"
            part.write_text(json.dumps(facts), encoding="utf-8")
            os.replace(part, self.output / "training.json")
        distributed.barrier()
