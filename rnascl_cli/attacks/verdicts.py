"""What is counted: which images are classified rightly, which perturbed images count as breaking, and how sure.

Shape suffixes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rnascl_cli.attacks.interface import Norm
from rnascl_cli.attacks.protocol import AttackSpace

ROUNDING = 1e-6
"""How far beyond its bound a float32 number of about 1 may come by rounding."""
Z_95 = 1.959963984540054


def right(logits_BK: Tensor, y_B: Tensor) -> Tensor:
    """Return which images have their label as the largest logit; logits that are not finite are wrong."""
    return (logits_BK.argmax(dim=1) == y_B) & logits_BK.isfinite().all(dim=1)


def allowed(z_BCHW: Tensor, clean_BCHW: Tensor, *, attack_space: AttackSpace, norm: Norm, eps: float) -> Tensor:
    """Return which perturbed images are finite, valid and inside the ball, up to rounding.

    The ball's centre is the clean image clipped to the domain's valid range. Only the authors' own clamp
    makes that another point; clipping brings no two points further apart.
    """
    delta_BD = (z_BCHW - attack_space.clip(clean_BCHW)).flatten(1)
    if norm == "Linf":
        inside_B = delta_BD.abs().amax(dim=1) <= eps + ROUNDING
    else:
        inside_B = torch.linalg.vector_norm(delta_BD, dim=1) <= eps * (1 + 1e-5) + ROUNDING
    valid_B = ((z_BCHW - attack_space.clip(z_BCHW)).abs() <= ROUNDING).flatten(1).all(dim=1)
    return inside_B & valid_B & z_BCHW.isfinite().flatten(1).all(dim=1)


def wilson_interval(right_count: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval for a share of which ``right_count`` of ``n`` were seen (Wilson 1927).

    Unlike the normal approximation it stays inside [0, 1] and is not empty at 0 or ``n``.
    """
    assert n > 0
    assert 0 <= right_count <= n
    share, z2 = right_count / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if right_count == 0 else max(0.0, centre - half)
    high = 1.0 if right_count == n else min(1.0, centre + half)
    return low, high
