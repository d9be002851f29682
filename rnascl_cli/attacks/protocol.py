"""The space in which perturbations are added: pixels, or normalized inputs as in the authors' code.

Shape suffixes: B images, C channels, H height, W width. ``x`` are pixels in [0, 1], ``z`` are the coordinates that an
attack changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Bound = Tensor | float


@dataclass(frozen=True, eq=False)
class AttackSpace:
    """The space in which eps is measured: ``z = (x - mean) / std``.

    Attributes:
        protocol: Its name.
        mean: Of the normalization, broadcastable to images; 0 for pixels.
        std: Likewise; 1 for pixels.
        lowest: Smallest valid ``z``, a number or broadcastable to images.
        highest: Largest valid ``z``.
    """

    protocol: Literal["pixel", "paper-code"] = "pixel"
    mean: Bound = 0.0
    std: Bound = 1.0
    lowest: Bound = 0.0
    highest: Bound = 1.0

    def from_pixels(self, x_BCHW: Tensor) -> Tensor:
        """Return the coordinates ``z`` of images in [0, 1]."""
        return x_BCHW if self.protocol == "pixel" else (x_BCHW - self.mean) / self.std

    def to_pixels(self, z_BCHW: Tensor) -> Tensor:
        """Return the pixels of ``z``, unclamped.

        Rounding moves a black pixel to about -1e-8, where a clamp would make its gradient zero.
        """
        return z_BCHW if self.protocol == "pixel" else z_BCHW * self.std + self.mean

    def pixels(self, z_BCHW: Tensor) -> Tensor:
        """Return the images of ``z``, clamped to [0, 1]."""
        return self.to_pixels(z_BCHW).clamp(0.0, 1.0)

    def clip(self, z_BCHW: Tensor) -> Tensor:
        """Return the nearest valid ``z``."""
        lowest, highest = (torch.as_tensor(bound).to(z_BCHW) for bound in (self.lowest, self.highest))
        return torch.maximum(torch.minimum(z_BCHW, highest), lowest)


PIXEL = AttackSpace()


def normalised_attack_space(mean: Tensor, std: Tensor, *, clamp_to_unit: bool) -> AttackSpace:
    """Return the space of the ``paper-code`` protocol: eps is measured on normalized inputs.

    Its eps is ``eps * std`` in pixels, about a quarter of eps for CIFAR-10.

    Args:
        mean: The model's normalization constants, shape ``(1, C, 1, 1)``.
        std: Likewise.
        clamp_to_unit: Clamp normalized values to [0, 1] as the authors' code does, which cuts off every pixel
            below the mean; otherwise to the values of pixels in [0, 1].
    """
    if clamp_to_unit:
        return AttackSpace("paper-code", mean, std)
    return AttackSpace("paper-code", mean, std, lowest=(0.0 - mean) / std, highest=(1.0 - mean) / std)
