"""Normalisation as the first layer of a model: outside a model, images lie in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Normalise(nn.Module):
    """Map pixels x in [0, 1] to (x - mean) / std, channel by channel.

    The constants are buffers outside the state dict: they are written in a file's header, where they can be
    read without the tensors, and so a state dict holds learned numbers only.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float] = (0.0, 0.0, 0.0), std: Sequence[float] = (1.0, 1.0, 1.0)) -> None:
        super().__init__()
        if min(std) <= 0:
            raise ValueError(f"std must be positive, got {tuple(std)}")
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Normalise images of shape (B, 3, H, W) in [0, 1]."""
        return (x_BCHW - self.mean) / self.std

    def constants(self) -> dict[str, list[float]]:
        """Return mean and std as plain lists, for a file header."""
        return {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}
