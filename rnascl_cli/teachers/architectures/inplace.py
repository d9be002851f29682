"""ReLUs that overwrite their input where autograd is off, which saves memory traffic and changes no number.

Shape suffixes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def relu(x_BCHW: Tensor) -> Tensor:
    """Return max(x, 0).

    Args:
        x_BCHW: Overwritten where autograd is off, so it must not be used again (such as a BatchNorm's output).
    """
    return F.relu(x_BCHW, inplace=not torch.is_grad_enabled())


def relu_of_sum(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Return max(x + y, 0), the end of a residual block.

    Args:
        x_BCHW: As in :func:`relu`.
        y_BCHW: Same shape; never changed.
    """
    if torch.is_grad_enabled() or x_BCHW.dtype != y_BCHW.dtype:  # in-place addition would keep the type of x
        return F.relu(x_BCHW + y_BCHW)
    return F.relu_(x_BCHW.add_(y_BCHW))
