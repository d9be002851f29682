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


def pairwise_distances(
    products_BST: Tensor, squares_BS: Tensor, teacher_BTP: Tensor, *, over: Literal["image", "batch"] = "image"
) -> Tensor:
    """Return mean_b || s_bi / ||s_i|| - t_bj ||_2 for all pairs of layers, from the maps' inner products.

    The student's norms are divided out of the products, which are far smaller than the maps.

    Args:
        products_BST: <s_bi, t_bj>, as :meth:`rnascl_cli.models.attention_maps.LayerMaps.inner_products` gives them.
        squares_BS: ||s_bi||^2; the student's maps may be of any norm.
        teacher_BTP: t, unit maps of the teacher's layers, without gradient.
        over: The student's norm, as in :func:`unit_maps`.

    Returns:
        Distances (S, T), each in [0, 2].
    """
    squares_BS1 = squares_BS.unsqueeze(2)
    squared_norm = squares_BS1 if over == "image" else squares_BS1.sum(dim=0, keepdim=True)
    scale = squared_norm.clamp(min=_TINY**2).rsqrt()
    # 1, but 0 of a dead layer.
    t_B1T = torch.linalg.vector_norm(teacher_BTP, dim=2).square().unsqueeze(1)
    # ||s - t||^2 = ||s||^2 + ||t||^2 - 2 s.t
    return _root(squares_BS1 * scale.square() + t_B1T - 2 * products_BST * scale).mean(dim=0)


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
