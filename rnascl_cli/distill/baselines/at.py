"""AT: where the network looks, at the end of each stage (Zagoruyko and Komodakis 2017, activation-based).

Shape suffixes: B images, C channels, H height, W width, P pixels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F


def attention_transfer_loss(stages: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the sum over the stages of the mean squared difference between the unit maps of student and teacher.

    The map of A is Q(A) = mean_c A_c^2, flattened and divided by its L2 norm per image; the mean is over images and
    pixels. (The paper's eq. 2 has the L2 distance; its code, and with it the weight 1000, this.)

    Args:
        stages: Features of student and teacher (B, C, H, W) of each pair of stages; of the larger ones a part of the
            area is averaged, so that both have the same pixels.
    """
    terms = []
    for student_BCHW, teacher_BCHW in stages:
        student, teacher = same_side(student_BCHW, teacher_BCHW)
        terms.append((_map(student) - _map(teacher)).square().mean())
    return torch.stack(terms).sum()


def same_side(one_BCHW: Tensor, other_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return both features at the smaller height and width of the two, by adaptive average pooling."""
    height, width = (min(sizes) for sizes in zip(one_BCHW.shape[2:], other_BCHW.shape[2:], strict=True))
    one, other = (
        features if features.shape[2:] == (height, width) else F.adaptive_avg_pool2d(features, (height, width))
        for features in (one_BCHW, other_BCHW)
    )
    return one, other


def _map(features_BCHW: Tensor) -> Tensor:
    energy_BP = features_BCHW.square().mean(dim=1).flatten(1)
    return F.normalize(energy_BP, dim=1)  # an all-zero map stays zero
