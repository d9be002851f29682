"""Attention maps of different sizes, and their inner products as if all were of the common one.

Eq. (1) compares maps on a common side. A smaller map m gets there as U m = R_H m R_W^T, so that

    <U m, t> = <m, U^T t>    and    ||U m||^2 = <m, U^T U m>,

and the student's many small maps need not be enlarged: the teacher's few are brought down to their size, U^T t.

Shape suffixes: B images, L layers, T layers of the other network, H height, W width, P pixels of the common map
(side squared), Q pixels of a group's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class InnerProducts(NamedTuple):
    """What distances are made of: <U m_i, t_j>, (B, L, T), and ||U m_i||^2, (B, L)."""

    products_BLT: Tensor
    squares_BL: Tensor


class LayerMaps:
    """The maps of a network's layers, those smaller than the common side at their own size.

    Args:
        groups: (B, L, H, W) each; together the layers in order.
        side: Of the common map, pixels; larger maps are brought down to it at once.
    """

    def __init__(self, groups: Sequence[Tensor], side: int) -> None:
        self.side = side
        self._groups = [group if min(group.shape[-2:]) < side else to_common_side(group, side) for group in groups]

    def at_common_side(self) -> Tensor:
        """Return all maps as (B, L, P)."""
        return torch.cat([to_common_side(group_BLHW, self.side).flatten(2) for group_BLHW in self._groups], dim=1)

    def inner_products(self, other_BTP: Tensor) -> InnerProducts:
        """Return the inner products at the common side with maps of another network, which take no gradient."""
        other_BTHW = other_BTP.reshape(*other_BTP.shape[:2], self.side, self.side)
        pairs = [_WithoutEnlarging.apply(group_BLHW, other_BTHW) for group_BLHW in self._groups]
        products, squares = zip(*pairs, strict=True)
        return InnerProducts(torch.cat(products, dim=1), torch.cat(squares, dim=1))


class _WithoutEnlarging(torch.autograd.Function):
    """Of maps m of one size with maps t at the common side; keeps U^T t and U^T U m, both of m's size."""

    @staticmethod
    def forward(ctx: Any, map_BLHW: Tensor, other_BTHW: Tensor) -> tuple[Tensor, Tensor]:
        there_and_back_BLHW = map_BLHW  # U^T U m
        if map_BLHW.shape[-2:] != other_BTHW.shape[-2:]:
            rows, columns = _resizings(map_BLHW, other_BTHW.shape[-1])
            there_and_back_BLHW = rows.gram @ (map_BLHW @ columns.gram)
            other_BTHW = rows.transposed @ (other_BTHW @ columns.matrix)
        other_BTQ = other_BTHW.flatten(2)
        ctx.save_for_backward(there_and_back_BLHW, other_BTQ)
        products_BLT = torch.bmm(map_BLHW.flatten(2), other_BTQ.transpose(1, 2))
        return products_BLT, (map_BLHW * there_and_back_BLHW).sum(dim=(2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_BLT: Tensor, slope_BL: Tensor) -> tuple[Tensor, None]:
        there_and_back_BLHW, other_BTQ = ctx.saved_tensors
        slope_BLQ = torch.bmm(slope_BLT, other_BTQ)
        slope_BLQ = slope_BLQ.addcmul_(there_and_back_BLHW.flatten(2), slope_BL.unsqueeze(2), value=2)
        return slope_BLQ.view_as(there_and_back_BLHW), None


def to_common_side(map_BLHW: Tensor, side: int) -> Tensor:
    """Bring maps to ``side`` x ``side``: larger ones are area-averaged, smaller ones interpolated bilinearly.

    Either is linear and separable, R_H m R_W^T: two small matrix products, several times faster than PyTorch's
    bilinear kernel and its backward on a CPU.
    """
    if map_BLHW.shape[-2:] == (side, side):
        return map_BLHW
    rows, columns = _resizings(map_BLHW, side)
    return rows.matrix @ (map_BLHW @ columns.transposed)


def _resizings(map_BLHW: Tensor, side: int) -> tuple[_Resizing, _Resizing]:
    """Return what resizes the map's columns, and what its rows."""
    height, width = map_BLHW.shape[-2:]
    smaller = min(height, width) < side
    return _resizing(height, side, smaller, map_BLHW.device), _resizing(width, side, smaller, map_BLHW.device)


class _Resizing(NamedTuple):
    """R (side, size), its transpose, and R^T R."""

    matrix: Tensor
    transposed: Tensor
    gram: Tensor


_RESIZINGS: dict[tuple[int, int, bool, str], _Resizing] = {}
"""Made so far. A dictionary, as torch.compile looks things up in one, and would make those of an lru_cache anew."""


def _resizing(size: int, side: int, bilinear: bool, device: torch.device) -> _Resizing:
    """Return the matrix that resizes a row of ``size`` pixels, as PyTorch resizes the unit rows."""
    key = size, side, bilinear, str(device)
    if key not in _RESIZINGS:
        _RESIZINGS[key] = _make_resizing(size, side, bilinear, device)
    return _RESIZINGS[key]


def _make_resizing(size: int, side: int, bilinear: bool, device: torch.device) -> _Resizing:
    units = torch.eye(size, device=device).unsqueeze(0)
    if bilinear:
        resized = F.interpolate(units, size=side, mode="linear", align_corners=False)[0]
    else:
        resized = F.adaptive_avg_pool1d(units, side)[0]
    matrix = resized.T.contiguous()
    return _Resizing(matrix, matrix.T, matrix.T @ matrix)
