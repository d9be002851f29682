"""Eq. (1): the distance between student and teacher attention maps.

Shape suffixes: B images, S student layers, T teacher layers, L layers of either, P pixels of a map.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

_TINY = 1e-12


def unit_maps(maps_BLP: Tensor, *, over: Literal["image", "batch"] = "image") -> Tensor:
    """Return F(A) / ||F(A)||_2 for every layer.

    Args:
        maps_BLP: Attention maps.
        over: The norm is taken per image (default), or over the whole batch as in the authors' code.

    Returns:
        Unit maps of the same shape; a map that is all zero stays zero.
    """
    maps_BLP = maps_BLP.float()
    if over == "image":
        squares = maps_BLP.square().sum(dim=2, keepdim=True)
    else:
        squares = maps_BLP.square().sum(dim=(0, 2), keepdim=True)
    # Not norm(): its gradient at zero is NaN. An energy map's norm below 1e-12 is a dead layer.
    return maps_BLP * squares.clamp(min=_TINY**2).rsqrt()


def pairwise_distances(student_BSP: Tensor, teacher_BTP: Tensor) -> Tensor:
    """Return mean_b || s_bi - t_bj ||_2 for all pairs of layers, by one batched matrix product.

    Args:
        student_BSP: Unit maps of the student's layers.
        teacher_BTP: Unit maps of the teacher's layers.

    Returns:
        Distances (S, T), each in [0, 2].
    """
    # ||s - t||^2 = ||s||^2 + ||t||^2 - 2 s.t
    products_BST = torch.bmm(student_BSP, teacher_BTP.transpose(1, 2))
    s_BS1 = student_BSP.square().sum(dim=2).unsqueeze(2)
    t_B1T = teacher_BTP.square().sum(dim=2).unsqueeze(1)
    return _root(s_BS1 + t_B1T - 2 * products_BST).mean(dim=0)


def tutor_distances(student_BSP: Tensor, tutors_BSP: Tensor) -> Tensor:
    """Return mean_b || s_bi - t_bi ||_2 where each student layer has its own tutor already beside it.

    Args:
        student_BSP: Unit maps of the student's layers.
        tutors_BSP: Unit maps of their tutors.

    Returns:
        Distances (S,), each in [0, 2].
    """
    return _root((student_BSP - tutors_BSP).square().sum(dim=2)).mean(dim=0)


def attention_loss(g_ST: Tensor, distances_ST: Tensor) -> Tensor:
    """Return eq. (1): (1 / (n_s n_t)) sum_ij g_ij distance_ij, a scalar."""
    return (g_ST * distances_ST).sum() / g_ST.numel()


def tutored_attention_loss(distances_S: Tensor, *, teacher_layers: int) -> Tensor:
    """Return eq. (1) for one-hot g: each student layer has one tutor, the divisor stays n_s n_t."""
    return distances_S.sum() / (distances_S.numel() * teacher_layers)


def _root(squared: Tensor) -> Tensor:
    # The gradient of sqrt at 0 is infinite; below the clamp it is 0.
    return squared.clamp(min=_TINY).sqrt()
