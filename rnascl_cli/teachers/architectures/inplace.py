"""Activations that overwrite their input where no backward pass will read it: less memory to touch, the same numbers.

Shape suffixes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def relu(x_BCHW: Tensor) -> Tensor:
    """Return max(x, 0).

    Args:
        x_BCHW: A tensor that nobody else holds, such as a BatchNorm's output: outside of autograd it is overwritten.
    """
    return F.relu(x_BCHW, inplace=not torch.is_grad_enabled())


def relu_of_sum(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Return max(x + y, 0), the end of a residual block.

    Args:
        x_BCHW: As in :func:`relu`.
        y_BCHW: Of the same shape; not changed.
    """
    if torch.is_grad_enabled() or x_BCHW.dtype != y_BCHW.dtype:  # a sum of two types has the wider one
        return F.relu(x_BCHW + y_BCHW)
    return F.relu_(x_BCHW.add_(y_BCHW))
