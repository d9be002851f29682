"""The loop that every training stage shares: epochs, schedule, metrics, checkpoints.

A stage gives a :class:`Task`, which knows its mathematics; :func:`fit` knows batches, learning rates, what is
written after each epoch, and how to go on after a stop.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from rnascl_cli.core import distributed
from rnascl_cli.core.console import warning
from rnascl_cli.core.errors import Interrupted, RunError, UserError
from rnascl_cli.core.progress import progress, say_epoch
from rnascl_cli.core.random_streams import generator
from rnascl_cli.data import Augment, Batch, ImageSet, Parts, batch_count, batches, undivided
from rnascl_cli.engine.checkpoint import first_not_finite, read_newest, write_checkpoint
from rnascl_cli.engine.device import DeviceConfig, peak_memory_bytes
from rnascl_cli.engine.interrupts import StopRequest, ignore_further_signals, stop_after_step
from rnascl_cli.engine.metrics import EpochMetrics
from rnascl_cli.engine.optimizer import learning_rate, set_learning_rate
from rnascl_cli.engine.resume_command import resume_hint
from rnascl_cli.engine.run_directory import PREVIOUS, RunDirectory
from rnascl_cli.engine.stop_consensus import StopConsensus, StopFlags
from rnascl_cli.recipes.settings import Schedule

History = list[dict[str, Any]]

SINGLE_VALUE_BATCHNORM = (
    "Expected more than 1 value per channel"  # torch's BatchNorm, of one image whose map is one pixel
)
SINGLE_VALUE_REMEDY = (
    "one image is too little to take them from, as the last maps are a single pixel; use a larger --batch-size"
)


class Stateful(Protocol):
    """Anything whose state goes into a checkpoint."""

    def state_dict(self) -> Any:
        """Return the state."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Take the state back."""
        ...


@dataclass(frozen=True)
class ScheduledOptimizer:
    """An optimiser and the schedule its learning rate follows."""

    optimizer: torch.optim.Optimizer
    schedule: Schedule
    base: float


class TrainStep(Protocol):
    """A stage's mathematics.

    Attributes:
        optimizers: Set to their scheduled learning rate before each step; the first one's is reported.
        state: What a checkpoint must hold, by name.
    """

    optimizers: list[ScheduledOptimizer]
    state: dict[str, Stateful]

    def start_epoch(self, epoch: int, noise: torch.Generator) -> None:
        """Prepare for an epoch whose random numbers come from ``noise``."""
        ...

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Take one step; return detached scalars by name: ``loss``, its terms, ``train_accuracy``.

        Of several ranks each has its share of the batch (``batch.share``), and means are over that.
        """
        ...

    def end_epoch(self) -> dict[str, Any]:
        """Return what else the epoch's metrics should say."""
        ...


@runtime_checkable
class EndsEarly(Protocol):
    """A task that may be done before the last epoch; its state says so after a resumption, too."""

    def finished(self) -> bool:
        """Return whether no further epoch is wanted; asked before each."""
        ...


@dataclass(frozen=True)
class TrainingConfig:
    """What the loop needs to know.

    Attributes:
        stage: Its name in messages and random streams.
        epochs: Number of passes over ``images``.
        batch_size: Images a step, over all ranks; the last batch of an epoch may be smaller.
        seed: Seed of the run.
        images: The training images.
        augment: Applied to each batch on the device.
        compute: Device and precision.
        run: Where metrics and checkpoints go.
        identity: What must be the same for a checkpoint to fit: recipe, data and teacher, as JSON-able values.
        checkpoint_seconds: The longest an epoch goes on without a checkpoint in its middle.
        parts: How the task's step divides a batch.
    """

    stage: str
    epochs: int
    batch_size: int
    seed: int
    images: ImageSet
    augment: Augment
    compute: DeviceConfig
    run: RunDirectory
    identity: dict[str, Any]
    checkpoint_seconds: float = math.inf
    parts: Parts = undivided


