"""Attention maps of a network's layers, computed in forward hooks: full activations are never stored.

F(A)_hw = sum_c A_chw^2 (section 3.1, Zagoruyko and Komodakis 2017), brought to a common side.

Shape suffixes: B images, L layers, C channels, H height, W width, P pixels of the common map (side squared).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rnascl_cli.models.attention_energy import attention_energy, is_expanding_1x1, pointwise_attention_energy

MapSource = Literal["conv", "norm", "block"]


def attention_layers(model: nn.Module, source: MapSource = "conv") -> dict[str, nn.Module]:
    """Return the layers of a model that give attention maps, by name, in the order of definition.

    Args:
        model: Any network.
        source: ``"conv"``: every Conv2d (its raw output); ``"norm"``: every BatchNorm2d; ``"block"``: every
            residual block.
    """

    def selected(module: nn.Module) -> bool:
        if source == "conv":
            return isinstance(module, nn.Conv2d)
        if source == "norm":
            return isinstance(module, nn.BatchNorm2d)
        return bool(getattr(module, "is_block", False))

    return {name: module for name, module in model.named_modules() if selected(module)}


class MapRecorder:
    """The maps of the last forward pass, one per layer; see :func:`record_attention_maps`."""

    def __init__(self, layers: Sequence[str], *, side: int) -> None:
        self.layers, self.side = list(layers), side
        self.paused = False
        self._maps: dict[str, Tensor] = {}

    @contextlib.contextmanager
    def without_recording(self) -> Iterator[None]:
        """Record no maps in this context: forward passes cost what they cost without hooks."""
        self.paused = True
        try:
            yield
        finally:
            self.paused = False

    def put(self, layer: str, map_B1HW: Tensor) -> None:
        """Store the map of ``layer``, at the layer's own size."""
        self._maps[layer] = map_B1HW

    def pop(self) -> Tensor:
        """Return the maps as (B, L, P) in the order of ``layers`` and clear them.

        Raises:
            ValueError: A layer has not run since the last call.
        """
        return self.pop_unresized().resized()

    def pop_unresized(self) -> LayerMaps:
        """Like :meth:`pop`, with maps smaller than the common side at their own size."""
        missing = [layer for layer in self.layers if layer not in self._maps]
        if missing:
            raise ValueError(f"no forward pass reached {', '.join(missing[:3])}")
        groups: list[list[Tensor]] = []  # consecutive layers of one size
        for layer in self.layers:
            map_B1HW = self._maps[layer]
            if not groups or groups[-1][0].shape != map_B1HW.shape:
                groups.append([])
            groups[-1].append(map_B1HW)
        stacks = [torch.cat(maps, dim=1) for maps in groups]
        self._maps.clear()
        return LayerMaps(stacks, self.side)


@contextlib.contextmanager
def record_attention_maps(
    model: nn.Module, *, side: int, source: MapSource = "conv", layers: Sequence[str] | None = None
) -> Iterator[MapRecorder]:
    """Record the attention maps of each forward pass while the context is open.

    Args:
        model: The network; its outputs are not changed.
        side: Height and width of the common map.
        source: Which layers (see :func:`attention_layers`).
        layers: Only these, in this order; all of them by default.

    Yields:
        The recorder, whose :meth:`MapRecorder.pop` gives unnormalised maps (B, L, P) after a forward pass.

    Raises:
        ValueError: One of ``layers`` is not in the model.
    """
    found = attention_layers(model, source)
    names = list(found) if layers is None else list(layers)
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ValueError(f"no layer '{unknown[0]}' among the {len(found)} {source} layers of the model")
    recorder = MapRecorder(names, side=side)

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], masks: dict[str, Any], output: Tensor) -> None:
            if recorder.paused:
                return
            mask_C11 = masks.get("channel_mask")
            if isinstance(module, nn.Conv2d) and is_expanding_1x1(module):
                recorder.put(name, pointwise_attention_energy(inputs[0], module.weight, mask_C11))
            else:
                recorder.put(name, attention_energy(output, mask_C11))

        return hook

    handles = [found[name].register_forward_hook(hook_for(name), with_kwargs=True) for name in names]
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


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

    def resized(self) -> Tensor:
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
        gram_map_BLHW = map_BLHW  # U^T U m
        if map_BLHW.shape[-2:] != other_BTHW.shape[-2:]:
            rows, columns = _resizings(map_BLHW, other_BTHW.shape[-1])
            gram_map_BLHW = rows.gram @ (map_BLHW @ columns.gram)
            other_BTHW = rows.transposed @ (other_BTHW @ columns.matrix)
        other_BTQ = other_BTHW.flatten(2)
        ctx.save_for_backward(gram_map_BLHW, other_BTQ)
        products_BLT = torch.bmm(map_BLHW.flatten(2), other_BTQ.transpose(1, 2))
        return products_BLT, (map_BLHW * gram_map_BLHW).sum(dim=(2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BLT: Tensor, grad_BL: Tensor) -> tuple[Tensor, None]:
        gram_map_BLHW, other_BTQ = ctx.saved_tensors
        grad_BLQ = torch.bmm(grad_BLT, other_BTQ)
        grad_BLQ = grad_BLQ.addcmul_(gram_map_BLHW.flatten(2), grad_BL.unsqueeze(2), value=2)
        return grad_BLQ.view_as(gram_map_BLHW), None


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
"""Cache. A dictionary, because torch.compile can read one but would rebuild the entries of an lru_cache."""


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
