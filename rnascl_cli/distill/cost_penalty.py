"""The cost factor n_f of eq. (2), for one or two cost measures with targets.

With expected costs E_r, targets T_r and the costs W_r >= T_r of the widest network,

    n_f = (max_r [max(E_r, T_r) / T_r] / max_r [W_r / T_r])^exponent,

the largest relative excess over its value for the widest network, in (0, 1]. For one measure this is
(max(E, T) / W)^exponent: MnasNet's hard constraint (Tan et al. 2019: accuracy (cost / target)^w, with w = 0 within the
target and -1 above it) as a factor of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rnascl_cli.distill.expected_cost import ExpectedCost


class CostPenalty(nn.Module):
    """The cost factor n_f.

    Args:
        costs: The expected cost of each measure.
        targets: The target of each measure; None for no target, allowed for a single measure only.
        exponent: The exponent of n_f.

    Attributes:
        measure: The first measure.
        targets: The targets, at most the cost of the widest network.
    """

    def __init__(
        self, costs: Sequence[ExpectedCost], *, targets: Sequence[float | None], exponent: float = 1.0
    ) -> None:
        super().__init__()
        assert len(costs) == len(targets)
        self.costs = nn.ModuleList(costs)
        self.measure = costs[0].measure
        self._exponent = exponent
        self.targets = [
            None if target is None else min(float(target), float(cost.largest))
            for cost, target in zip(costs, targets, strict=True)
        ]

    def forward(self, g_DN: Tensor, level: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return n_f, a float32 scalar in (0, 1], and the expected cost in the first measure.

        Args:
            g_DN: Gumbel weights.
            level: Replaces the first target in this call; a scalar in (0, cost of the widest network].
        """
        targets: list[float | Tensor | None] = [*self.targets]
        if level is not None:
            targets[0] = level
        costs = [cost for cost in self.costs if isinstance(cost, ExpectedCost)]
        expected = [cost(g_DN) for cost in costs]
        if len(expected) == 1:
            return costs[0].relative(expected[0], exponent=self._exponent, target=targets[0]), expected[0]
        overshoots, widest = [], []
        for cost, mean, target in zip(costs, expected, targets, strict=True):
            assert target is not None
            overshoots.append(mean.clamp(min=target) / target)
            widest.append(torch.ones_like(mean) * cost.largest / target)
        n_f = (torch.stack(overshoots).amax() / torch.stack(widest).amax()).pow(self._exponent)
        return n_f.float(), expected[0]
