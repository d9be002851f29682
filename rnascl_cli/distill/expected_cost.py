"""n_f of eq. (2): the supernet's expected cost, differentiable in the Gumbel weights.

Shape suffixes: D blocks, N filter choices of the block that has most of them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rnascl_cli.spaces import SearchSpace, block_costs, network_cost

CostMeasure = Literal["macs", "params"]


class ExpectedCost(nn.Module):
    """Expected MACs or params of the network that the Gumbel weights describe.

    The widths of two neighbouring blocks are drawn independently, so a block's expected cost is
    g_in^T C g_out with C the table of its costs for each pair of choices; the rest of the network depends on the
    last width only. With one-hot weights it is the derived network's cost, to the unit.

    Args:
        space: The search space.
        num_classes: Outputs of the classifier.
        input_size: Height and width of the images.
        measure: ``"macs"`` or ``"params"``.
    """

    def __init__(self, space: SearchSpace, *, num_classes: int, input_size: int, measure: CostMeasure = "macs") -> None:
        super().__init__()
        field = ("params", "macs").index(measure)
        blocks = [[[cost[field] for cost in row] for row in table] for table in block_costs(space, input_size)]
        most = max(len(choices) for choices in space.block_choices)
        tables_DNN = torch.zeros(len(blocks), most, most, dtype=torch.float64)
        for index, table in enumerate(blocks):
            tables_DNN[index, : len(table), : len(table[0])] = torch.tensor(table, dtype=torch.float64)

        def whole(widths: list[int]) -> int:
            return network_cost(space, widths, num_classes=num_classes, input_size=input_size)[field]

        # Stem, head and classifier: one number for each width of the last block, added to that column of its table.
        for column, width in enumerate(space.block_choices[-1]):
            inside = sum(table[0][0] for table in blocks[:-1]) + blocks[-1][0][column]  # choices are widest first
            tables_DNN[-1, : len(blocks[-1]), column] += whole([*space.largest[:-1], width]) - inside
        self.register_buffer("tables", tables_DNN, persistent=False)
        self.register_buffer("stem", torch.eye(1, most, dtype=torch.float64), persistent=False)
        self.measure, self.largest = measure, whole(space.largest)

    def forward(self, g_DN: Tensor) -> Tensor:
        """Return the expected cost, a float64 scalar, in MACs for one image or in params."""
        g_out_DN = g_DN.double()
        g_in_DN = torch.cat([self.get_buffer("stem"), g_out_DN[:-1]])
        given_input_DN = (g_in_DN.unsqueeze(2) * self.get_buffer("tables")).sum(dim=1)
        return (given_input_DN * g_out_DN).sum()

    def relative(self, expected: Tensor, *, exponent: float = 1.0, target: float | Tensor | None = None) -> Tensor:
        """Return n_f = (expected cost / cost of the widest path)^exponent, in (0, 1], float32.

        With a ``target``, in MACs or params and at most the cost of the widest path, cost below it is worth nothing:
        the expected cost counts as at least the target, and pulls no further once it is there.
        """
        if target is not None:
            expected = expected.clamp(min=target)
        return (expected / self.largest).pow(exponent).float()
