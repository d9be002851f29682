"""n_f of eq. (2): to the unit at one-hot weights, differentiable elsewhere."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor

from rnascl_cli.distill.expected_cost import ExpectedCost
from rnascl_cli.spaces import SPACES, SearchSpace, Stage, network_cost

pytestmark = pytest.mark.unit

Measure = Literal["macs", "params"]
MEASURES: tuple[Measure, Measure] = ("macs", "params")


def one_hot(space: SearchSpace, widths: Sequence[int]) -> list[Tensor]:
    """Gumbel weights that decide on ``widths``."""
    rows = []
    for choices, width in zip(space.block_choices, widths, strict=True):
        row = torch.zeros(len(choices))
        row[choices.index(width)] = 1.0
        rows.append(row)
    return rows


def soft(space: SearchSpace, seed: int, *, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Gumbel weights that have not decided."""
    stream = torch.Generator().manual_seed(seed)
    return [
        torch.softmax(torch.randn(len(choices), generator=stream, dtype=dtype), dim=0)
        for choices in space.block_choices
    ]


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
    space = SearchSpace("three", (Stage(2, 1, (16, 12)), Stage(1, 2, (32, 24, 20))), 32)
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
    weights = [row.requires_grad_(True) for row in soft(space, 2)]
    expected(weights).backward()
    step = 1e-4
    for block in (0, 1, len(weights) // 2, len(weights) - 1):
        slope_of = weights[block].grad
        assert slope_of is not None
        for choice in range(len(weights[block])):
            values = []
            for sign in (1, -1):
                moved = [row.detach().clone() for row in weights]
                moved[block][choice] += sign * step
                values.append(expected(moved).item())
            assert slope_of[choice].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)


def test_gradient_reaches_float32_weights() -> None:
    space = SPACES["S3"]
    weights = [row.requires_grad_(True) for row in soft(space, 3, dtype=torch.float32)]
    n_f = ExpectedCost(space, num_classes=10, input_size=32).relative(weights)
    n_f.backward()  # type: ignore[no-untyped-call]
    assert n_f.dtype == torch.float32
    for row in weights:
        assert row.grad is not None
        # Wider choices cost more: the gradient falls along the row.
        assert row.grad.tolist() == sorted(row.grad.tolist(), reverse=True)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", SPACES)
def test_n_f_lies_in_0_to_1(name: str, measure: Measure) -> None:
    space = SPACES[name]
    cost = ExpectedCost(space, num_classes=10, input_size=space.input_size, measure=measure)
    low, high = network_cost(space, space.smallest, num_classes=10), network_cost(space, space.largest, num_classes=10)
    floor = getattr(low, measure) / getattr(high, measure)
    assert cost.relative(one_hot(space, space.largest)).item() == 1.0
    assert cost.relative(one_hot(space, space.smallest)).item() == pytest.approx(floor, rel=1e-6)
    for seed in range(3):
        assert floor < cost.relative(soft(space, seed)).item() < 1.0


def test_the_exponent() -> None:
    space = SPACES["S3"]
    cost = ExpectedCost(space, num_classes=10, input_size=32)
    weights = soft(space, 4)
    plain = cost.relative(weights).item()
    assert cost.relative(weights, exponent=0.5).item() == pytest.approx(plain**0.5, rel=1e-6)
    assert cost.relative(weights, exponent=0.0).item() == 1.0


def test_it_holds_nothing_to_learn_or_save() -> None:
    cost = ExpectedCost(SPACES["S3"], num_classes=10, input_size=32)
    assert not list(cost.parameters())
    assert not cost.state_dict()


def test_below_the_target_smaller_is_no_better() -> None:
    space = SPACES["S3"]
    cost = ExpectedCost(space, num_classes=10, input_size=32)
    small, large = one_hot(space, space.smallest), one_hot(space, space.largest)
    target = 6e6  # S3 spans 4.74 to 7.87 M MACs
    assert cost.relative(small, target=target).item() == pytest.approx(target / cost.largest, rel=1e-6)
    assert cost.relative(large, target=target).item() == 1.0
    for weights in (small, large):
        for row in weights:
            row.requires_grad_(True)
        cost.relative(weights, target=target).backward()  # type: ignore[no-untyped-call]
    assert all(row.grad is None or not row.grad.any() for row in small)
    assert all(row.grad is not None and row.grad.any() for row in large)
