"""Weight averaging: a mean of the weights that training passes through, which is often better than any of them.

torch's ``AveragedModel`` would serve, but for two things: it copies the module, hooks and all, and it waits for the
GPU at every step. The means are the same (tests/engine/test_averaging.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rnascl_cli.recipes.settings import EMA, SWA


class WeightAverage:
    """The running mean of a module's parameters and floating-point buffers.

    BatchNorm's statistics are averaged with the weights and not estimated anew: under adversarial training they are
    of perturbed images, and of clean ones where a term has these, which a pass over the training images would not
    give. As long as there is nothing to average, the mean is the module itself (:meth:`begun`).

    - EMA: after step n (from 1) the mean moves by 1 - d of the way to the weights, d = min(decay, n / (9 + n)), and
      is the weights themselves after the first. So a short run does not average in its first steps.
    - SWA: the plain mean of the weights at the end of each epoch behind the share ``start`` of the run.

    Args:
        module: On its device; its tensors are kept, so they must be changed in place from here on.
        settings: Which mean.
        epochs: Length of the run.
    """

    def __init__(self, module: nn.Module, settings: EMA | SWA, *, epochs: int) -> None:
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self._live = {name: tensor.detach() for name, tensor in named.items() if tensor.is_floating_point()}
        self._mean = {name: tensor.clone() for name, tensor in self._live.items()}
        self._settings, self._epochs = settings, epochs
        self._count = 0  # of what went into the mean

    def after_step(self) -> None:
        """Take in the weights after a step, for EMA."""
        if isinstance(self._settings, EMA):
            self._count += 1
            warm = (self._count - 1) / (self._count + 8) if self._count > 1 else 0.0
            self._blend(1 - min(self._settings.decay, warm))

    def after_epoch(self, epoch: int) -> None:
        """Take in the weights after epoch ``epoch``, from 0, for SWA."""
        if isinstance(self._settings, SWA) and self.begun(epoch):
            self._count += 1
            self._blend(1 / self._count)

    def begun(self, epoch: int) -> bool:
        """Return whether there is something to average by the end of epoch ``epoch``, from 0."""
        return isinstance(self._settings, EMA) or (epoch + 1) / self._epochs > self._settings.start

    @property
    def kind(self) -> Literal["ema", "swa"]:
        """Which mean it is."""
        return self._settings.kind

    @torch.no_grad()
    def _blend(self, weight: float) -> None:
        torch._foreach_lerp_(list(self._mean.values()), list(self._live.values()), weight)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the mean into the module for the while."""
        if not self._count:
            yield
            return
        kept = {name: tensor.clone() for name, tensor in self._live.items()}
        self.put()
        try:
            yield
        finally:
            _copy(kept, self._live)

    def put(self) -> None:
        """Put the mean into the module for good."""
        if self._count:
            _copy(self._mean, self._live)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"count": self._count, "mean": self._mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the state of a checkpoint."""
        _copy({name: state["mean"][name] for name in self._mean}, self._mean)
        self._count = int(state["count"])


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])


def averaging(module: nn.Module, settings: EMA | SWA | None, *, epochs: int) -> WeightAverage | None:
    """Return the mean that a recipe asks for; None where it asks for none."""
    return None if settings is None else WeightAverage(module, settings, epochs=epochs)
