"""A convolution's numbers are torch's, whichever way they come."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rnascl_cli.models.conv import Conv2d, use_fast_depthwise_bf16
from rnascl_cli.models.student import Student
from rnascl_cli.models.supernet import Supernet
from rnascl_cli.spaces import SPACES

pytestmark = pytest.mark.unit


def results(layer: nn.Conv2d, x_BCHW: torch.Tensor, slope_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Output and slopes under autocast."""
    x_BCHW = x_BCHW.clone().requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_BCHW = layer(x_BCHW)
    y_BCHW.backward(slope_BCHW)
    assert x_BCHW.grad is not None
    assert layer.weight.grad is not None
    return y_BCHW.detach(), x_BCHW.grad, layer.weight.grad


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_a_depthwise_convolution_under_autocast(stride: int, bias: bool, generator: torch.Generator) -> None:
    ours = Conv2d(8, 8, 3, stride, padding=1, groups=8, bias=bias)
    theirs = nn.Conv2d(8, 8, 3, stride, padding=1, groups=8, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x_BCHW = torch.randn(4, 8, 6, 6, generator=generator).bfloat16()
    slope_BCHW = torch.randn(4, 8, 6 // stride, 6 // stride, generator=generator).bfloat16()
    found, expected = results(ours, x_BCHW, slope_BCHW), results(theirs, x_BCHW, slope_BCHW)
    assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in expected]
    assert found[0].dtype == found[1].dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.05)  # a few roundings to 8 bits


def test_only_what_falls_back_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[torch.dtype, bool]] = []
    plain = nn.Conv2d._conv_forward

    def noting(self: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        given.append((x.dtype, torch.is_autocast_enabled("cpu")))
        convolved: torch.Tensor = plain(self, x, weight, bias)
        return convolved

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", noting)
    x_BCHW = torch.rand(2, 4, 4, 4)
    falling = [Conv2d(4, 4, 3, 2, groups=4), Conv2d(4, 8, 3, (1, 2), groups=4)]
    others = [Conv2d(4, 4, 3, 1, groups=4), Conv2d(4, 4, 3, 2), Conv2d(4, 4, 3, 2, groups=2), Conv2d(4, 4, 1)]
    for layer in (*falling, *others):
        layer(x_BCHW)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for layer in (*falling, *others):
            layer(x_BCHW.bfloat16())
    plainly, exactly, as_given = (torch.float32, False), (torch.float32, False), (torch.bfloat16, True)
    assert given == [plainly] * 6 + [exactly] * 2 + [as_given] * 4


def test_a_foreign_network_is_given_these() -> None:
    class Own(nn.Conv2d):
        """Does more than a convolution."""

    network = nn.Sequential(nn.Conv2d(4, 4, 3, 2, groups=4), nn.Sequential(Own(4, 4, 1), nn.BatchNorm2d(4)))
    x_BCHW = torch.rand(2, 4, 6, 6)
    before = network(x_BCHW)
    assert use_fast_depthwise_bf16(network) is network
    assert [type(module) for module in network.modules() if isinstance(module, nn.Conv2d)] == [Conv2d, Own]
    assert torch.equal(network(x_BCHW), before)


def test_every_convolution_of_a_space_is_of_this_kind() -> None:
    space = SPACES["S3"]
    for network in (Supernet(space, num_classes=2), Student(space, space.smallest, num_classes=2)):
        convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
        assert convolutions
        assert all(isinstance(module, Conv2d) for module in convolutions)
