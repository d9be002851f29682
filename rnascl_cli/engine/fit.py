"""The loop that every training stage shares: epochs, schedule, metrics, checkpoints.

A stage gives a :class:`Task`, which knows its mathematics; :func:`fit` knows batches, learning rates, what is
written after each epoch, and how to go on after a stop.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rnascl_cli.artifacts.store import write_with
from rnascl_cli.data import Augment, Batch, ImageSet, batch_count, batches
from rnascl_cli.engine.compute import Compute, peak_memory_bytes
from rnascl_cli.engine.optimise import learning_rate, set_learning_rate
from rnascl_cli.engine.progress import progress, say_epoch
from rnascl_cli.engine.run_directory import CHECKPOINT, RunDirectory
from rnascl_cli.engine.seeds import generator
from rnascl_cli.errors import RunError, UserError
from rnascl_cli.recipes import Schedule

History = list[dict[str, Any]]


class Stateful(Protocol):
    """Anything whose state goes into a checkpoint."""

    def state_dict(self) -> Any:
        """Return the state."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Take the state back."""
        ...


@dataclass(frozen=True)
class ScheduledOptimiser:
    """An optimiser and the schedule its learning rate follows."""

    optimiser: torch.optim.Optimizer
    schedule: Schedule
    base: float


class Task(Protocol):
    """A stage's mathematics.

    Attributes:
        optimisers: Set to their scheduled learning rate before each step; the first one's is reported.
        state: What a checkpoint must hold, by name.
    """

    optimisers: list[ScheduledOptimiser]
    state: dict[str, Stateful]

    def start_epoch(self, epoch: int, noise: torch.Generator) -> None:
        """Prepare for an epoch whose random numbers come from ``noise``."""
        ...

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Take one step; return detached scalars by name: ``loss``, its terms, ``train_accuracy``."""
        ...

    def end_epoch(self) -> dict[str, Any]:
        """Return what else the epoch's metrics should say."""
        ...


@dataclass(frozen=True)
class Plan:
    """What the loop needs to know.

    Attributes:
        stage: Its name in messages and random streams.
        epochs: Number of passes over ``images``.
        batch_size: Images a step; the last batch of an epoch may be smaller.
        seed: Seed of the run.
        images: The training images.
        augment: Applied to each batch on the device.
        compute: Device and precision.
        run: Where metrics and checkpoints go.
        identity: What must be the same for a checkpoint to fit: recipe, data and teacher, as JSON-able values.
    """

    stage: str
    epochs: int
    batch_size: int
    seed: int
    images: ImageSet
    augment: Augment
    compute: Compute
    run: RunDirectory
    identity: dict[str, Any]


def fit(task: Task, plan: Plan) -> History:
    """Run a task to its last epoch and return the metrics of every epoch.

    After each epoch ``metrics.jsonl`` and the checkpoint are written. With ``plan.run.resume`` the run goes on
    after the checkpoint's epoch; as every epoch draws from its own random stream, it gives what the
    uninterrupted run would have given.

    Raises:
        UserError: The checkpoint belongs to another recipe, data set or teacher.
        RunError: A term of the loss is not finite; nothing of that epoch is written.
    """
    images = plan.images.to(plan.compute.device)
    history = _load_checkpoint(task, plan) if plan.run.resume else []
    if history:  # a stop between the checkpoint and the metrics left these a line short
        plan.run.write_metrics(history)
    for epoch in range(len(history), plan.epochs):
        history.append(_epoch(task, plan, images, epoch))
        _save_checkpoint(task, plan, history)
        plan.run.write_metrics(history)
        say_epoch(plan.stage, history[-1], plan.epochs)
    return history


def _epoch(task: Task, plan: Plan, images: ImageSet, epoch: int) -> dict[str, Any]:
    began = time.perf_counter()
    steps = batch_count(images, plan.batch_size)
    stream = generator(plan.seed, plan.stage, "batches", epoch)
    seen: dict[str, list[Tensor]] = defaultdict(list)
    sizes: list[int] = []
    task.start_epoch(epoch, generator(plan.seed, plan.stage, "noise", epoch))
    with progress(f"{plan.stage} epoch {epoch + 1}/{plan.epochs}", steps) as advance:
        for index, batch in enumerate(
            batches(
                images,
                batch_size=plan.batch_size,
                generator=stream,
                augment=plan.augment,
                device=plan.compute.device,
            )
        ):
            for item in task.optimisers:
                share = (epoch + index / steps) / plan.epochs
                set_learning_rate(item.optimiser, learning_rate(item.schedule, item.base, share))
            metrics = task.step(batch)
            for name, value in metrics.items():
                seen[name].append(value)
            sizes.append(len(batch))
            advance()
    means = _means(seen, sizes, stage=plan.stage, epoch=epoch)  # the epoch's only synchronisation with the device
    extra = task.end_epoch()
    seconds = time.perf_counter() - began
    return {
        "epoch": epoch,
        **means,
        **extra,
        "lr": learning_rate(task.optimisers[0].schedule, task.optimisers[0].base, epoch / plan.epochs),
        "seconds": seconds,
        "images_per_second": len(images) / seconds,
        "peak_memory_bytes": peak_memory_bytes(plan.compute.device),
    }


def _means(seen: dict[str, list[Tensor]], sizes: list[int], *, stage: str, epoch: int) -> dict[str, float]:
    weights = torch.tensor(sizes, dtype=torch.float64)
    stacked = {name: torch.stack(values).double().cpu() for name, values in seen.items()}
    # The first step that went wrong, and there a term before the sum that it spoilt.
    bad = [
        (int((~values.isfinite()).nonzero()[0]), name == "loss", name)
        for name, values in stacked.items()
        if not values.isfinite().all()
    ]
    if bad:
        step, _, name = min(bad)
        raise RunError(
            f"{stage}: '{name}' is {stacked[name][step].item()} at epoch {epoch + 1}, step {step + 1}; "
            "lower the learning rate or use --precision fp32. The last checkpoint, if there is one, is kept"
        )
    return {
        name: float((values * weights[: len(values)]).sum() / weights[: len(values)].sum())
        for name, values in stacked.items()
    }


def _identity(plan: Plan) -> str:
    text = json.dumps({"stage": plan.stage, **plan.identity}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _save_checkpoint(task: Task, plan: Plan, history: History) -> None:
    checkpoint = {
        "identity": _identity(plan),
        "history": history,
        "state": {name: item.state_dict() for name, item in task.state.items()},
    }
    write_with(plan.run.path / CHECKPOINT, lambda path: torch.save(checkpoint, path))


def _load_checkpoint(task: Task, plan: Plan) -> History:
    path = plan.run.path / CHECKPOINT
    checkpoint = read_checkpoint(path, plan.compute.device)
    if checkpoint.get("identity") != _identity(plan):
        raise UserError(f"--resume: {path} belongs to another recipe, data set or teacher; give the same options")
    try:
        for name, item in task.state.items():
            item.load_state_dict(checkpoint["state"][name])
        history: History = list(checkpoint["history"])
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"--resume: {path}: does not fit this stage ({' '.join(str(error).split())[:200]})") from None
    return history


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint without running anything that it might hold.

    Raises:
        UserError: It is damaged.
    """
    try:
        loaded = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise UserError(f"{path}: damaged checkpoint ({type(error).__name__}); start again with --force") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: not a checkpoint of rnascl; start again with --force")
    return loaded
