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

from rnascl_cli.models.energies import energy, widened_energy, widens
from rnascl_cli.models.maps import LayerMaps

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


class MapRecorder:
    """Holds the maps of the last forward pass, one a layer; see :func:`recording_maps`."""

    def __init__(self, layers: Sequence[str], *, side: int) -> None:
        self.layers, self.side = list(layers), side
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

    def put(self, layer: str, map_B1HW: Tensor) -> None:
        """Keep the map of ``layer``, at the layer's own size."""
        self._maps[layer] = map_B1HW

    def take(self) -> Tensor:
        """Return the maps as (B, L, P) in the order of ``layers`` and forget them.

        Raises:
            ValueError: A layer did not run since the last call.
        """
        return self.take_sized().at_common_side()

    def take_sized(self) -> LayerMaps:
        """As :meth:`take`, with maps smaller than the common side still at their own size."""
        missing = [layer for layer in self.layers if layer not in self._maps]
        if missing:
            raise ValueError(f"no forward pass reached {', '.join(missing[:3])}")
        groups: list[list[Tensor]] = []  # neighbours of one size go together
        for layer in self.layers:
            map_B1HW = self._maps[layer]
            if not groups or groups[-1][0].shape != map_B1HW.shape:
                groups.append([])
            groups[-1].append(map_B1HW)
        stacks = [torch.cat(maps, dim=1) for maps in groups]
        self._maps.clear()
        return LayerMaps(stacks, self.side)


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
    recorder = MapRecorder(names, side=side)

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if recorder.paused:
                return
            mask_C11 = getattr(module, "channel_mask", None)
            if isinstance(module, nn.Conv2d) and widens(module):
                recorder.put(name, widened_energy(inputs[0], module.weight, mask_C11))
            else:
                recorder.put(name, energy(output, mask_C11))

        return hook

    handles = [found[name].register_forward_hook(hook_for(name)) for name in names]
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()
