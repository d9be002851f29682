"""n_f of eq. (2): the supernet's expected cost, differentiable in the Gumbel weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from rnascl_cli.spaces import SearchSpace, block_costs, network_cost


class ExpectedCost(nn.Module):
    """Expected MACs or params of the network that the Gumbel weights describe.

    The widths of two neighbouring blocks are drawn independently, so a block's expected cost is
    g_in^T C g_out with C the table of its costs for each pair of choices; the rest of the network is fixed or
    linear in the last width. With one-hot weights it is the derived network's cost, to the unit.

    Args:
        space: The search space.
        num_classes: Outputs of the classifier.
        input_size: Height and width of the images.
        measure: ``"macs"`` or ``"params"``.
    """

    def __init__(
        self, space: SearchSpace, *, num_classes: int, input_size: int, measure: Literal["macs", "params"] = "macs"
    ) -> None:
        super().__init__()
        field = ("params", "macs").index(measure)
        tables = [[[cost[field] for cost in row] for row in table] for table in block_costs(space, input_size)]
        for index, table in enumerate(tables):
            self.register_buffer(f"table_{index}", torch.tensor(table, dtype=torch.float64), persistent=False)
        self.blocks = len(tables)

        def whole(widths: list[int]) -> int:
            return network_cost(space, widths, num_classes=num_classes, input_size=input_size)[field]

        def within_blocks(widths: list[int]) -> int:
            picks = [choices.index(width) for choices, width in zip(space.block_choices, widths, strict=True)]
            return sum(table[i][j] for table, i, j in zip(tables, [0, *picks[:-1]], picks, strict=True))

        # Stem, head and classifier: the fixed part, for each width of the last block.
        ends = []
        for width in space.block_choices[-1]:
            widths = [*space.largest[:-1], width]
            ends.append(whole(widths) - within_blocks(widths))
        self.register_buffer("ends", torch.tensor(ends, dtype=torch.float64), persistent=False)
        self.largest = whole(space.largest)

    def forward(self, width_weights: Sequence[Tensor]) -> Tensor:
        """Return the expected cost, a float64 scalar, in MACs for one image or in params."""
        g_in = torch.ones(1, dtype=torch.float64, device=width_weights[0].device)
        total: Tensor = width_weights[-1].double() @ self.get_buffer("ends")
        for index, g in enumerate(width_weights):
            g_out = g.double()
            total = total + g_in @ self.get_buffer(f"table_{index}") @ g_out
            g_in = g_out
        return total

    def relative(
        self, width_weights: Sequence[Tensor], *, exponent: float = 1.0, target: float | None = None
    ) -> Tensor:
        """Return n_f = (expected cost / cost of the widest path)^exponent, in (0, 1], float32.

        With a ``target``, in MACs or params, cost below it is worth nothing: the expected cost counts as at
        least the target, and pulls no further once it is there.
        """
        expected: Tensor = self(width_weights)
        if target is not None:
            expected = expected.clamp(min=target)
        return (expected / self.largest).pow(exponent).float()
