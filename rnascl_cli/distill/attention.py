"""Eq. (1): the distance between student and teacher attention maps.

Shape suffixes: B images, S student layers, T teacher layers, L layers of either, P pixels of a map.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_TINY = 1e-12


class _SquaredNorms(torch.autograd.Function):
    """sum_p m_p^2 in one pass over the maps, and one more for its slope; plain autograd makes five."""

    @staticmethod
    def forward(ctx: Any, maps_BLP: Tensor) -> Tensor:
        ctx.save_for_backward(maps_BLP)
        norm_BL: Tensor = torch.linalg.vector_norm(maps_BLP, dim=2)
        return norm_BL.square_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_BL: Tensor) -> Tensor:
        (maps_BLP,) = ctx.saved_tensors
        slope_BLP: Tensor = maps_BLP * slope_BL.mul(2).unsqueeze(2)
        return slope_BLP


def _squared_norms(maps_BLP: Tensor) -> Tensor:
    squares_BL: Tensor = _SquaredNorms.apply(maps_BLP)
    return squares_BL


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
    student_BSP: Tensor, teacher_BTP: Tensor, *, over: Literal["image", "batch"] = "image"
) -> Tensor:
    """Return mean_b || s_bi / ||s_i|| - t_bj ||_2 for all pairs of layers, by one batched matrix product.

    The student's norms are divided out of the products, which are far smaller than the maps.

    Args:
        student_BSP: Maps of the student's layers, of any norm.
        teacher_BTP: Unit maps of the teacher's layers.
        over: The student's norm, as in :func:`unit_maps`.

    Returns:
        Distances (S, T), each in [0, 2].
    """
    products_BST = torch.bmm(student_BSP, teacher_BTP.transpose(1, 2))
    return distances_of_products(products_BST, _squared_norms(student_BSP), teacher_BTP, over=over)


def distances_of_products(
    products_BST: Tensor, squares_BS: Tensor, teacher_BTP: Tensor, *, over: Literal["image", "batch"] = "image"
) -> Tensor:
    """As :func:`pairwise_distances`, from inner products that have been taken already.

    Args:
        products_BST: <s_i, t_j>.
        squares_BS: ||s_i||^2.
        teacher_BTP: Unit maps of the teacher's layers.
        over: As there.
    """
    squares_BS1 = squares_BS.unsqueeze(2)
    squared_norm = squares_BS1 if over == "image" else squares_BS1.sum(dim=0, keepdim=True)
    scale = squared_norm.clamp(min=_TINY**2).rsqrt()
    t_B1T = _squared_norms(teacher_BTP).unsqueeze(1)
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
