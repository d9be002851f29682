"""A step recorded once and replayed from then on: on a GPU, the launches of thousands of kernels become one.

What is recorded is the work given to the device, not the Python that gave it. So a recorded function must be one of
tensors alone: what it is given and what it reads lies on the device at fixed places, it draws no random numbers and
asks for no value. Noise, temperature and learning rate are therefore tensors that somebody fills before.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from rnascl_cli.console import warn

P = ParamSpec("P")
R = TypeVar("R")


class Recorder(Protocol):
    """How work for a device is recorded."""

    def run(self, call: Callable[[], Any]) -> Any:
        """Do a call's work now, in the surroundings in which it may be recorded later; return what the call returns."""
        ...

    def record(self, call: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """Record a call's work without doing it.

        Returns:
            What the call returned, whose tensors have no content yet, and a function that does the work: it fills them.
        """
        ...


class CudaGraphs:
    """CUDA graphs, recorded and warmed up on a stream of their own as PyTorch asks for."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def run(self, call: Callable[[], Any]) -> Any:
        """See :meth:`Recorder.run`."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            returned = call()
        torch.cuda.current_stream().wait_stream(self._stream)
        return returned

    def record(self, call: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """See :meth:`Recorder.record`."""
        gc.collect()  # graphs of tasks that are gone lie in cycles, and hold memory
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Other threads go on meanwhile: a loader pins memory, which would break off a capture of the whole process.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                returned = call()
        except RuntimeError:
            torch.cuda.set_stream(before)  # torch leaves its own behind where a capture was broken off
            raise
        return returned, graph.replay


class Replay(Generic[P, R]):
    """A function that is run as it is at first, and recorded at its second call with inputs of the same shapes.

    One recording is made, of the shapes that come twice first: those of a full batch. Others, such as an epoch's last
    batch, are always run as they are. Where the device refuses, that is said once, and nothing is recorded.

    Args:
        function: Of nested tuples of tensors, None and hashable values that stay the same, to tensors in tuples or
            dicts; see the module.
        recorder: None where nothing is to be recorded.
        what: The function in a message, e.g. ``"the step of search"``.
    """

    def __init__(self, function: Callable[P, R], recorder: Recorder | None, *, what: str) -> None:
        self._function, self._recorder, self._what = function, recorder, what
        self._met: set[Hashable] = set()
        self._recording: _Recording | None = None

    @property
    def records(self) -> bool:
        """Whether calls may be replayed."""
        return self._recorder is not None

    def plainly(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function as it is."""
        if self._recorder is None:
            return self._function(*args, **kwargs)
        returned: R = self._recorder.run(lambda: self._function(*args, **kwargs))
        return returned

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what the function returns; of a replay, in tensors of their own."""
        if self._recorder is None:
            return self._function(*args, **kwargs)
        leaves, structure = pytree.tree_flatten((args, kwargs))
        key = (str(structure), *(_shape(leaf) for leaf in leaves))
        if self._recording is None and key in self._met:
            self._record(self._recorder, key, leaves, structure)
        self._met.add(key)
        if self._recording is None or self._recording.key != key:
            return self.plainly(*args, **kwargs)
        returned: R = self._recording.replay(leaves)
        return returned

    def _record(self, recorder: Recorder, key: Hashable, leaves: list[Any], structure: pytree.TreeSpec) -> None:
        inputs = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(inputs, structure)
        try:
            outputs, work = recorder.record(lambda: self._function(*args, **kwargs))
        except RuntimeError as error:
            self._recorder = None
            reason = " ".join(str(error).split())[:200]
            warn(f"capture_steps: {self._what} is not recorded but launched operator by operator ({reason})")
        else:
            self._recording = _Recording(key, inputs, outputs, work)


class _Recording:
    """Work on inputs and outputs that stay where they are."""

    def __init__(self, key: Hashable, inputs: list[Any], outputs: Any, work: Callable[[], None]) -> None:
        self.key, self._inputs, self._outputs, self._work = key, inputs, outputs, work

    def replay(self, leaves: list[Any]) -> Any:
        """Do the work for other inputs."""
        for place, leaf in zip(self._inputs, leaves, strict=True):
            if isinstance(place, Tensor):
                place.copy_(leaf, non_blocking=True)
        self._work()
        return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, self._outputs)


def _shape(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype
    assert isinstance(leaf, Hashable)
    return leaf
