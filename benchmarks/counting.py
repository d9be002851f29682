"""Exact counts of what a step does: operators, bytes alive, tensors saved for the backward pass."""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that PyTorch dispatches, forward, backward and optimiser alike, views included."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.calls.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors made since it was entered, those alive now and at the peak.

    What a kernel takes and gives back within one operator is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in before:
                self._meet(leaf.untyped_storage())
        return made

    def _meet(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key)


class Saved:
    """What autograd kept for backward passes: distinct tensors in memory, and their bytes."""

    def __init__(self) -> None:
        self.tensors = self.bytes = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def add(self, tensor: Tensor) -> None:
        """Count the memory behind a tensor, once."""
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            self._seen.add(storage)
            self.tensors += 1
            self.bytes += storage.nbytes()


@contextlib.contextmanager
def counting_saved(*, besides: list[Tensor]) -> Iterator[Saved]:
    """Count what is saved for backward passes meanwhile.

    Args:
        besides: Tensors that are there anyway, such as parameters; not counted.
    """
    saved, anyway = Saved(), {tensor.untyped_storage().data_ptr() for tensor in besides}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in anyway:
            saved.add(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def operators_of(step: Callable[[], object]) -> int:
    """Return how many operators a call dispatches."""
    with Operators() as counted:
        step()
    total: int = counted.total
    return total


def peak_bytes_of(step: Callable[[], object]) -> int:
    """Return the peak of the bytes that a call has alive at once, besides what was there before."""
    with LiveBytes() as counted:
        step()
    peak: int = counted.peak
    return peak
