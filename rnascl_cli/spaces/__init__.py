"""The search spaces of Tables 7 and 8 as data, and what any network of them costs."""

from rnascl_cli.spaces.cost import Cost, block_costs, final_side, network_cost
from rnascl_cli.spaces.tables import SPACES, SearchSpace, Stage, space_named

__all__ = ["SPACES", "Cost", "SearchSpace", "Stage", "block_costs", "final_side", "network_cost", "space_named"]
