"""A toy stage for the loop: a linear model with momentum, noise from the epoch's stream, and a switch to break it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rnascl_cli.data import Batch, ImageSet
from rnascl_cli.data.augment import Crop
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.engine.run_directory import RunDirectory
from rnascl_cli.engine.training_loop import History, ScheduledOptimizer, Stateful, TrainingConfig
from rnascl_cli.recipes.settings import StepSchedule

CPU = DeviceConfig(torch.device("cpu"), "fp32", "fp32")


def image_set(count: int = 21, *, side: int = 8, classes: int = 3, seed: int = 0) -> ImageSet:
    """Random images with random labels."""
    stream = torch.Generator().manual_seed(seed)
    return ImageSet(
        torch.randint(0, 256, (count, 3, side, side), generator=stream, dtype=torch.uint8),
        torch.arange(count) % classes,
        torch.arange(count),
    )


TIMES = ("seconds", "images_per_second", "peak_memory_bytes")


class Stopped(Exception):  # noqa: N818 (not an error: the test's Ctrl-C)
    """Ends a run in the middle."""


def stop_at(step: int) -> Any:
    def before_step(now: int) -> None:
        if now == step:
            raise Stopped

    return before_step


def numbers(history: History) -> list[dict[str, Any]]:
    """The history without what a clock says."""
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in history]


class ToyTask:
    """Minimises cross-entropy plus a noisy penalty."""

    def __init__(self, before_step: Callable[[int], None] = lambda step: None) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.last = nn.Linear(144, 3)
            self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), self.last)
        optimiser = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.optimizers = [ScheduledOptimizer(optimiser, StepSchedule(), 0.05)]
        self.state: dict[str, Stateful] = {"model": self.model, "optimiser": optimiser}
        self.noise = torch.Generator()
        self.before_step = before_step
        self.steps = 0
        self.epochs: list[int] = []
        self.rates: list[float] = []
        self.draws: list[float] = []
        self.labels: list[list[int]] = []

    def start_epoch(self, epoch: int, noise: torch.Generator) -> None:
        self.noise = noise
        self.epochs.append(epoch)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        x_BCHW, y_B = batch.x_BCHW, batch.y_B
        self.steps += 1
        self.before_step(self.steps)
        optimiser = self.optimizers[0].optimizer
        self.rates.append(optimiser.param_groups[0]["lr"])
        self.labels.append(y_B.tolist())
        self.draws.append(torch.rand((), generator=self.noise).item())
        penalty = (torch.randn((), generator=self.noise) * self.last.bias).sum()
        ce = nn.functional.cross_entropy(self.model(x_BCHW), y_B)
        loss = ce + 0.1 * penalty
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        named = {"loss": loss, "ce": ce, "penalty": penalty, "images": torch.tensor(float(len(y_B)))}
        return {name: value.detach() for name, value in named.items()}

    def end_epoch(self) -> dict[str, Any]:
        return {"holdout_accuracy": 0.5}


def toy_plan(path: Path, *, resume: bool = False, **changes: Any) -> TrainingConfig:
    """A plan for five epochs of 21 images in batches of 8."""
    run = RunDirectory.open(path, resume=resume)
    run.create()
    fields: dict[str, Any] = {
        "stage": "toy",
        "epochs": 5,
        "batch_size": 8,
        "seed": 7,
        "images": image_set(),
        "augment": Crop(),
        "compute": CPU,
        "run": run,
        "identity": {"data": "d", "teacher": None},
    }
    return TrainingConfig(**(fields | changes))
