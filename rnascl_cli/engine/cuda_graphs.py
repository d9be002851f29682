"""Capture a step once and replay it: on a GPU, one launch replaces those of thousands of kernels.

The device's work is captured, not the Python code. A captured function therefore takes and reads tensors at fixed
addresses on the device, draws no random numbers and reads no values back. Noise, temperature and learning rate are
tensors that are filled before the call.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Hashable
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from rnascl_cli.core.console import info, warning
from rnascl_cli.core.errors import RunError
from rnascl_cli.engine.interrupts import raise_on_signal

P = ParamSpec("P")
R = TypeVar("R")


class GraphBackend(Protocol):
    """Captures work for a device."""

    def run(self, call: Callable[[], Any]) -> Any:
        """Run a call as it would be captured, and return its result."""
        ...

    def record(self, call: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """Capture a call without running it.

        Returns:
            The result, whose tensors are not filled yet, and a function that runs the work and fills them.
        """
        ...


class CudaGraphBackend:
    """CUDA graphs, warmed up and captured on a side stream as PyTorch requires."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def run(self, call: Callable[[], Any]) -> Any:
        """See :meth:`GraphBackend.run`."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            returned = call()
        torch.cuda.current_stream().wait_stream(self._stream)
        return returned

    def record(self, call: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """See :meth:`GraphBackend.record`."""
        gc.collect()  # graphs of earlier steps are in reference cycles and hold memory
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Other threads continue: a loader that pins memory would abort a capture of the whole process.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                returned = call()
        except RuntimeError:
            torch.cuda.set_stream(before)  # after an aborted capture torch does not restore the stream
            raise
        return returned, graph.replay


class CapturedStep(Generic[P, R]):
    """A function whose calls with the shapes of the first call are replayed, compiled, or both.

    Calls with other shapes run eagerly; so do those by :meth:`eager`. The first call compiles, or warms up the device
    for the capture. All calls of these shapes are compiled, so a resumed run gives the same digits. If the
    capture fails, a warning is printed once and the function is not captured.

    Args:
        function: From nested tuples of tensors, None and constant hashable values to tensors in tuples or dicts.
        recorder: Captures the function; None to not capture it.
        what: The function in messages, e.g. ``"the search step"``.
        compiled: The compiled function (:meth:`~rnascl_cli.engine.device.DeviceConfig.maybe_compile`); None without.
    """

    def __init__(
        self,
        function: Callable[P, R],
        recorder: GraphBackend | None,
        *,
        what: str,
        compiled: Callable[P, R] | None = None,
    ) -> None:
        self._function, self._recorder, self._what, self._compiled = function, recorder, what, compiled
        self._shapes: Hashable = None
        self._recording: _Recording | None = None

    @property
    def captures(self) -> bool:
        """Whether calls may be replayed."""
        return self._recorder is not None

    def eager(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function eagerly."""
        return self._run(self._function, *args, **kwargs)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function; the result of a replay is copied."""
        if self._recorder is None and self._compiled is None:
            return self._function(*args, **kwargs)
        leaves, structure = pytree.tree_flatten((args, kwargs))
        shapes = (str(structure), *(_shape(leaf) for leaf in leaves))
        if self._shapes is None:
            self._shapes = shapes
            return self._first(*args, **kwargs)
        if shapes != self._shapes:
            return self.eager(*args, **kwargs)
        function = self._compiled or self._function
        if self._recorder is not None and self._recording is None:
            self._record(self._recorder, function, leaves, structure)
        if self._recording is None:
            return self._run(function, *args, **kwargs)
        returned: R = self._recording.replay(leaves)
        return returned

    def _first(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the first call, which compiles or initializes libraries and is not captured."""
        if self._compiled is None:
            return self.eager(*args, **kwargs)
        return self._compile(self._compiled, *args, **kwargs)

    def _run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if self._recorder is None:
            return function(*args, **kwargs)
        returned: R = self._recorder.run(lambda: function(*args, **kwargs))
        return returned

    def _compile(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        # Imported here because it takes seconds.
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        info(f"compile_steps: compiling {self._what}: takes minutes, less with cached kernels")
        began = time.perf_counter()
        try:
            # A signal ends the compilation immediately; Ctrl-C ends the compiler processes too.
            with raise_on_signal(), warnings.catch_warnings(action="ignore"):  # torch's performance hints
                returned = self._run(function, *args, **kwargs)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            reason = " ".join(str(error).partition("Set TORCHDYNAMO_VERBOSE")[0].split())[:200]
            raise RunError(
                f"compile_steps: {self._what} cannot be compiled here ({reason}); leave the key out"
            ) from None
        info(f"compile_steps: compiled {self._what} in {time.perf_counter() - began:.0f} s")
        return returned

    def _record(
        self, recorder: GraphBackend, function: Callable[P, R], leaves: list[Any], structure: pytree.TreeSpec
    ) -> None:
        inputs = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(inputs, structure)
        try:
            outputs, work = recorder.record(lambda: function(*args, **kwargs))
        except RuntimeError as error:
            self._recorder = None
            reason = " ".join(str(error).split())[:200]
            warning(f"capture_steps: {self._what} is not captured and runs eagerly ({reason})")
        else:
            self._recording = _Recording(inputs, outputs, work)


class _Recording:
    """Captured work on inputs and outputs at fixed addresses."""

    def __init__(self, inputs: list[Any], outputs: Any, work: Callable[[], None]) -> None:
        self._inputs, self._outputs, self._work = inputs, outputs, work

    def replay(self, leaves: list[Any]) -> Any:
        """Run the work on other inputs."""
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
