"""Stands for CUDA graphs on a CPU: notes every operator of a call, and does the same again on the same memory.

As of a graph, the Python of the call has no part in a replay: whatever it would have computed anew stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal.")
RANDOM = ("rand", "normal", "bernoulli")


class Noted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes operators; refuses those that a graph cannot hold: random numbers of the CPU, values asked for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        if name.startswith((*WAITING, *RANDOM)) or "generator" in (kwargs or {}):
            raise RuntimeError(f"{name} cannot be recorded")
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, made))
        return made


class Recording:
    """A :class:`~rnascl_cli.engine.cuda_graphs.Recorder`.

    Attributes:
        recorded: Operators of each recording.
        replays: How often recordings were replayed.
        plain: How often work was done without one.
    """

    def __init__(self) -> None:
        self.recorded: list[int] = []
        self.replays = self.plain = 0

    def run(self, call: Callable[[], Any]) -> Any:
        self.plain += 1
        return call()

    def record(self, call: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        with Noted() as noted:
            returned = call()
        self.recorded.append(len(noted.calls))
        done = True  # unlike a graph's, this recording has done the work once

        def work() -> None:
            nonlocal done
            self.replays += 1
            if done:
                done = False
                return
            with torch.no_grad():
                for func, args, kwargs, made in noted.calls:
                    if not func.is_view:
                        _fill(made, func(*args, **kwargs))

        return returned, work


def _fill(place: Any, made: Any) -> None:
    for old, new in zip(tree_leaves(place), tree_leaves(made), strict=True):
        if isinstance(old, Tensor) and old is not new and old.data_ptr() != new.data_ptr():
            old.copy_(new)
