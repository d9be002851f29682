"""Convolutions that take the fastest way to their numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """``nn.Conv2d``; where it is strided, in groups, and given bf16 on a CPU, it computes in float32.

    For the input gradient of a strided depthwise convolution in bf16 oneDNN falls back to a reference that takes a
    hundred times as long as its float32 kernel: the two such layers of a search step took a sixth of it
    (``benchmarks/precision.py`` measures that).
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        falls_back = input.is_cpu and input.dtype == torch.bfloat16 and self.groups > 1 and max(self.stride) > 1
        if not falls_back:
            convolved: Tensor = super()._conv_forward(input, weight, bias)
            return convolved
        with torch.autocast("cpu", enabled=False):  # which would round the numbers again
            exact: Tensor = super()._conv_forward(input.float(), weight.float(), None if bias is None else bias.float())
        return exact.to(input.dtype)
