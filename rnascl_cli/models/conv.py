"""Convolutions that take the fastest way to their numbers.

Shape suffixes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """``nn.Conv2d``; where it is depthwise, strided, and given bf16 on a CPU, it computes in float32.

    oneDNN has no kernel for the input gradient of a strided depthwise convolution in bf16, and falls back to a
    reference that takes some 50 to 100 times as long as its float32 kernel (``benchmarks/precision.py`` times such a
    layer, forward and backward). By its input the layer knows that it is in a bf16 network: one that is given float32
    is left alone.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        depthwise = self.groups == self.in_channels > 1
        if not (input.is_cpu and input.dtype == torch.bfloat16 and depthwise and max(self.stride) > 1):
            convolved: Tensor = super()._conv_forward(input, weight, bias)
            return convolved
        with torch.autocast("cpu", enabled=False):  # which would round the numbers again
            exact: Tensor = super()._conv_forward(input.float(), weight.float(), None if bias is None else bias.float())
        return exact.to(input.dtype)


def use_fast_depthwise_bf16(model: nn.Module) -> nn.Module:
    """Make every plain ``nn.Conv2d`` of a model a :class:`Conv2d`, in place; return it."""
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = Conv2d
    return model
