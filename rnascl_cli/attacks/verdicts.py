"""Verdicts: which images are classified correctly, and which perturbations are valid.

Shape suffixes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rnascl_cli.attacks.checks import Norm
from rnascl_cli.attacks.protocol import AttackSpace

ROUNDING = 1e-6
"""Tolerance for float32 rounding of numbers of about 1."""


def right(logits_BK: Tensor, y_B: Tensor) -> Tensor:
    """Return which images are classified correctly; those with a logit that is not finite are not."""
    return (logits_BK.argmax(dim=1) == y_B) & logits_BK.isfinite().all(dim=1)


def allowed(z_BCHW: Tensor, clean_BCHW: Tensor, *, attack_space: AttackSpace, norm: Norm, eps: float) -> Tensor:
    """Return which perturbed images are finite, valid and inside the ball, up to rounding.

    The center of the ball is the clean image clipped to the valid range, which differs from the clean image only with
    the authors' own clamp (clipping never increases a distance).
    """
    delta_BD = (z_BCHW - attack_space.clip(clean_BCHW)).flatten(1)
    if norm == "Linf":
        inside_B = delta_BD.abs().amax(dim=1) <= eps + ROUNDING
    else:
        inside_B = torch.linalg.vector_norm(delta_BD, dim=1) <= eps * (1 + 1e-5) + ROUNDING
    valid_B = ((z_BCHW - attack_space.clip(z_BCHW)).abs() <= ROUNDING).flatten(1).all(dim=1)
    return inside_B & valid_B & z_BCHW.isfinite().flatten(1).all(dim=1)