def fit(task: TrainStep, plan: TrainingConfig) -> History:
    """Run a task to its last epoch, or until it is finished, and return the metrics of every epoch.

    After each epoch ``metrics.jsonl`` and the checkpoint are written; inside an epoch a checkpoint is written at
    Ctrl-C or SIGTERM, which end the run after the step, and when ``plan.checkpoint_seconds`` have passed. With
    ``plan.run.resume`` the run goes on behind the checkpoint's last step, and gives what the uninterrupted run
    would have given.

    Raises:
        UserError: The checkpoint belongs to another recipe, data set or teacher.
        RunError: A term of the loss, or a weight, is not finite; nothing of that epoch is written.
        WriteError: A file could not be written; the checkpoint before is unchanged.
        Interrupted: Ctrl-C or SIGTERM; the message says how to go on.
    """
    with stop_after_step() as stop:
        loop = _Loop(task, plan, plan.images.to(plan.compute.device), stop)
        under_way = loop.resume() if plan.run.resume else None
        for epoch in range(len(loop.history), plan.epochs):
            if isinstance(task, EndsEarly) and task.finished():
                break
            loop.epoch(under_way or loop.begin(epoch))
            under_way = None
    plan.run.remove(PREVIOUS)
    return loop.history


@dataclass
class EpochState:
    """An epoch between two of its steps: what they reported, and the stream that the next ones draw from."""

    tally: EpochMetrics
    noise: torch.Generator

    def state_dict(self) -> dict[str, Any]:
        return {"tally": self.tally.state_dict(), "noise": self.noise.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tally.load_state_dict(state["tally"])
        self.noise.set_state(state["noise"].cpu())


class _Loop:
    """A task on its way through the epochs, and what is kept of it."""

    def __init__(self, task: TrainStep, plan: TrainingConfig, images: ImageSet, stop: StopRequest) -> None:
        self.task, self.plan, self.images, self.stop = task, plan, images, stop
        self.history: History = []
        self._agreement = StopConsensus()
        self._steps = batch_count(images, plan.batch_size)
        self._saved_at = time.monotonic()

    def begin(self, epoch: int) -> EpochState:
        """Return an epoch at its beginning."""
        return EpochState(
            EpochMetrics(self.plan.stage, epoch), generator(self.plan.seed, self.plan.stage, "noise", epoch)
        )

    def epoch(self, under_way: EpochState) -> None:
        """Run an epoch from its beginning, or from behind the steps that an interrupted run has taken of it."""
        task, plan, tally = self.task, self.plan, under_way.tally
        epoch, began = tally.epoch, time.perf_counter() - tally.seconds
        task.start_epoch(epoch, under_way.noise)
        with progress(f"{plan.stage} epoch {epoch + 1}/{plan.epochs}", self._steps) as advance:
            advance(tally.steps)
            for batch in self._batches(epoch, behind=tally.steps):
                self._step(tally, batch)
                advance()
                wish = self._agreement.after_step(self._wish())
                if wish.signum or wish.checkpoint:
                    tally.seconds = time.perf_counter() - began
                    tally.check()
                    self._save(tally, under_way.state_dict())
                    self._obey(wish, f"epoch {epoch + 1}, step {tally.steps} of {self._steps}")
        means = tally.means()
        self.history.append(self._entry(epoch, {**means, **task.end_epoch()}, began))
        self._save(tally)
        plan.run.write_metrics(self.history)
        say_epoch(plan.stage, self.history[-1], plan.epochs)
        self._obey(self._agreement.at_end(self._wish()), f"the end of epoch {epoch + 1}")

    def _batches(self, epoch: int, *, behind: int) -> Iterator[Batch]:
        """Yield the epoch's batches but for the first ``behind``, which an interrupted run has had."""
        return batches(
            self.images,
            batch_size=self.plan.batch_size,
            generator=generator(self.plan.seed, self.plan.stage, "batches", epoch),
            augment=self.plan.augment,
            device=self.plan.compute.device,
            behind=behind,
            parts=self.plan.parts,
        )

    def _step(self, tally: EpochMetrics, batch: Batch) -> None:
        for item in self.task.optimizers:
            share = (tally.epoch + tally.steps / self._steps) / self.plan.epochs
            set_learning_rate(item.optimizer, learning_rate(item.schedule, item.base, share))
        set_current_step(self.plan.stage, epoch=tally.epoch, step=tally.steps)
        try:
            with distributed.replicated_batch(batch.shard.replicated):
                metrics = self.task.step(batch)
        except ValueError as error:
            if SINGLE_VALUE_BATCHNORM in str(error):
                raise RunError(at_current_step("batch statistics", SINGLE_VALUE_REMEDY)) from None
            raise
        tally.add(metrics, batch.shard.counted)

    def _entry(self, epoch: int, metrics: dict[str, Any], began: float) -> dict[str, Any]:
        first, plan = self.task.optimizers[0], self.plan
        seconds = time.perf_counter() - began
        return {
            "epoch": epoch,
            **metrics,
            "lr": learning_rate(first.schedule, first.base, epoch / plan.epochs),
            "seconds": seconds,
            "images_per_second": len(self.images) / seconds,
            "peak_memory_bytes": peak_memory_bytes(plan.compute.device),
        }

    def _wish(self) -> StopFlags:
        """Return what this rank wants to be done between two steps."""
        due = time.monotonic() - self._saved_at >= self.plan.checkpoint_seconds
        return StopFlags(self.stop.signum or 0, checkpoint=due)

    def _obey(self, wish: StopFlags, where: str) -> None:
        """End the run if that is wanted; the checkpoint has just been written."""
        if wish.signum:
            ignore_further_signals()
            distributed.barrier()  # for the first one's checkpoint: torchrun ends the others when one has ended
            run = self.plan.run
            again = resume_hint(out=run.out or run.path, derived=run.path / "derived.json")
            raise Interrupted(wish.signum, f"{self.plan.stage}: stopped at {where}; {again}")

    def _save(self, tally: EpochMetrics, under_way: dict[str, Any] | None = None) -> None:
        """Write the checkpoint, unless a weight in it is not finite."""
        state = {name: item.state_dict() for name, item in self.task.state.items()}
        if name := first_not_finite(state):
            raise RunError(
                f"{self.plan.stage}: '{name}' holds NaN or infinity after epoch {tally.epoch + 1}, step {tally.steps}; "
                "lower the learning rate or use --precision fp32. The last checkpoint, if there is one, is kept"
            )
        content = {
            "identity": _identity(self.plan),
            "precision": self.plan.compute.student,
            "history": self.history,
            "under_way": under_way,
            "state": state,
        }
        write_checkpoint(self.plan.run.path, content)
        self._saved_at = time.monotonic()

    def resume(self) -> EpochState | None:
        """Take back the checkpoint, and return the epoch that it was written in the middle of, if it was."""
        path, checkpoint = read_newest(self.plan.run.path, self.plan.compute.device)
        if checkpoint.get("identity") != _identity(self.plan):
            raise UserError(f"--resume: {path} belongs to another recipe, data set or teacher; give the same options")
        # Allowed, as float32 is the way out where bf16 gave no numbers; checkpoints of older versions do not tell.
        before, now = checkpoint.get("precision"), self.plan.compute.student
        if before not in (None, now):
            warning(f"--resume: {path} was trained in {before} and goes on in {now}; --precision {before} keeps to it")
        try:
            for name, item in self.task.state.items():
                item.load_state_dict(checkpoint["state"][name])
            self.history = list(checkpoint["history"])
            under_way = None
            if checkpoint["under_way"] is not None:
                under_way = self.begin(len(self.history))
                under_way.load_state_dict(checkpoint["under_way"])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"--resume: {path}: does not fit this stage ({reason})") from None
        if self.history:  # a stop between the checkpoint and the metrics left these a line short
            self.plan.run.write_metrics(self.history)
        return under_way


def _identity(plan: TrainingConfig) -> str:
    text = json.dumps({"stage": plan.stage, **plan.identity}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


_place: ContextVar[tuple[str, int, int] | None] = ContextVar("place", default=None)


def set_current_step(stage: str, *, epoch: int, step: int) -> None:
    """Take note of the step that is about to run; both numbers count from 0."""
    _place.set((stage, epoch, step))


def at_current_step(term: str, what: str) -> str:
    """Return ``"search: 'kl' at epoch 1, step 1: WHAT"``, for the running step."""
    place = _place.get()
    if place is None:
        return f"'{term}': {what}"
    stage, epoch, step = place
    return f"{stage}: '{term}' at epoch {epoch + 1}, step {step + 1}: {what}"
