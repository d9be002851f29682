"""Train and eval modes and gradient flags change only inside context managers that put them back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every submodule in eval mode for the while, and back as each was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Take no gradients of these parameters for the while."""
    flags = [(parameter, parameter.requires_grad) for parameter in parameters]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def fixed_statistics(model: nn.Module) -> Iterator[None]:
    """Leave BatchNorm's running statistics as they are while the model works in train mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    flags = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, flag in zip(norms, flags, strict=True):
            norm.track_running_stats = flag
