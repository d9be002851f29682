"""n_f of eq. (2) with somewhere to go: one cost measure or two, each with a target below which smaller is no better.

With expected costs E_r, targets T_r and the costs W_r of the widest network, no T_r above its W_r,

    n_f = (max_r [max(E_r, T_r) / T_r] / max_r [W_r / T_r])^exponent,

the larger of the relative overshoots, over that of the widest network: in (0, 1], and 1 there. For one measure this is
(max(E, T) / W)^exponent. It is MnasNet's objective in its hard form (Tan et al. 2019: accuracy (cost / target)^w, with
w = 0 within the target and -1 beyond it), turned from a reward into a factor of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rnascl_cli.distill.expected_cost import ExpectedCost


class CostPenalty(nn.Module):
    """What the supernet's expected cost makes of the loss.

    Args:
        costs: The expected cost in each measure.
        targets: A number for each; None, as little as possible, only where there is one measure.
        exponent: Of n_f.

    Attributes:
        measure: The first.
    """

    def __init__(
        self, costs: Sequence[ExpectedCost], *, targets: Sequence[float | None], exponent: float = 1.0
    ) -> None:
        super().__init__()
        assert len(costs) == len(targets)
        self.costs = nn.ModuleList(costs)
        self.measure = costs[0].measure
        self._exponent = exponent
        self._targets = [
            None if target is None else min(float(target), float(cost.largest))
            for cost, target in zip(costs, targets, strict=True)
        ]

    def forward(self, g_DN: Tensor, level: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return n_f, a float32 scalar in (0, 1], and the expected cost in the first measure.

        Args:
            g_DN: Gumbel weights.
            level: In place of the first target, for this step alone; a scalar in (0, cost of the widest].
        """
        targets: list[float | Tensor | None] = [*self._targets]
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
