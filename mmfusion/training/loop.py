"""The training loop: rows in, steps, records, checkpoints, an exported model out."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import Signals
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, distributed

from mmfusion import files, jsonl, launcher, locks, losses
from mmfusion.attention import ByDocument, ByRow
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import Config, is_run, save
from mmfusion.decoder import Decoder
from mmfusion.errors import Elsewhere, UserError, first_line, user_error
from mmfusion.export import check_folder, export
from mmfusion.manifest import MANIFEST
from mmfusion.packing import Batch, Parts
from mmfusion.training import checkpoint, resume
from mmfusion.training.ema import Ema
from mmfusion.training.engine import flex, make_engine, precision, set_lr, start_distributed
from mmfusion.training.health import PATIENCE, Health
from mmfusion.training.image_grid import sample_sheet
from mmfusion.training.metrics import Metrics, SkippedLog, Window
from mmfusion.training.schedule import learning_rate, progress
from mmfusion.training.start import begin_from
from mmfusion.training.together import Stop, tell, together
from mmfusion.training.zero_shards import pieces

log = logging.getLogger("mmfusion")
CONFIG = "config.yaml"


class Rows(Protocol):
    """What training needs of its data: a step's micro-batches, and a state to go on from."""

    def __iter__(self) -> Iterator[list[Batch] | list[Parts]]: ...
    def lost(self) -> list[dict[str, Any]]: ...
    def layout(self) -> dict[str, Any]: ...
    def state(self) -> dict[int, list[int]]: ...
    def resume(self, layout: dict[str, Any], state: dict[int, list[int]]) -> None: ...


class Work(NamedTuple):
    """A step's micro-batches on this rank, counts over all ranks' batches, and rank 0's time."""

    batches: list[Batch] | list[Parts]
    noisy: float
    targets: float
    seconds: float


def _check_output(folder: Path) -> None:
    """Make sure that a run may write there: to a run's folder, or where nothing has its names.

    Raises:
        UserError: a file is not a run's, or TensorBoard cannot write there.
    """
    told = "TensorBoard writes to no name that is not UTF-8; give another name"
    with user_error(f"train.output={folder}: {told}", UnicodeEncodeError):
        str(folder).encode()
    check_folder(folder / "model")
    for name in (CONFIG, "metrics.jsonl", "training.json"):
        if (folder / name).exists() and not is_run(folder / CONFIG):
            raise UserError(
                f"{folder / name}: is there and of no run; give another folder as train.output"
            )


