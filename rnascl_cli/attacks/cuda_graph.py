"""A model's forward and backward pass as captured CUDA graphs.

A small student has some hundred kernels of a few microseconds each, so that launching them takes longer than
computing them. A graph is launched as one. It is fixed in its shapes, so a batch is filled up with black images to
the next size there is a graph for.

Shape suffixes: B images of a batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from rnascl_cli.attacks.gradient import LogitFunction

Capture = Callable[[LogitFunction, Tensor], LogitFunction]
"""A model and a batch to its graph for batches of just that shape, whose output tensor is used again in each call."""
SMALLEST = 16
"""Smallest batch that has a graph of its own."""
AGREEMENT = 1e-3
"""Largest difference between a graph's logits and the model's, as a share of the largest logit (bf16 included)."""


class Captured:
    """The same function as ``model``, replayed instead of launched kernel by kernel.

    The graph of a batch size is captured when a batch first needs it, and compared with the model. Where the two
    disagree, or the model cannot be captured, that size goes on without a graph.

    Args:
        model: Images to logits, on a CUDA device, in eval mode, its parameters frozen.
        batch_size: Of the largest graph; there are graphs of half, a quarter, ... of it, too.
        capture: What makes a graph.
    """

    def __init__(self, model: LogitFunction, *, batch_size: int, capture: Capture | None = None) -> None:
        self._model = model
        self._capture = capture or _cuda_graph
        self._sizes = sorted({batch_size, *(batch_size >> halvings for halvings in range(1, 12))})
        self._sizes = [size for size in self._sizes if size >= min(SMALLEST, batch_size)]
        self._graphs: dict[tuple[object, ...], LogitFunction] = {}

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits; a tensor of its own, which no later call changes."""
        size = next((size for size in self._sizes if size >= len(x_BCHW)), None)
        if size is None or not len(x_BCHW):
            return self._model(x_BCHW)
        full_BCHW = _filled(x_BCHW, size)
        key = (full_BCHW.shape, full_BCHW.stride(), torch.is_autocast_enabled(x_BCHW.device.type))
        if key not in self._graphs:
            self._graphs[key] = self._graph(full_BCHW)
        return self._graphs[key](_own_gradient(full_BCHW))[: len(x_BCHW)].clone()

    def _graph(self, full_BCHW: Tensor) -> LogitFunction:
        sample_BCHW = full_BCHW.detach().clone()
        try:
            graph = self._capture(self._model, sample_BCHW.clone().requires_grad_(True))
        except RuntimeError:  # it waits for the device or allocates on the way: not to be captured
            return self._model
        with torch.no_grad():
            expected_BK = self._model(sample_BCHW).float()
            apart = float((graph(sample_BCHW).float() - expected_BK).abs().max())
        return graph if apart <= AGREEMENT * float(expected_BK.abs().max()) else self._model


def _cuda_graph(model: LogitFunction, sample_BCHW: Tensor) -> LogitFunction:
    device = sample_BCHW.device.type

    def function(x_BCHW: Tensor) -> Tensor:  # of a module, torch would replace the forward method
        return model(x_BCHW)

    # Casts that autocast keeps for the next use would be read again after the graph's memory has been used anew.
    # With gradients even if the first batch asks for none: the graph will serve those that do.
    with (
        torch.enable_grad(),
        torch.autocast(
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,
        ),
    ):
        graph: Any = torch.cuda.make_graphed_callables(function, (sample_BCHW,))
    return cast(LogitFunction, graph)


def _filled(x_BCHW: Tensor, size: int) -> Tensor:
    """Return the batch with black images behind it, up to ``size``."""
    if len(x_BCHW) == size:
        return x_BCHW
    return torch.cat([x_BCHW, x_BCHW.new_zeros((size - len(x_BCHW), *x_BCHW.shape[1:]))])


class _OwnGradient(torch.autograd.Function):
    """Identity. The gradient that a graph returns lies in memory that its next replay overwrites; pass on a copy."""

    @staticmethod
    def forward(context: Any, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.view_as(x_BCHW)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clone()


def _own_gradient(x_BCHW: Tensor) -> Tensor:
    owned: Tensor = _OwnGradient.apply(x_BCHW)
    return owned
