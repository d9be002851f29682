"""What a step costs, counted exactly: operators, bytes, saved tensors; and that it waits for no device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.counting import LiveBytes, counting_saved, operators_of
from benchmarks.search_step import FLOAT32, first_batch, memory, operators
from benchmarks.workload import Workload, our_search
from rnascl_cli.engine.modes import fixed_statistics, frozen
from tests.batches import as_batch, drawn_part

pytestmark = pytest.mark.unit


def test_operators_are_few_and_hardly_more_under_a_deeper_teacher(work: Workload, wider: Workload) -> None:
    plain, deeper = operators(work, wider)
    assert plain.value >= 35.0, plain.note
    assert 1.0 < deeper.value <= 1.05, deeper.note


def test_memory_and_saved_tensors_are_a_fraction_of_the_plain_steps(work: Workload) -> None:
    peak, saved = memory(work)
    assert peak.value <= 1 / 4, peak.note
    assert saved.value <= 1 / 8, saved.note


def test_operators_do_not_depend_on_the_batch(work: Workload) -> None:
    batch = first_batch(work)
    with our_search(work, compute=FLOAT32) as task:
        task.step(batch)
        counts = []
        for images in (10, 8):
            part = as_batch(batch.x_BCHW[:images], batch.y_B[:images])
            counts.append(operators_of(lambda part=part: task.step(part)))  # type: ignore[misc]
    assert counts[0] == counts[1]


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operators whose result the CPU must wait for: on a GPU each of them empties its queue."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal.")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        assert not name.startswith(self.WAITING), f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_no_device(work: Workload) -> None:
    batch = first_batch(work)
    with our_search(work, compute=FLOAT32) as task:
        task.step(batch)  # an epoch's first step looks for faults
        with NoWaiting():  # type: ignore[no-untyped-call]
            task.step(batch)
            with pytest.raises(AssertionError, match="waits for the device"):
                batch.x_BCHW.sum().item()


class WeightGradients(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the shape of each convolution's weight whose gradient is computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) == "aten.convolution_backward.default" and args[-1][1]:
            self.shapes.append(tuple(args[2].shape))
        return func(*args, **(kwargs or {}))


def test_the_gumbel_step_computes_weight_gradients_only_on_the_way_to_masks(work: Workload) -> None:
    batch = first_batch(work)
    with our_search(work, compute=FLOAT32) as task:
        assert task.teacher is not None
        teacher_output = task.teacher(batch)
        with frozen(task.supernet.parameters()), fixed_statistics(task.supernet):
            part = drawn_part(task, batch.x_BCHW, batch.y_B, teacher_output)
            found = task.loss(part, task.sample(part))
            with WeightGradients() as computed:
                found.loss.backward()  # type: ignore[no-untyped-call]
    # 14 blocks have an input that is masked: by the columns of their projections, and in the maps of what widens.
    projections = [shape for shape in computed.shapes if shape[0] < shape[1]]
    squares = [shape for shape in computed.shapes if shape[0] == shape[1]]
    assert (len(projections), len(squares)) == (14, 14)
    assert len(computed.shapes) == 28  # none of the stem's, of what expands, of what is depthwise


def test_live_bytes_are_those_alive_at_once() -> None:
    x = torch.zeros(1000)
    with LiveBytes() as counted:
        one = x + 1
        two = one.view(10, 100)
        del one
        assert counted.now == 4000
        del two
        assert (counted.now, counted.peak) == (0, 4000)
        three = [x + value for value in range(3)]
        assert (counted.now, counted.peak) == (12000, 12000)
        x.add_(1)
        del three
    assert (counted.now, counted.peak) == (0, 12000)


def test_saved_bytes_are_counted_once_and_without_parameters() -> None:
    weight = torch.zeros(1000, requires_grad=True)
    with counting_saved(besides=[weight]) as saved:
        once = (weight * 2).exp()
        (once * once.view(10, 100).flatten()).sum()
    assert (saved.tensors, saved.bytes) == (1, 4000)
