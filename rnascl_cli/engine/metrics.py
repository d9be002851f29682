"""What the steps of an epoch have reported so far, kept on the device until it is asked for.

Of several ranks, each keeps what its own images gave, and all are brought together when somebody asks:
:meth:`Tally.check`, :meth:`Tally.means` and :meth:`Tally.state_dict` are to be called on every rank.
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
        stage: Its name in messages.
        epoch: Its number, from 0.
        sizes: Images of each step done that count as this rank's.
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
        """Take the scalars of a step: means over ``size`` images, or 0 where another rank tells of the same images.

        The device is not asked for their values.
        """
        for name, value in metrics.items():
            self._seen[name].append(value)
        self.sizes.append(size)

    def means(self) -> dict[str, float]:
        """Return each metric's mean over the images; the epoch's only synchronisation with the device.

        Raises:
            RunError: See :meth:`check`.
        """
        stacked, weights = self._of_all_ranks()
        self._refuse_not_finite(stacked)
        return {
            name: float((values * weights[: len(values)]).sum() / weights[: len(values)].sum())
            for name, values in stacked.items()
        }

    def check(self) -> None:
        """Look for values that are not finite.

        Raises:
            RunError: There is one: the first step that went wrong is named, and there a term before the sum that it
                spoilt.
        """
        self._refuse_not_finite(self._of_all_ranks()[0])

    def _of_all_ranks(self) -> tuple[dict[str, Tensor], Tensor]:
        """Return each metric's value at each step, and the images of each step; float64 on the CPU."""
        weights = torch.tensor(self.sizes, dtype=torch.float64)
        stacked = {name: torch.stack(values).double().cpu() for name, values in self._seen.items()}
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
        seen = {name: torch.stack(values) for name, values in self._seen.items()}
        sizes = list(self.sizes)
        if distributed.size() > 1:
            means, weights = self._of_all_ranks()
            seen = {name: means[name].to(values) for name, values in seen.items()}
            sizes = [round(weight) for weight in weights.tolist()]
        return {"epoch": self.epoch, "sizes": sizes, "seconds": self.seconds, "seen": seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the state of a checkpoint.

        Raises:
            ValueError: It is another epoch's.
        """
        if state["epoch"] != self.epoch:
            raise ValueError(f"the epoch under way is {state['epoch']}, the history ends before {self.epoch}")
        self.seconds = float(state["seconds"])
        # The first rank tells of these steps; to the others they are done, no more.
        self.sizes = [int(size) if distributed.is_rank_zero() else 0 for size in state["sizes"]]
        self._seen = defaultdict(list, {name: list(values.unbind()) for name, values in state["seen"].items()})
