"""A model's forward and backward pass as captured CUDA graphs.

A small student runs about a hundred kernels of a few microseconds each, so that launching them takes longer than
computing them. A graph is launched as one. Its shapes are fixed, so a batch is padded with black images to the next
captured size.

Shape suffixes: B images of a batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from rnascl_cli.attacks.gradient import LogitFunction

Capture = Callable[[LogitFunction, Tensor], LogitFunction]
"""A model and a sample batch to its graph for that shape, whose output tensor is reused in each call."""
SMALLEST = 16
"""Smallest captured batch size."""
AGREEMENT = 1e-3
"""Largest difference between the logits of graph and model, relative to the largest logit (also in bf16)."""


class Captured:
    """The same function as ``model``, replayed from CUDA graphs.

    The graph of a batch size is captured on first use, and compared with the model. If the two disagree or the model
    cannot be captured, that size runs without a graph.

    Args:
        model: Images to logits, on a CUDA device, in eval mode, its parameters frozen.
        batch_size: Of the largest graph; there are also graphs of half, a quarter, ... of it.
        capture: Creates a graph.
    """

    def __init__(self, model: LogitFunction, *, batch_size: int, capture: Capture | None = None) -> None:
        self._model = model
        self._capture = capture or _cuda_graph
        self._sizes = sorted({batch_size, *(batch_size >> halvings for halvings in range(1, 12))})
        self._sizes = [size for size in self._sizes if size >= min(SMALLEST, batch_size)]
        self._graphs: dict[tuple[object, ...], LogitFunction] = {}

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits as a new tensor, which no later call overwrites."""
        size = next((size for size in self._sizes if size >= len(x_BCHW)), None)
        if size is None or not len(x_BCHW):
            return self._model(x_BCHW)
        full_BCHW = _padded(x_BCHW, size)
        key = (full_BCHW.shape, full_BCHW.stride(), torch.is_autocast_enabled(x_BCHW.device.type))
        if key not in self._graphs:
            self._graphs[key] = self._graph(full_BCHW)
        owned_BCHW: Tensor = _OwnGradient.apply(full_BCHW)
        return self._graphs[key](owned_BCHW)[: len(x_BCHW)].clone()

    def _graph(self, full_BCHW: Tensor) -> LogitFunction:
        sample_BCHW = full_BCHW.detach().clone()
        try:
            graph = self._capture(self._model, sample_BCHW.clone().requires_grad_(True))
        except RuntimeError:  # the model synchronizes or allocates, which cannot be captured
            return self._model
        with torch.no_grad():
            expected_BK = self._model(sample_BCHW).float()
            apart = float((graph(sample_BCHW).float() - expected_BK).abs().max())
        return graph if apart <= AGREEMENT * float(expected_BK.abs().max()) else self._model


def _cuda_graph(model: LogitFunction, sample_BCHW: Tensor) -> LogitFunction:
    device = sample_BCHW.device.type

    def function(x_BCHW: Tensor) -> Tensor:  # of a module, torch would replace the forward method
        return model(x_BCHW)

    # Without autocast's cache: its cached casts would be read after the graph's memory has been reused.
    # With gradients even if the first batch needs none: later batches may.
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


def _padded(x_BCHW: Tensor, size: int) -> Tensor:
    """Pad the batch with black images to ``size``."""
    if len(x_BCHW) == size:
        return x_BCHW
    return torch.cat([x_BCHW, x_BCHW.new_zeros((size - len(x_BCHW), *x_BCHW.shape[1:]))])


class _OwnGradient(torch.autograd.Function):
    """Identity whose gradient is copied: the next replay of a graph overwrites the gradient that it returned."""

    @staticmethod
    def forward(context: Any, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.view_as(x_BCHW)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clone()
