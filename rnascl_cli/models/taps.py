"""Attention maps of a network's layers, reduced as they are made: full activations are never kept.

F(A)_hw = sum_c A_chw^2 (section 3.1, Zagoruyko and Komodakis 2017), brought to a common side.

Shape suffixes: B images, L layers, C channels, H height, W width, P pixels of the common map (side squared).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Tap = Literal["conv", "norm", "block"]


def tappable_layers(model: nn.Module, tap: Tap = "conv") -> dict[str, nn.Module]:
    """Return the layers of a model that give attention maps, by name, in the order of definition.

    Args:
        model: Any network.
        tap: ``"conv"``: every Conv2d (its raw output); ``"norm"``: every BatchNorm2d; ``"block"``: every
            residual block.
    """

    def wanted(module: nn.Module) -> bool:
        if tap == "conv":
            return isinstance(module, nn.Conv2d)
        if tap == "norm":
            return isinstance(module, nn.BatchNorm2d)
        return bool(getattr(module, "is_block", False))

    return {name: module for name, module in model.named_modules() if wanted(module)}


def energy(activation_BCHW: Tensor, channel_mask_C: Tensor | None = None) -> Tensor:
    """Return F(A), the sum of squares over channels, shape (B, H, W), in float32.

    Args:
        activation_BCHW: A layer's output A.
        channel_mask_C: In a supernet, the mask m under which the layer works: the map is that of m * A.
    """
    if channel_mask_C is None and not activation_BCHW.requires_grad:
        # One pass over a teacher's activations, accumulated in float32 whatever their precision.
        norm: Tensor = torch.linalg.vector_norm(activation_BCHW, dim=1, dtype=torch.float32)
        return norm.square()
    activation_BCHW = activation_BCHW.float()
    squares = activation_BCHW * activation_BCHW
    if channel_mask_C is None:
        return squares.sum(dim=1)
    return torch.einsum("bchw,c->bhw", squares, channel_mask_C.float().square())


def to_common_side(map_BHW: Tensor, side: int) -> Tensor:
    """Bring maps to ``side`` x ``side``: larger ones are area-averaged, smaller ones interpolated bilinearly."""
    height, width = map_BHW.shape[-2:]
    if (height, width) == (side, side):
        return map_BHW
    x = map_BHW.unsqueeze(1)
    if min(height, width) >= side:
        if x.is_cuda and torch.are_deterministic_algorithms_enabled():  # the pooling's backward is not, on a GPU
            return area_average(map_BHW, side)
        return F.adaptive_avg_pool2d(x, side).squeeze(1)
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False).squeeze(1)


def area_average(map_BHW: Tensor, side: int) -> Tensor:
    """Do what adaptive average pooling does by two matrix products, whose gradients add up in a fixed order."""
    rows_sH, columns_sW = (_averaging(size, side).to(map_BHW) for size in map_BHW.shape[-2:])
    return rows_sH @ map_BHW @ columns_sW.T


def _averaging(size: int, side: int) -> Tensor:
    """Return the (side, size) matrix whose row i averages pixels floor(i size / side) to ceil((i + 1) size / side)."""
    pixel = torch.arange(size)
    start = (torch.arange(side) * size) // side
    end = -((-(torch.arange(side) + 1) * size) // side)
    inside = ((pixel >= start[:, None]) & (pixel < end[:, None])).float()
    return inside / inside.sum(dim=1, keepdim=True)


class MapRecorder:
    """Holds the maps of the last forward pass, one a layer; see :func:`recording_maps`."""

    def __init__(self, layers: Sequence[str]) -> None:
        self.layers = list(layers)
        self.paused = False
        self._maps: dict[str, Tensor] = {}

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """Take no maps for the while: forward passes cost what they cost without taps."""
        self.paused = True
        try:
            yield
        finally:
            self.paused = False

    def put(self, layer: str, map_BP: Tensor) -> None:
        """Keep the map of ``layer``."""
        self._maps[layer] = map_BP

    def take(self) -> Tensor:
        """Return the maps as (B, L, P) in the order of ``layers`` and forget them.

        Raises:
            ValueError: A layer did not run since the last call.
        """
        missing = [layer for layer in self.layers if layer not in self._maps]
        if missing:
            raise ValueError(f"no forward pass reached {', '.join(missing[:3])}")
        maps_BLP = torch.stack([self._maps[layer] for layer in self.layers], dim=1)
        self._maps.clear()
        return maps_BLP


@contextlib.contextmanager
def recording_maps(
    model: nn.Module, *, side: int, tap: Tap = "conv", layers: Sequence[str] | None = None
) -> Iterator[MapRecorder]:
    """Record the attention maps of each forward pass while the context is open.

    Args:
        model: The network; its outputs are not changed.
        side: Height and width of the common map.
        tap: Which layers (see :func:`tappable_layers`).
        layers: Only these, in this order; all of them by default.

    Yields:
        The recorder, whose :meth:`MapRecorder.take` gives unnormalised maps (B, L, P) after a forward pass.

    Raises:
        ValueError: One of ``layers`` is not in the model.
    """
    found = tappable_layers(model, tap)
    names = list(found) if layers is None else list(layers)
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ValueError(f"no layer '{unknown[0]}' among the {len(found)} {tap} layers of the model")
    recorder = MapRecorder(names)

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if recorder.paused:
                return
            map_BHW = energy(output, getattr(module, "channel_mask", None))
            recorder.put(name, to_common_side(map_BHW, side).flatten(1))

        return hook

    handles = [found[name].register_forward_hook(hook_for(name)) for name in names]
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()
