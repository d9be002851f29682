"""n_f with targets: what it comes to, and which way it pulls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rnascl_cli.distill.cost_penalty import CostPenalty
from rnascl_cli.distill.expected_cost import CostMeasure, ExpectedCost
from rnascl_cli.spaces import SPACES, network_cost
from tests.models.slimming import one_hot

pytestmark = pytest.mark.unit

SPACE = SPACES["S3"]
SMALLEST, LARGEST = (network_cost(SPACE, widths, num_classes=10) for widths in (SPACE.smallest, SPACE.largest))


def pressure(aims: dict[CostMeasure, float | None], *, exponent: float = 1.0) -> CostPenalty:
    costs = [ExpectedCost(SPACE, num_classes=10, input_size=32, measure=measure) for measure in aims]
    return CostPenalty(costs, targets=list(aims.values()), exponent=exponent)


def n_f(found: CostPenalty, widths: list[int], level: float | None = None) -> float:
    value, _ = found(one_hot(SPACE, widths), None if level is None else torch.tensor(level, dtype=torch.float64))
    return float(value)


def test_without_a_target_it_is_the_relative_cost() -> None:
    found, middle = pressure({"params": None}, exponent=2.0), [16] * 3 + [24] * 3 + [60] * 3
    cost = network_cost(SPACE, middle, num_classes=10)
    assert n_f(found, middle) == pytest.approx((cost.params / LARGEST.params) ** 2)
    assert found(one_hot(SPACE, middle))[1].item() == cost.params
    assert found.measure == "params"


def test_below_the_target_smaller_is_no_better() -> None:
    found = pressure({"macs": 6e6})
    assert n_f(found, SPACE.smallest) == pytest.approx(6e6 / LARGEST.macs)
    assert n_f(found, SPACE.largest) == 1.0


def test_of_two_the_larger_overshoot_counts() -> None:
    macs, params = 1.02 * SMALLEST.macs, 1.02 * SMALLEST.params
    found = pressure({"macs": macs, "params": params}, exponent=0.5)
    worst = max(LARGEST.macs / macs, LARGEST.params / params)
    assert n_f(found, SPACE.largest) == 1.0
    assert n_f(found, SPACE.smallest) == pytest.approx((1 / worst) ** 0.5)  # within both
    # Early blocks have many MACs, late ones many params.
    for widths, larger in (([16] * 3 + [20] * 3 + [52] * 3, 0), ([12] * 3 + [20] * 3 + [64] * 3, 1)):
        cost = network_cost(SPACE, widths, num_classes=10)
        overshoots = cost.macs / macs, cost.params / params
        assert overshoots.index(max(overshoots)) == larger
        assert n_f(found, widths) == pytest.approx((max(overshoots) / worst) ** 0.5)


def gradient(found: CostPenalty, widths: list[int], level: float | None = None) -> Tensor:
    g_DN = one_hot(SPACE, widths).requires_grad_(True)
    found(g_DN, None if level is None else torch.tensor(level, dtype=torch.float64))[0].backward()
    assert g_DN.grad is not None
    return g_DN.grad


def test_it_pulls_above_the_budget_and_not_below_it() -> None:
    both = pressure({"macs": 1.2 * SMALLEST.macs, "params": 1.2 * SMALLEST.params})
    for found in (pressure({"macs": 1.2 * SMALLEST.macs}), both):
        assert not gradient(found, SPACE.smallest).any()
        pull = gradient(found, SPACE.largest)
        assert (pull[:, 0] > pull[:, 1]).all()  # wider choices cost more
    assert gradient(pressure({"macs": None}), SPACE.smallest).any()


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_target_at_or_above_the_widest_network_asks_for_nothing(factor: float) -> None:
    for aims in ({"macs": factor * LARGEST.macs}, {"macs": factor * LARGEST.macs, "params": factor * LARGEST.params}):
        found = pressure(aims)  # type: ignore[arg-type]
        assert (n_f(found, SPACE.smallest), n_f(found, SPACE.largest)) == (1.0, 1.0)


@pytest.mark.parametrize("aims", [{"macs": None}, {"macs": None, "params": 1.1 * SMALLEST.params}])
def test_a_level_stands_in_for_the_first_target(aims: dict[CostMeasure, float | None]) -> None:
    found, level = pressure(aims), 1.3 * SMALLEST.macs
    fixed = pressure({**aims, "macs": level})
    for widths in (SPACE.smallest, SPACE.largest, [16, 12, 16, 20, 32, 24, 64, 52, 60]):
        assert n_f(found, widths, level) == pytest.approx(n_f(fixed, widths))
        assert torch.allclose(gradient(found, widths, level), gradient(fixed, widths))
