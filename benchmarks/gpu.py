"""An epoch of search on a GPU, as the stage runs it: ``python -m benchmarks gpu``."""

from __future__ import annotations

import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from benchmarks.results import Measurement
from benchmarks.search_step import SPACE, scratch
from benchmarks.workload import Workload, our_search, workload
from rnascl_cli.data.augment import Crop
from rnascl_cli.engine.device import DeviceConfig, resolve_device
from rnascl_cli.engine.run_directory import RunDirectory
from rnascl_cli.engine.training_loop import TrainingConfig, fit

REACH = {"r18": 1.2, "wrn-34-10": 2.7, "wrn-34-20": 7.2}
"""Seconds an epoch that the issue asks for on an H200, by teacher."""
IMAGES, SIDE, MOST_EPOCHS = 50_000, 8, 5


class How(NamedTuple):
    """How steps reach the device; ``images`` of an epoch where it is not timed whole, as that would take minutes."""

    words: str
    capture: bool
    compile_enabled: bool
    images: int = IMAGES


HOW = {
    "compiled": How("compiled, recorded and replayed", capture=True, compile_enabled=True),
    "recorded": How("recorded and replayed", capture=True, compile_enabled=False),
    "launched": How("launched", capture=False, compile_enabled=False, images=5_120),
}


def gpu(rounds: int) -> list[Measurement]:
    """Time an epoch of S5 on 50,000 images with each teacher: with compiled, recorded and launched steps.

    Raises:
        UserError: There is no CUDA device.
    """
    return [row for teacher in REACH for row in epochs_with(teacher, min(rounds, MOST_EPOCHS))]


def epochs_with(teacher: str, epochs: int) -> list[Measurement]:
    """Time so many epochs with one teacher."""
    rows = []
    with scratch() as folder:
        for name, how in HOW.items():
            torch.compiler.reset()
            work = workload(folder, space=SPACE, teacher=teacher, side=SIDE, images=how.images)
            compute = resolve_device("cuda", "auto", capture=how.capture, compile_enabled=how.compile_enabled)
            seconds = epoch_seconds(work, compute, epochs=epochs)
            rows.append(
                Measurement(
                    f"gpu.{teacher}.{name}",
                    f"an epoch of search, steps {how.words} ({SPACE}, {teacher}, {how.images:,} images, batch 128, "
                    f"maps {SIDE}x{SIDE})",
                    statistics.median(seconds),
                    len(seconds),
                    unit="s",
                    low=min(seconds),
                    high=max(seconds),
                    at_most=REACH[teacher] if how.compile_enabled else None,
                    note="median [fastest, slowest]",
                    kept=False,
                )
            )
    return rows


def epoch_seconds(work: Workload, compute: DeviceConfig, *, epochs: int) -> list[float]:
    """Return the seconds of each epoch of a search by the training loop, but for the first, which warms up and records.

    Images, augmentation and teacher are on the device, and no outputs are kept.
    """
    with TemporaryDirectory() as folder, our_search(work, compute=compute) as task:
        run = RunDirectory(Path(folder))
        plan = TrainingConfig(
            stage="search",
            epochs=epochs + 1,
            batch_size=work.batch_size,
            seed=0,
            images=work.data.train,
            augment=Crop(),
            compute=compute,
            run=run,
            identity={},
            parts=task.parts,
        )
        return [entry["seconds"] for entry in fit(task, plan)][1:]
