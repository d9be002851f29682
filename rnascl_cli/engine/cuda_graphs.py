"""A step recorded once and replayed from then on: on a GPU, the launches of thousands of kernels become one.

What is recorded is the work given to the device, not the Python that gave it. So a recorded function must be one of
tensors alone: what it is given and what it reads lies on the device at fixed places, it draws no random numbers and
asks for no value. Noise, temperature and learning rate are therefore tensors that somebody fills before.
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


class CudaGraphBackend:
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


class CapturedStep(Generic[P, R]):
    """A function whose calls with inputs of the same shapes are replayed, or compiled, or both.

    Those shapes are the first call's, as one that is recorded holds the memory of a whole call; others are run as they
    are. Which calls are worth it is the caller's to say, who gives the others to :meth:`plainly`. The first call is the
    one that compiles, or makes the device ready to record. So calls of those shapes are all compiled, and a run that
    goes on in another process goes on with the same digits. Where the device refuses to record, that is said once, and
    nothing is recorded.

    Args:
        function: Of nested tuples of tensors, None and hashable values that stay the same, to tensors in tuples or
            dicts; see the module.
        recorder: None where nothing is to be recorded.
        what: The function in a message, e.g. ``"the step of search"``.
        compiled: The same function, compiled in parts or whole (:meth:`~rnascl_cli.engine.device.Compute.compiled`);
            None where it is not to be.
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
        """Run the function as it is."""
        return self._run(self._function, *args, **kwargs)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what the function returns; of a replay, in tensors of their own."""
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
        """Run a call that is not to be recorded, as compiling and the first use of a library's kernels are not."""
        if self._compiled is None:
            return self.eager(*args, **kwargs)
        return self._compile(self._compiled, *args, **kwargs)

    def _run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if self._recorder is None:
            return function(*args, **kwargs)
        returned: R = self._recorder.run(lambda: function(*args, **kwargs))
        return returned

    def _compile(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        # Read here, as it takes seconds, which only those are to pay who compile.
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        info(f"compile_steps: compiling {self._what}: minutes at first, less where torch finds its kernels from before")
        began = time.perf_counter()
        try:
            # Whoever stops a run does not wait for that; and Ctrl-C has ended the compilers, too.
            with raise_on_signal(), warnings.catch_warnings(action="ignore"):  # of what torch could do otherwise
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
            warning(f"capture_steps: {self._what} is not recorded but launched operator by operator ({reason})")
        else:
            self._recording = _Recording(inputs, outputs, work)


class _Recording:
    """Work on inputs and outputs that stay where they are."""

    def __init__(self, inputs: list[Any], outputs: Any, work: Callable[[], None]) -> None:
        self._inputs, self._outputs, self._work = inputs, outputs, work

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