class Trainer:
    """A run on this rank, going on from its newest whole checkpoint if there is one."""

    def __init__(self, config: Config, make_rows: Callable[[Config, int, int], Rows]) -> None:
        """Open data, model and engine.

        Raises:
            UserError: anything in config, data or checkpoints that the user can mend, or another
                run is at work in the output folder.
        """
        self.config, self.output = config, Path(config.train.output)
        precision(config)
        self.flex = flex(config)
        if launcher.place().rank == 0:  # before ranks meet: two runs may have chosen one port
            _check_output(self.output)
            locks.keep(self.output, "trains")
        self.rank, self.world = start_distributed()
        self.rows = make_rows(config, self.rank, self.world)
        self._same_data()
        saved = self._newest()
        if saved:
            with together():
                resume.go_on(saved, config, self.rows.resume)
        torch.manual_seed(config.seed)
        model = Decoder(config, len(Tokenizer(config.text.tokenizer)) if config.text else 0)
        model.checkpoint_activations = float(config.train.checkpoint_activations)
        if saved:
            model.load_state_dict(saved.weights(checkpoint.WEIGHT, model))
        elif config.train.start_from:
            with together():
                begin_from(config.train.start_from, config, model)
        with torch.device("meta"):
            self.shell = Decoder(config, model.vocabulary)  # names and shapes, for the export
        self.engine = make_engine(config, model, self.world)
        self.device = self.engine.device
        self.pieces = pieces(self.engine, config.train.zero_stage, self.rank)
        self.ema = Ema(self.pieces, config.train.ema)
        if saved:
            saved.restore(self.pieces, self.ema, self.engine.basic_optimizer)
        self.state = saved.state if saved else checkpoint.State()
        self.saved, self.newest = self.state.step, saved.path if saved else None
        self.health = Health(self.engine, self.pieces, self.ema)

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
        with together():
            if self.rank == 0:
                found = [checkpoint.newest(self.output / "checkpoints")]
        distributed.broadcast_object_list(found)
        return checkpoint.Checkpoint(found[0]) if found[0] else None

    def run(self, until: int | None = None) -> None:
        """Train to the end, or only to step `until`; writes metrics, checkpoints and the model.

        Raises:
            UserError: training cannot go on; the message says how it can.
            SystemExit: SIGINT (130), SIGTERM (143) or SIGHUP (129) came; a checkpoint of the last
                step is there.
        """
        with Stop(said=self.rank == 0) as self.stop:
            with together():
                metrics = Metrics(self.config, self.state.step, self.rank == 0)
            try:
                stopped = self._run(metrics, until)
            finally:
                metrics.close()  # or an error's line would be written beside the bar
        if stopped:
            if self.rank == 0:
                name = Signals(stopped).name
                tell(f"{name}: stopped; {self._next_start()}")
            sys.exit(128 + stopped)

    def _run(self, metrics: Metrics, until: int | None) -> int:
        """Step by step; the signal that ended it, or 0."""
        train, state = self.config.train, self.state
        started = time.monotonic() - state.seconds
        lost = SkippedLog(self.output, state.step, self.rank)
        share = progress(train, state.step, state.seconds)
        metrics.advance(share)
        with together():
            if self.rank == 0 and self.newest and not self._published(share >= 1):
                self._publish(metrics, complete=share >= 1)
        if share >= 1 or (until is not None and state.step >= until):
            return 0
        if self.rank == 0:
            save(self.config, self.output / CONFIG)
        self._describe(complete=False)
        rows, window, due = iter(self.rows), Window(self.device), False
        while True:
            work = self._meet(rows, time.monotonic() - started)
            if work is None:
                self._save(metrics, stopping=True)
                return self.stop.agreed()
            lr = learning_rate(train, state.step, share)
            sums = self._step(work, lr)
            state.step, state.seconds = state.step + 1, work.seconds
            state.slots = self.rows.state()  # before more is read than was trained on
            window.add(sums, work.noisy, work.targets, lost.write(state.step, self.rows.lost()))
            share = progress(train, state.step, state.seconds)
            metrics.advance(share)
            last = share >= 1 or state.step == until
            if state.step % train.log_every == 0 or last:
                norm = self.engine.get_global_grad_norm()
                figures = window.figures(train.text_weight, lr, state.seconds, norm)
                metrics.log(state.step, figures)
                window = Window(self.device)
            if self.health.hopeless:
                raise self._hopeless(f"loss or gradient not finite, {PATIENCE} steps in a row")
            if self.health.wrong and self.rank == 0:
                log.warning("step %d: loss or gradient not finite", state.step)
            if due or state.step % train.save_every == 0 or last:
                due = not self._save(metrics, complete=share >= 1, last=last)
            if last:
                return 0

    def _meet(self, rows: Iterator[list[Batch] | list[Parts]], seconds: float) -> Work | None:
        """All ranks, before a step: what there is to do, or None if it is not to be done.

        What they exchange, on the host, (4,): counts of noisy tokens and of text targets, over all
        ranks and micro-batches; rank 0's time; ranks that cannot go on.
        """
        failure, batches = None, None
        if not self.stop.signal:
            try:
                batches = next(rows)
            except Exception as error:
                if not self.stop.signal:  # or the signal has ended the workers
                    failure = error
        whole = torch.zeros(4, dtype=torch.float64)
        whole[0] = sum(batch.noisy for batch in batches or [])
        whole[1] = sum(batch.targets for batch in batches or [])
        whole[2] = seconds if self.rank == 0 else 0.0
        whole[3] = batches is None or self.stop.signal > 0
        distributed.all_reduce(whole)
        noisy, targets, seconds, halted = whole.tolist()
        if halted:
            with together():
                if failure:
                    raise failure
            return None
        return Work(batches or [], noisy, targets, seconds)

    def _hopeless(self, what: str) -> UserError:
        """Raised on all ranks; rank 0 says it."""
        train = self.config.train
        told = (
            f"step {self.state.step}: {what}; set train.lr lower (now {train.lr:g}) or set "
            f"train.grad_clip (now {train.grad_clip:g}; 0 is none), and start again: "
            f"{self._next_start()} (if that is bad already, remove its folder to use an older one)"
        )
        return UserError(told) if self.rank == 0 else Elsewhere(told)

    def _next_start(self) -> str:
        saved = checkpoint.all_checkpoints(self.output / "checkpoints")
        if not saved:
            return f"the next start begins anew, since {self.output} has no checkpoint yet"
        return f"the next start goes on from {saved[-1]}"

    def _step(self, work: Work, lr: float) -> Tensor:
        """One optimizer step over the micro-batches; the sums of its losses, (2,).

        Counts are taken over all ranks and micro-batches before the first backward, and
        DeepSpeed's averaging is undone, so that world size and packing do not change the loss.
        """
        set_lr(self.engine, lr)
        undo = self.world * len(work.batches)
        sums = torch.zeros(2, device=self.device, dtype=torch.float64)
        for part in work.batches:
            batch = part.to(self.device)
            attend = ByRow(batch, self.flex) if batch.rows else ByDocument(batch)
            latents, logits = self.engine(batch, attend)
            found = losses.sums(latents, logits, batch)
            loss = losses.total(found, work.noisy, work.targets, self.config.train.text_weight)
            self.engine.backward(loss * undo)
            self.engine.step()
            sums += torch.stack([found.image, found.text]).detach()
        self.ema.update(self.state.step + 1)
        self.health.note(self.state.step + 1)
        return sums

    def _save(
        self, metrics: Metrics, complete: bool = False, last: bool = False, stopping: bool = False
    ) -> bool:
        """Write a checkpoint and what goes with it; not after a step that went wrong.

        Raises:
            UserError: nothing of this run can be saved any more, or it would end so.
        """
        if self.state.step == self.saved:
            return True
        if self.health.wrong and not last:
            return False
        broken = self.health.broken()
        if broken or self.health.wrong:
            what = "weights or moments" if broken else "loss or gradient"
            raise self._hopeless(f"{what} not finite")
        self.state.layout = self.rows.layout()
        self.newest = checkpoint.write(
            self.output / "checkpoints",
            self.config,
            self.state,
            self.pieces,
            self.ema,
            self.engine.basic_optimizer,
        )
        self.saved = self.state.step
        with together():
            if self.rank == 0:
                self._publish(metrics, complete, stopping)
        return True

    def _published(self, complete: bool) -> bool:
        """Whether the model is of the newest checkpoint; or the last start had no room or time."""
        model, facts = self.output / "model" / MANIFEST, self.output / "training.json"
        known = next(jsonl.objects(facts), {}) if model.is_file() and facts.is_file() else {}
        told = known.get("complete") or not complete
        return known.get("steps") == self.state.step and told

    def _publish(self, metrics: Metrics, complete: bool, stopping: bool = False) -> None:
        """On rank 0: what goes with the newest checkpoint."""
        assert self.newest
        weights = checkpoint.Checkpoint(self.newest).weights(checkpoint.EMA, self.shell)
        export(self.config.model_part(), weights, self.output / "model")
        self._describe(complete)
        if not stopping:
            self._sheet(metrics)

    def _describe(self, complete: bool) -> None:
        """Write the facts of the run so far."""
        facts = {
            "complete": complete,
            "steps": self.state.step,
            "seconds": self.state.seconds,
            "ranks": self.world,
            "zero_stage": self.config.train.zero_stage,
            "device": str(self.device.type),
            "threads": torch.get_num_threads(),
        }
        if self.rank == 0:
            files.write(self.output / "training.json", jsonl.dumps(facts).encode())

    def _sheet(self, metrics: Metrics) -> None:
        """Draw a sample sheet. A run does not end for the lack of one."""
        sheet = self.output / "samples" / f"step-{self.state.step:08d}.png"
        try:
            metrics.sheet(self.state.step, sample_sheet(self.config, self.output / "model", sheet))
        except Exception as error:
            log.warning("no sample sheet %s (%s); training goes on", sheet, first_line(error))
