"""Means of weights: against torch's ``AveragedModel``, against sums by hand, and through a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rnascl_cli.engine.weight_averaging import WeightAverage
from rnascl_cli.recipes.settings import EMA, SWA

pytestmark = pytest.mark.unit


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))


def walk(module: nn.Module, steps: int, after: Callable[[], object]) -> list[dict[str, Tensor]]:
    """Take steps of SGD with momentum; return the state after each."""
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    stream = torch.Generator().manual_seed(0)
    states = []
    for _ in range(steps):
        optimiser.zero_grad()
        module(torch.rand(4, 3, 8, 8, generator=stream)).square().mean().backward()
        optimiser.step()
        after()
        states.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
    return states


def mean_of(average: WeightAverage, module: nn.Module) -> dict[str, Tensor]:
    with average.in_place():
        return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_ema_by_hand() -> None:
    module = network()
    average = WeightAverage(module, EMA(decay=0.4), epochs=1)
    states = walk(module, 8, average.after_step)
    expected = {name: tensor.double() for name, tensor in states[0].items()}
    # d = min(0.4, n / (9 + n)) after step n + 1: 1/10, 2/11, ..., 6/15, and then 0.4.
    for state, decay in zip(states[1:], [1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 0.4], strict=True):
        for name, tensor in state.items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
    found = mean_of(average, module)
    for name, tensor in found.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, expected[name].float())
    assert found["1.num_batches_tracked"] == 8  # counts are not averaged


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_the_mean_is_that_of_torch(kind: str) -> None:
    module = network()

    def ema(averaged: Any, live: Any, count: Any) -> None:
        decay = min(0.9, count.item() / (9 + count.item()))
        for one, two in zip(averaged, live, strict=True):
            one.copy_(two if not one.is_floating_point() else one * decay + two * (1 - decay))

    theirs = AveragedModel(module, multi_avg_fn=ema if kind == "ema" else None, use_buffers=True)
    average = WeightAverage(module, EMA(decay=0.9) if kind == "ema" else SWA(kind="swa", start=0.0), epochs=12)
    epoch = iter(range(12))

    def both() -> None:
        theirs.update_parameters(module)
        average.after_step()
        average.after_epoch(next(epoch))

    walk(module, 12, both)
    found, expected = mean_of(average, module), theirs.module.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, expected[name])


def test_swa_takes_the_ends_of_the_last_epochs() -> None:
    module = network()
    average = WeightAverage(module, SWA(kind="swa", start=0.5), epochs=4)
    states = []
    for epoch in range(4):
        states.append(walk(module, 2, average.after_step)[-1])
        average.after_epoch(epoch)
        if epoch == 1:  # nothing to average yet
            assert all(torch.equal(tensor, states[1][name]) for name, tensor in mean_of(average, module).items())
    for name, tensor in mean_of(average, module).items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (states[2][name] + states[3][name]) / 2)


def test_the_last_epoch_always_counts() -> None:
    module = network()
    average = WeightAverage(module, SWA(kind="swa", start=0.999), epochs=1)
    before = walk(module, 1, lambda: None)[0]
    average.after_epoch(0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in mean_of(average, module).items())


def test_the_module_is_put_back_to_the_bit_whatever_happens() -> None:
    module = network()
    average = WeightAverage(module, EMA(), epochs=1)
    last = walk(module, 5, average.after_step)[-1]
    inside: list[Tensor] = []

    def fail_inside() -> None:
        with average.in_place():
            inside.append(module.state_dict()["0.weight"].clone())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert not torch.equal(inside[0], last["0.weight"])
    assert all(torch.equal(tensor, last[name]) for name, tensor in module.state_dict().items())
    average.put()
    assert not torch.equal(module.state_dict()["0.weight"], last["0.weight"])


def test_a_checkpoint_goes_on_to_the_same_bits() -> None:
    whole, half, resumed = network(), network(), network()
    straight = WeightAverage(whole, EMA(decay=0.9), epochs=1)
    walk(whole, 5, straight.after_step)
    # Without momentum's state the walks would differ, so only the mean's own state goes through the checkpoint here.
    first, second = (WeightAverage(module, EMA(decay=0.9), epochs=1) for module in (half, resumed))
    states = walk(half, 5, lambda: None)
    for state in states[:2]:
        half.load_state_dict(state)
        first.after_step()
    second.load_state_dict(first.state_dict())
    for state in states[2:]:
        resumed.load_state_dict(state)
        second.after_step()
    one, two = mean_of(straight, whole), mean_of(second, resumed)
    assert all(torch.equal(one[name], two[name]) for name in one)
