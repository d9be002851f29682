"""n_f of eq. (2): to the unit at one-hot weights, differentiable elsewhere."""

from __future__ import annotations

import itertools
import random
from typing import Literal

import pytest
import torch
from torch import Tensor

from rnascl_cli.distill.expected_cost import ExpectedCost
from rnascl_cli.spaces import SPACES, SearchSpace, SpaceStage, network_cost
from tests.models.slimming import one_hot, padded

pytestmark = pytest.mark.unit

Measure = Literal["macs", "params"]
MEASURES: tuple[Measure, Measure] = ("macs", "params")


def soft(space: SearchSpace, seed: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Gumbel weights (D, N) that have not decided."""
    stream = torch.Generator().manual_seed(seed)
    return padded(
        [
            torch.softmax(torch.randn(len(choices), generator=stream, dtype=dtype), dim=0)
            for choices in space.block_choices
        ]
    )


def n_f(cost: ExpectedCost, g_DN: Tensor, **settings: float) -> Tensor:
    """n_f of Gumbel weights."""
    return cost.relative(cost(g_DN), **settings)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", SPACES)
def test_one_hot_is_the_networks_cost_to_the_unit(name: str, measure: Measure) -> None:
    space = SPACES[name]
    expected = ExpectedCost(space, num_classes=10, input_size=space.input_size, measure=measure)
    pick = random.Random(5)
    for widths in (space.smallest, space.largest, [pick.choice(choices) for choices in space.block_choices]):
        cost = network_cost(space, widths, num_classes=10)
        assert expected(one_hot(space, widths)).item() == getattr(cost, measure)


@pytest.mark.parametrize("measure", MEASURES)
def test_soft_weights_give_the_mean_over_all_networks(measure: Measure) -> None:
    space = SearchSpace("three", (SpaceStage(2, 1, (16, 12)), SpaceStage(1, 2, (32, 24, 20))), 32)
    expected = ExpectedCost(space, num_classes=7, input_size=20, measure=measure)
    weights = soft(space, 1)
    mean = 0.0
    for picks in itertools.product(*(range(len(choices)) for choices in space.block_choices)):
        widths = [choices[pick] for choices, pick in zip(space.block_choices, picks, strict=True)]
        chance = 1.0
        for row, pick in zip(weights, picks, strict=True):
            chance *= row[pick].item()
        mean += chance * getattr(network_cost(space, widths, num_classes=7, input_size=20), measure)
    assert expected(weights).item() == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("name", ["S3", "IS"])
def test_gradient_against_finite_differences(name: str) -> None:
    space = SPACES[name]
    expected = ExpectedCost(space, num_classes=10, input_size=32)
    weights = soft(space, 2).requires_grad_(True)
    expected(weights).backward()
    assert weights.grad is not None
    step = 1e-4
    for block in (0, 1, len(weights) // 2, len(weights) - 1):
        for choice in range(len(space.block_choices[block])):
            values = []
            for sign in (1, -1):
                moved = weights.detach().clone()
                moved[block, choice] += sign * step
                values.append(expected(moved).item())
            assert weights.grad[block, choice].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)


def test_gradient_reaches_float32_weights() -> None:
    space = SPACES["S3"]
    weights = soft(space, 3, dtype=torch.float32).requires_grad_(True)
    found = n_f(ExpectedCost(space, num_classes=10, input_size=32), weights)
    found.backward()  # type: ignore[no-untyped-call]
    assert found.dtype == torch.float32
    assert weights.grad is not None
    for row, choices in zip(weights.grad.tolist(), space.block_choices, strict=True):
        # Wider choices cost more: the gradient falls along the row.
        assert row[: len(choices)] == sorted(row[: len(choices)], reverse=True)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", SPACES)
def test_n_f_lies_in_0_to_1(name: str, measure: Measure) -> None:
    space = SPACES[name]
    cost = ExpectedCost(space, num_classes=10, input_size=space.input_size, measure=measure)
    low, high = network_cost(space, space.smallest, num_classes=10), network_cost(space, space.largest, num_classes=10)
    floor = getattr(low, measure) / getattr(high, measure)
    assert n_f(cost, one_hot(space, space.largest)).item() == 1.0
    assert n_f(cost, one_hot(space, space.smallest)).item() == pytest.approx(floor, rel=1e-6)
    for seed in range(3):
        assert floor < n_f(cost, soft(space, seed)).item() < 1.0


def test_the_exponent() -> None:
    space = SPACES["S3"]
    cost = ExpectedCost(space, num_classes=10, input_size=32)
    weights = soft(space, 4)
    plain = n_f(cost, weights).item()
    assert n_f(cost, weights, exponent=0.5).item() == pytest.approx(plain**0.5, rel=1e-6)
    assert n_f(cost, weights, exponent=0.0).item() == 1.0


def test_it_holds_nothing_to_learn_or_save() -> None:
    cost = ExpectedCost(SPACES["S3"], num_classes=10, input_size=32)
    assert not list(cost.parameters())
    assert not cost.state_dict()


def test_below_the_target_smaller_is_no_better() -> None:
    space = SPACES["S3"]
    cost = ExpectedCost(space, num_classes=10, input_size=32)
    small, large = one_hot(space, space.smallest), one_hot(space, space.largest)
    target = 6e6  # S3 spans 4.74 to 7.87 M MACs
    assert n_f(cost, small, target=target).item() == pytest.approx(target / cost.largest, rel=1e-6)
    assert n_f(cost, large, target=target).item() == 1.0
    for weights in (small, large):
        n_f(cost, weights.requires_grad_(True), target=target).backward()  # type: ignore[no-untyped-call]
    assert small.grad is None or not small.grad.any()
    assert large.grad is not None
    assert large.grad.any(dim=1).all()
