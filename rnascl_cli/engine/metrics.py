"""Metrics of an epoch, kept on the device until they are read.

With several ranks, each keeps those of its own images. :meth:`EpochMetrics.check`, :meth:`EpochMetrics.means` and
:meth:`EpochMetrics.state_dict` combine them and must be called on every rank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rnascl_cli.core import distributed
from rnascl_cli.core.errors import RunError


class EpochMetrics:
    """The metrics of one epoch, step by step.

    Attributes:
        stage: Stage name in messages.
        epoch: Epoch, from 0.
        sizes: Number of this rank's images of each step.
        seconds: Time of the steps before the run was last resumed.
    """

    def __init__(self, stage: str, epoch: int) -> None:
        self.stage, self.epoch = stage, epoch
        self.sizes: list[int] = []
        self.seconds = 0.0
        self._values: dict[str, list[Tensor]] = defaultdict(list)

    @property
    def steps(self) -> int:
        """Number of steps done."""
        return len(self.sizes)

    def add(self, metrics: Mapping[str, Tensor], size: int) -> None:
        """Add the scalars of a step: means over ``size`` images, 0 if another rank counts the same images.

        Does not synchronize with the device.
        """
        for name, value in metrics.items():
            self._values[name].append(value)
        self.sizes.append(size)

    def means(self) -> dict[str, float]:
        """Return each metric's mean over the images; the only synchronization of the epoch.

        Raises:
            RunError: See :meth:`check`.
        """
        stacked, weights = self._all_ranks()
        self._refuse_not_finite(stacked)
        return {
            name: float((values * weights[: len(values)]).sum() / weights[: len(values)].sum())
            for name, values in stacked.items()
        }

    def check(self) -> None:
        """Check that all values are finite.

        Raises:
            RunError: One is not; it names the first such step, and a term rather than the sum.
        """
        self._refuse_not_finite(self._all_ranks()[0])

    def _all_ranks(self) -> tuple[dict[str, Tensor], Tensor]:
        """Return the values of each metric by step, and the number of images of each step; float64 on the CPU."""
        weights = torch.tensor(self.sizes, dtype=torch.float64)
        stacked = {name: torch.stack(values).double().cpu() for name, values in self._values.items()}
        if distributed.size() == 1 or not stacked:
            return stacked, weights
        sums = [values * weights[: len(values)] for values in stacked.values()]
        flat = distributed.all_reduce_sum(torch.cat([weights, *sums]))
        weights, *sums = torch.split(flat, [len(weights), *(len(values) for values in sums)])
        return {name: values / weights[: len(values)] for name, values in zip(stacked, sums, strict=True)}, weights

    def _refuse_not_finite(self, stacked: Mapping[str, Tensor]) -> None:
        bad = [
            (int((~values.isfinite()).nonzero()[0]), name == "loss", name)
            for name, values in stacked.items()
            if not values.isfinite().all()
        ]
        if bad:
            step, _, name = min(bad)
            raise RunError(
                f"{self.stage}: '{name}' is {stacked[name][step].item()} at epoch {self.epoch + 1}, step {step + 1}; "
                "lower the learning rate or use --precision fp32. The last checkpoint, if there is one, is kept"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        values = {name: torch.stack(steps) for name, steps in self._values.items()}
        sizes = list(self.sizes)
        if distributed.size() > 1:
            means, weights = self._all_ranks()
            values = {name: means[name].to(steps) for name, steps in values.items()}
            sizes = [round(weight) for weight in weights.tolist()]
        return {"epoch": self.epoch, "sizes": sizes, "seconds": self.seconds, "values": values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state from a checkpoint.

        Raises:
            ValueError: It is of another epoch.
        """
        if state["epoch"] != self.epoch:
            raise ValueError(f"the checkpoint is inside epoch {state['epoch']}, the history ends before {self.epoch}")
        self.seconds = float(state["seconds"])
        # Rank zero has the metrics of all ranks for these steps.
        self.sizes = [int(size) if distributed.is_rank_zero() else 0 for size in state["sizes"]]
        self._values = defaultdict(list, {name: list(values.unbind()) for name, values in state["values"].items()})
