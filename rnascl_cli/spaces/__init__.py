"""The search spaces of Tables 7 and 8 as data, what any network of them costs, and the best one under a budget."""

from rnascl_cli.spaces.budget import Budget, DerivedNetwork, NetworkSpace
from rnascl_cli.spaces.cost import Cost, block_costs, final_side, network_cost
from rnascl_cli.spaces.tables import SPACES, SearchSpace, SpaceStage, space_named

__all__ = [
    "SPACES",
    "Budget",
    "Cost",
    "DerivedNetwork",
    "NetworkSpace",
    "SearchSpace",
    "SpaceStage",
    "block_costs",
    "final_side",
    "network_cost",
    "space_named",
]
