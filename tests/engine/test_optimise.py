"""Section 4.1's schedules: when the rate falls, at any length."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rnascl_cli.engine.optimizer import build_optimizer, learning_rate, set_learning_rate
from rnascl_cli.recipes.settings import SGD, Adam, CosineSchedule, StepSchedule

pytestmark = pytest.mark.unit


def at_epochs(epochs: int, *, steps: int = 1) -> list[float]:
    """The step schedule's rate at the start of each step."""
    return [learning_rate(StepSchedule(), 0.1, step / (epochs * steps)) for step in range(epochs * steps)]


def test_a_tenth_at_epochs_75_and_90_of_100() -> None:
    assert at_epochs(100) == pytest.approx([0.1] * 75 + [0.01] * 15 + [0.001] * 10)


@pytest.mark.parametrize(("epochs", "first", "second"), [(200, 150, 180), (20, 15, 18), (300, 225, 270)])
def test_other_lengths_scale(epochs: int, first: int, second: int) -> None:
    rates = at_epochs(epochs)
    assert rates == pytest.approx([0.1] * first + [0.01] * (second - first) + [0.001] * (epochs - second))


def test_short_runs_fall_within_an_epoch() -> None:
    # 10 epochs of 4 steps: 75 % is step 30, the middle of epoch 7; 90 % is step 36, the start of epoch 9.
    assert at_epochs(10, steps=4) == pytest.approx([0.1] * 30 + [0.01] * 6 + [0.001] * 4)


@pytest.mark.parametrize("epochs", range(1, 400, 7))
def test_rounding_never_delays_the_fall(epochs: int) -> None:
    for steps in (1, 3, 391):
        total = epochs * steps
        for numerator, denominator in ((3, 4), (9, 10)):
            at = -(-numerator * total // denominator)  # the first step at or after the milestone
            if 0 < at < total:
                assert learning_rate(StepSchedule(), 1.0, at / total) < learning_rate(
                    StepSchedule(), 1.0, (at - 1) / total
                )


def test_own_milestones_and_factor() -> None:
    schedule = StepSchedule(milestones=(0.5,), factor=0.2)
    assert [learning_rate(schedule, 1.0, share) for share in (0.0, 0.49, 0.5, 1.0)] == [1.0, 1.0, 0.2, 0.2]
    assert learning_rate(StepSchedule(milestones=()), 1.0, 0.99) == 1.0


def test_cosine_by_hand() -> None:
    found = [learning_rate(CosineSchedule(kind="cosine"), 0.05, share) for share in (0, 1 / 3, 0.5, 2 / 3, 1)]
    assert found == pytest.approx([0.05, 0.0375, 0.025, 0.0125, 0.0], abs=1e-12)


def test_sgd_has_the_papers_settings() -> None:
    optimiser = build_optimizer(nn.Linear(2, 2).parameters(), SGD())
    assert isinstance(optimiser, torch.optim.SGD)
    group = optimiser.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.1, 0.9, 2e-4, False)


def test_adam_has_the_authors_settings() -> None:
    optimiser = build_optimizer(nn.Linear(2, 2).parameters(), Adam(name="adam"))
    assert isinstance(optimiser, torch.optim.Adam)
    group = optimiser.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.1, (0.9, 0.999), 1e-4)


def test_the_rate_is_set_in_every_group() -> None:
    optimiser = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    optimiser.add_param_group({"params": list(nn.Linear(2, 2).parameters()), "lr": 3.0})
    set_learning_rate(optimiser, 0.5)
    assert [group["lr"] for group in optimiser.param_groups] == [0.5, 0.5]
