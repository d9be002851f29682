"""The training loop of all stages: epochs, schedule, metrics, checkpoints.

A stage passes a :class:`TrainStep`; :func:`fit` does batches, learning rates, files and resuming.
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

# torch's BatchNorm for a batch of one image whose feature map is one pixel
SINGLE_VALUE_BATCHNORM = "Expected more than 1 value per channel"
SINGLE_VALUE_REMEDY = "the last feature maps of one image are a single pixel; use a larger --batch-size"


class Stateful(Protocol):
    """An object whose state is saved in checkpoints."""

    def state_dict(self) -> Any:
        """Return the state."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Load the state."""
        ...


@dataclass(frozen=True)
class ScheduledOptimizer:
    """An optimizer and its learning rate schedule."""

    optimizer: torch.optim.Optimizer
    schedule: Schedule
    base: float


class TrainStep(Protocol):
    """The training step of a stage.

    Attributes:
        optimizers: Their learning rates are set before each step; that of the first one is reported.
        state: Objects to save in checkpoints, by name.
    """

    optimizers: list[ScheduledOptimizer]
    state: dict[str, Stateful]

    def start_epoch(self, epoch: int, noise: torch.Generator) -> None:
        """Start an epoch; its random numbers come from ``noise``."""
        ...

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Take one step; return detached scalars by name: ``loss``, its terms, ``train_accuracy``.

        With several ranks, they are means over this rank's part of the batch (``batch.shard``).
        """
        ...

    def end_epoch(self) -> dict[str, Any]:
        """Return further metrics of the epoch."""
        ...


@runtime_checkable
class EndsEarly(Protocol):
    """A step that can end the run before the last epoch, also after resuming."""

    def finished(self) -> bool:
        """Return whether to stop; called before each epoch."""
        ...


@dataclass(frozen=True)
class TrainingConfig:
    """Configuration of the loop.

    Attributes:
        stage: Stage name in messages and random streams.
        epochs: Number of passes over ``images``.
        batch_size: Global batch size; the last batch of an epoch may be smaller.
        seed: Seed of the run.
        images: The training images.
        augment: Augmentation, applied on the device.
        compute: Device and precision.
        run: Where metrics and checkpoints go.
        identity: Recipe, data and teacher as JSON-able values; a checkpoint of another identity is refused.
        checkpoint_seconds: Longest time without a checkpoint inside an epoch.
        parts: Returns the sizes of the parts that a step splits a batch into.
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


def fit(step: TrainStep, config: TrainingConfig) -> History:
    """Train for all epochs, or until the step is finished, and return the metrics of each epoch.

    After each epoch ``metrics.jsonl`` and the checkpoint are written. Ctrl-C and SIGTERM end the run after the current
    step, with a checkpoint; another one is written every ``config.checkpoint_seconds``. With ``config.run.resume`` the
    run resumes after the last step of the checkpoint and gives the result of an uninterrupted run.

    Raises:
        UserError: The checkpoint belongs to another recipe, data set or teacher.
        RunError: A term of the loss, or a weight, is not finite; nothing of that epoch is written.
        WriteError: A file could not be written; the previous checkpoint is unchanged.
        Interrupted: Ctrl-C or SIGTERM; the message has the command that resumes the run.
    """
    with stop_after_step() as stop:
        loop = _Loop(step, config, config.images.to(config.compute.device), stop)
        epoch_state = loop.resume() if config.run.resume else None
        for epoch in range(len(loop.history), config.epochs):
            if isinstance(step, EndsEarly) and step.finished():
                break
            loop.epoch(epoch_state or loop.begin(epoch))
            epoch_state = None
    config.run.remove(PREVIOUS)
    return loop.history


@dataclass
class EpochState:
    """State of an epoch between two steps: the metrics so far and the generator of the noise."""

    metrics: EpochMetrics
    noise: torch.Generator

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": self.metrics.state_dict(), "noise": self.noise.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.metrics.load_state_dict(state["metrics"])
        self.noise.set_state(state["noise"].cpu())


