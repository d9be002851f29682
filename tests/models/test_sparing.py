"""Activations in place: only outside of autograd, and with the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rnascl_cli.models.attention_maps import record_attention_maps
from rnascl_cli.teachers.architectures.inplace import relu, relu_of_sum
from rnascl_cli.teachers.architectures.resnet import BasicBlock, Bottleneck, CifarResNet
from rnascl_cli.teachers.architectures.wide_resnet import WideResNet

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("grad", [True, False])
def test_the_input_is_overwritten_outside_of_autograd_only(grad: bool) -> None:
    x, y = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    one, other, untouched = x.clone(), x.clone(), y.clone()
    with torch.set_grad_enabled(grad):
        assert torch.equal(relu(one), F.relu(x))
        assert torch.equal(relu_of_sum(other, y), F.relu(x + y))
    assert torch.equal(one, x) is torch.equal(other, x) is grad
    assert torch.equal(y, untouched)


def test_a_sum_of_two_types_has_the_wider_one() -> None:
    x, y = torch.randn(2, 3).bfloat16(), torch.randn(2, 3)
    with torch.no_grad():
        assert torch.equal(relu_of_sum(x, y), F.relu(x.float() + y))


TEACHERS: dict[str, Callable[[], nn.Module]] = {
    "basic": lambda: CifarResNet(BasicBlock, (2, 1, 1, 1), width=8, num_classes=5),
    "bottleneck": lambda: CifarResNet(Bottleneck, (2, 1, 1, 1), width=8, num_classes=5),
    "wide": lambda: WideResNet(16, 1, num_classes=5),
}


@pytest.mark.parametrize("architecture", TEACHERS)
@pytest.mark.parametrize("tap", ["conv", "norm", "block"])
def test_teachers_give_the_same_logits_and_maps_with_and_without_gradient(architecture: str, tap: str) -> None:
    torch.manual_seed(0)
    model = TEACHERS[architecture]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    x_BCHW = torch.rand(2, 3, 16, 16)
    before_BCHW = x_BCHW.clone()
    with record_attention_maps(model, side=4, source=tap) as recorder:  # type: ignore[arg-type]
        with_BK = model(x_BCHW)
        maps_BLP = recorder.pop()
        with torch.no_grad():
            assert torch.equal(model(x_BCHW), with_BK)
        assert torch.equal(recorder.pop(), maps_BLP)
    assert torch.equal(x_BCHW, before_BCHW)
