"""An epoch of search on a GPU, as the stage runs it: ``python -m benchmarks gpu``."""

from __future__ import annotations

import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.results import Measurement
from benchmarks.search_step import SPACE, scratch
from benchmarks.workload import Workload, our_search, workload
from rnascl_cli.data.augment import Crop
from rnascl_cli.engine.compute import Compute, resolve_compute
from rnascl_cli.engine.fit import Plan, fit
from rnascl_cli.engine.run_directory import RunDirectory

REACH = {"r18": 1.2, "wrn-34-10": 2.7, "wrn-34-20": 7.2}
"""Seconds an epoch that the issue asks for on an H200, by teacher."""
IMAGES, SIDE = 50_000, 8


def gpu(rounds: int) -> list[Measurement]:
    """Time an epoch of S5 on 50,000 images with each teacher, with steps recorded as CUDA graphs and launched.

    Raises:
        UserError: There is no CUDA device.
    """
    rows = []
    with scratch() as folder:
        for teacher, at_most in REACH.items():
            work = workload(folder, space=SPACE, teacher=teacher, side=SIDE, images=IMAGES)
            for capture in (True, False):
                seconds = epoch_seconds(work, resolve_compute("cuda", "auto", capture=capture), epochs=min(rounds, 5))
                how = "recorded" if capture else "launched"
                rows.append(
                    Measurement(
                        f"gpu.{teacher}.{how}",
                        f"an epoch of search, steps {how} ({SPACE}, {teacher}, {IMAGES:,} images, batch 128, maps 8x8)",
                        statistics.median(seconds),
                        len(seconds),
                        unit="s",
                        low=min(seconds),
                        high=max(seconds),
                        at_most=at_most if capture else None,
                        note="median [fastest, slowest]",
                        kept=False,
                    )
                )
    return rows


def epoch_seconds(work: Workload, compute: Compute, *, epochs: int) -> list[float]:
    """Return the seconds of each epoch of a search by the training loop, but for the first, which warms up and records.

    Images, augmentation and teacher are on the device, and no outputs are kept.
    """
    with TemporaryDirectory() as folder, our_search(work, compute=compute) as task:
        run = RunDirectory(Path(folder))
        plan = Plan(
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
