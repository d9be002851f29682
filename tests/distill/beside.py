"""What the comparisons of the rival losses with numpy and torchdistill share."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]


def arrays(*tensors: Tensor) -> list[Array]:
    return [tensor.detach().double().numpy() for tensor in tensors]


def slopes(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves, retain_graph=True))


def io(**features: Any) -> dict[str, dict[str, Any]]:
    """What torchdistill's losses read: by module, by side."""
    return {name: {"output": value, "input": value} for name, value in features.items()}