class _Loop:
    """A run of the loop."""

    def __init__(self, step: TrainStep, config: TrainingConfig, images: ImageSet, stop: StopRequest) -> None:
        self.step, self.config, self.images, self.stop = step, config, images, stop
        self.history: History = []
        self._consensus = StopConsensus()
        self._steps = batch_count(images, config.batch_size)
        self._saved_at = time.monotonic()

    def begin(self, epoch: int) -> EpochState:
        """Return the state of an epoch before its first step."""
        return EpochState(
            EpochMetrics(self.config.stage, epoch), generator(self.config.seed, self.config.stage, "noise", epoch)
        )

    def epoch(self, epoch_state: EpochState) -> None:
        """Run an epoch, or the rest of it."""
        step, config, metrics = self.step, self.config, epoch_state.metrics
        epoch, began = metrics.epoch, time.perf_counter() - metrics.seconds
        step.start_epoch(epoch, epoch_state.noise)
        with progress(f"{config.stage} epoch {epoch + 1}/{config.epochs}", self._steps) as advance:
            advance(metrics.steps)
            for batch in self._batches(epoch, behind=metrics.steps):
                self._step(metrics, batch)
                advance()
                flags = self._consensus.after_step(self._flags())
                if flags.signum or flags.checkpoint:
                    metrics.seconds = time.perf_counter() - began
                    metrics.check()
                    self._save(metrics, epoch_state.state_dict())
                    self._stop_if_requested(flags, f"epoch {epoch + 1}, step {metrics.steps} of {self._steps}")
        means = metrics.means()
        self.history.append(self._entry(epoch, {**means, **step.end_epoch()}, began))
        self._save(metrics)
        config.run.write_metrics(self.history)
        say_epoch(config.stage, self.history[-1], config.epochs)
        self._stop_if_requested(self._consensus.at_end(self._flags()), f"the end of epoch {epoch + 1}")

    def _batches(self, epoch: int, *, behind: int) -> Iterator[Batch]:
        """Yield the batches of an epoch without the first ``behind``."""
        return batches(
            self.images,
            batch_size=self.config.batch_size,
            generator=generator(self.config.seed, self.config.stage, "batches", epoch),
            augment=self.config.augment,
            device=self.config.compute.device,
            behind=behind,
            parts=self.config.parts,
        )

    def _step(self, metrics: EpochMetrics, batch: Batch) -> None:
        for item in self.step.optimizers:
            share = (metrics.epoch + metrics.steps / self._steps) / self.config.epochs
            set_learning_rate(item.optimizer, learning_rate(item.schedule, item.base, share))
        set_current_step(self.config.stage, epoch=metrics.epoch, step=metrics.steps)
        try:
            with distributed.replicated_batch(batch.shard.replicated):
                values = self.step.step(batch)
        except ValueError as error:
            if SINGLE_VALUE_BATCHNORM in str(error):
                raise RunError(at_current_step("batch statistics", SINGLE_VALUE_REMEDY)) from None
            raise
        metrics.add(values, batch.shard.counted)

    def _entry(self, epoch: int, metrics: dict[str, Any], began: float) -> dict[str, Any]:
        first, config = self.step.optimizers[0], self.config
        seconds = time.perf_counter() - began
        return {
            "epoch": epoch,
            **metrics,
            "lr": learning_rate(first.schedule, first.base, epoch / config.epochs),
            "seconds": seconds,
            "images_per_second": len(self.images) / seconds,
            "peak_memory_bytes": peak_memory_bytes(config.compute.device),
        }

    def _flags(self) -> StopFlags:
        """Return whether this rank should stop or write a checkpoint now."""
        due = time.monotonic() - self._saved_at >= self.config.checkpoint_seconds
        return StopFlags(self.stop.signum or 0, checkpoint=due)

    def _stop_if_requested(self, flags: StopFlags, where: str) -> None:
        """End the run if a signal came; the checkpoint has just been written."""
        if flags.signum:
            ignore_further_signals()
            distributed.barrier()  # torchrun ends all ranks when one has ended, so wait for the checkpoint of rank zero
            run = self.config.run
            again = resume_hint(out=run.out or run.path, derived=run.path / "derived.json")
            raise Interrupted(flags.signum, f"{self.config.stage}: stopped at {where}; {again}")

    def _save(self, metrics: EpochMetrics, epoch_state: dict[str, Any] | None = None) -> None:
        """Write the checkpoint if all weights are finite."""
        state = {name: item.state_dict() for name, item in self.step.state.items()}
        if name := first_not_finite(state):
            raise RunError(
                f"{self.config.stage}: '{name}' has NaN or infinite values after epoch {metrics.epoch + 1}, "
                f"step {metrics.steps}; lower the learning rate or use --precision fp32. The last checkpoint is kept"
            )
        content = {
            "identity": _identity(self.config),
            "precision": self.config.compute.student,
            "history": self.history,
            "epoch_state": epoch_state,
            "state": state,
        }
        write_checkpoint(self.config.run.path, content)
        self._saved_at = time.monotonic()

    def resume(self) -> EpochState | None:
        """Load the checkpoint; return the state of an unfinished epoch, if any."""
        path, checkpoint = read_newest(self.config.run.path, self.config.compute.device)
        if checkpoint.get("identity") != _identity(self.config):
            raise UserError(f"--resume: {path} belongs to another recipe, data set or teacher; give the same options")
        # Allowed, because float32 is the remedy for bf16 overflow. Older checkpoints do not record the precision.
        before, now = checkpoint.get("precision"), self.config.compute.student
        if before not in (None, now):
            warning(
                f"--resume: {path} was trained in {before} and resumes in {now}; use --precision {before} to keep it"
            )
        try:
            for name, item in self.step.state.items():
                item.load_state_dict(checkpoint["state"][name])
            self.history = list(checkpoint["history"])
            epoch_state = None
            if checkpoint["epoch_state"] is not None:
                epoch_state = self.begin(len(self.history))
                epoch_state.load_state_dict(checkpoint["epoch_state"])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"--resume: {path}: does not fit this stage ({reason})") from None
        if self.history:  # the run may have stopped between writing the checkpoint and the metrics
            self.config.run.write_metrics(self.history)
        return epoch_state


def _identity(config: TrainingConfig) -> str:
    text = json.dumps({"stage": config.stage, **config.identity}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


_current_step: ContextVar[tuple[str, int, int] | None] = ContextVar("current_step", default=None)


def set_current_step(stage: str, *, epoch: int, step: int) -> None:
    """Set the current step for messages; both numbers count from 0."""
    _current_step.set((stage, epoch, step))


def at_current_step(term: str, what: str) -> str:
    """Return ``"search: 'kl' at epoch 1, step 1: WHAT"``, for the running step."""
    found = _current_step.get()
    if found is None:
        return f"'{term}': {what}"
    stage, epoch, step = found
    return f"{stage}: '{term}' at epoch {epoch + 1}, step {step + 1}: {what}"
