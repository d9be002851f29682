"""What the steps of an epoch have reported so far, kept on the device until it is asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rnascl_cli.errors import RunError


class Tally:
    """The metrics of one epoch, step by step.

    Attributes:
        stage: Its name in messages.
        epoch: Its number, from 0.
        sizes: Images of each step done.
        seconds: What the steps before the last stop took.
    """

    def __init__(self, stage: str, epoch: int) -> None:
        self.stage, self.epoch = stage, epoch
        self.sizes: list[int] = []
        self.seconds = 0.0
        self._seen: dict[str, list[Tensor]] = defaultdict(list)

    @property
    def steps(self) -> int:
        """Steps done."""
        return len(self.sizes)

    def add(self, metrics: Mapping[str, Tensor], size: int) -> None:
        """Take the scalars of a step over ``size`` images, without asking the device for their values."""
        for name, value in metrics.items():
            self._seen[name].append(value)
        self.sizes.append(size)

    def means(self) -> dict[str, float]:
        """Return each metric's mean over the images; the epoch's only synchronisation with the device.

        Raises:
            RunError: See :meth:`check`.
        """
        weights = torch.tensor(self.sizes, dtype=torch.float64)
        return {
            name: float((values * weights[: len(values)]).sum() / weights[: len(values)].sum())
            for name, values in self.check().items()
        }

    def check(self) -> dict[str, Tensor]:
        """Return each metric's values, float64 on the CPU.

        Raises:
            RunError: One is not finite: the first step that went wrong is named, and there a term before the sum
                that it spoilt.
        """
        stacked = {name: torch.stack(values).double().cpu() for name, values in self._seen.items()}
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
        return stacked

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        seen = {name: torch.stack(values) for name, values in self._seen.items()}
        return {"epoch": self.epoch, "sizes": list(self.sizes), "seconds": self.seconds, "seen": seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the state of a checkpoint.

        Raises:
            ValueError: It is another epoch's.
        """
        if state["epoch"] != self.epoch:
            raise ValueError(f"the epoch under way is {state['epoch']}, the history ends before {self.epoch}")
        self.seconds = float(state["seconds"])
        self.sizes = [int(size) for size in state["sizes"]]
        self._seen = defaultdict(list, {name: list(values.unbind()) for name, values in state["seen"].items()})
