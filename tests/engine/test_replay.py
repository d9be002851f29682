"""A function is run, then recorded, then replayed; tests/stages/test_recorded_steps.py does so with the stages' own."""

from __future__ import annotations

import signal
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import Unsupported

from rnascl_cli.core.errors import Interrupted, RunError, UserError
from rnascl_cli.engine.cuda_graphs import CapturedStep, CudaGraphBackend
from rnascl_cli.engine.device import resolve_device
from rnascl_cli.engine.interrupts import stop_after_step
from rnascl_cli.engine.optimizer import build_optimizer, set_learning_rate
from rnascl_cli.recipes.settings import SGD, Adam
from tests.engine.recording import Recording

pytestmark = pytest.mark.unit


class Pair(NamedTuple):
    one: Tensor
    two: Tensor | None


def test_the_second_call_is_recorded_and_later_ones_replay_it() -> None:
    python = []

    def function(x_B: Tensor, pair: Pair, times: int) -> dict[str, Tensor]:
        python.append(len(x_B))
        return {"sum": (x_B * times + pair.one).sum()}

    recorder = Recording()
    replay = CapturedStep(function, recorder, what="it")
    found = [replay(torch.full((3,), float(i)), Pair(torch.ones(3) * i, None), times=10)["sum"] for i in range(5)]
    assert [value.item() for value in found] == [33.0 * i for i in range(5)]  # each in a tensor of its own
    assert python == [3, 3]
    assert (recorder.plain, len(recorder.recorded), recorder.replays) == (1, 1, 4)


def test_other_shapes_and_values_are_run_as_they_are() -> None:
    python = []

    def function(x_B: Tensor, times: int) -> tuple[Tensor]:
        python.append(len(x_B))
        return (x_B.sum() * times,)

    replay = CapturedStep(function, Recording(), what="it")
    calls = [(3, 1), (3, 1), (2, 1), (2, 1), (3, 2), (3, 1)]
    assert [replay(torch.ones(n), t)[0].item() for n, t in calls] == [n * t for n, t in calls]
    assert python == [3, 3, 2, 2, 3]


@pytest.mark.parametrize("recorder", [None, Recording()])
def test_only_the_first_shape_is_compiled_and_from_the_first_call_on(
    recorder: Recording | None, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def plain(x_B: Tensor) -> tuple[Tensor]:
        ran.append(("plain", len(x_B)))
        return (x_B.sum(),)

    def compiled(x_B: Tensor) -> tuple[Tensor]:
        ran.append(("compiled", len(x_B)))
        return (x_B.sum(),)

    replay = CapturedStep(plain, recorder, what="it", compiled=compiled)
    assert replay.eager(torch.ones(2))[0].item() == 2  # whose shape does not count
    sizes = [3, 2, 3, 3, 2]
    assert [replay(torch.ones(size))[0].item() for size in sizes] == sizes
    said = capsys.readouterr().err
    assert said.count("compile_steps: compiling it: takes minutes") == said.count("compiled it in 0 s") == 1
    # Compiled, then run, or recorded once.
    assert ran[:4] == [("plain", 2), ("compiled", 3), ("plain", 2), ("compiled", 3)]
    assert ran[4:] == ([("compiled", 3)] if recorder is None else []) + [("plain", 2)]


def test_what_cannot_be_compiled_ends_the_run() -> None:
    def refuses(x_B: Tensor) -> tuple[Tensor]:
        raise Unsupported("no such thing")

    def plain(x_B: Tensor) -> tuple[Tensor]:
        return (x_B,)

    replay = CapturedStep(plain, None, what="the step of search", compiled=refuses)
    with pytest.raises(RunError, match=r"compile_steps: the step of search cannot be compiled here \(no such thing"):
        replay(torch.ones(1))


def test_compiling_is_not_waited_for() -> None:
    def compiles_for_minutes(x_B: Tensor) -> tuple[Tensor]:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("goes on")

    def plain(x_B: Tensor) -> tuple[Tensor]:
        return (x_B,)

    with stop_after_step() as stop:
        with pytest.raises(Interrupted):
            CapturedStep(plain, None, what="it", compiled=compiles_for_minutes)(torch.ones(1))
        assert stop.signum is None
        signal.raise_signal(signal.SIGTERM)  # heeded as before
        assert stop.signum == signal.SIGTERM


def test_without_a_recorder_it_is_the_function() -> None:
    replay = CapturedStep(lambda x: x + 1, None, what="it")
    assert not replay.captures
    assert [replay(torch.tensor(i)).item() for i in range(3)] == [1, 2, 3]


def test_what_cannot_be_recorded_is_said_once_and_run_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    def asks(x_B: Tensor) -> dict[str, Tensor]:
        return {"sum": x_B.sum() * (2 if x_B[0].item() > 1 else 1)}

    replay = CapturedStep(asks, Recording(), what="what asks")
    assert [replay(torch.full((2,), float(i)))["sum"].item() for i in range(4)] == [0.0, 2.0, 8.0, 12.0]
    said = capsys.readouterr().err
    assert said.count("what asks is not captured and runs eagerly") == 1
    assert "_local_scalar_dense" in said
    assert not replay.captures


@pytest.mark.parametrize("settings", [SGD(lr=0.1, momentum=0.9, weight_decay=0.01), Adam(name="adam", lr=0.1)])
def test_a_recorded_optimiser_follows_its_schedule(settings: Any) -> None:
    def trained(recorder: Recording | None) -> Tensor:
        weight = torch.nn.Parameter(torch.arange(4.0))
        recorded_on = torch.device("cpu") if recorder else None
        optimiser = build_optimizer([weight], settings, recorded_on=recorded_on)

        def step(x: Tensor) -> tuple[Tensor]:
            optimiser.zero_grad(set_to_none=True)
            loss = (weight * x).square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            return (loss.detach(),)

        replay = CapturedStep(step, recorder, what="it")
        for i in range(6):
            set_learning_rate(optimiser, 0.1 / (i + 1))
            replay(torch.full((4,), 0.5 + 0.1 * i))
        return weight.detach()

    torch.testing.assert_close(trained(Recording()), trained(None))


@pytest.mark.parametrize("settings", [SGD(lr=0.1), Adam(name="adam", lr=0.1)])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_checkpoint_fits_recorded_and_other_steps(settings: Any, recorded: bool) -> None:
    cpu = torch.device("cpu")

    def optimiser(recorded_on: torch.device | None) -> torch.optim.Optimizer:
        weight = torch.nn.Parameter(torch.ones(3))
        weight.grad = torch.ones(3)
        return build_optimizer([weight], settings, recorded_on=recorded_on)

    before, after = optimiser(None if recorded else cpu), optimiser(cpu if recorded else None)
    before.step()
    set_learning_rate(before, 0.025)
    after.load_state_dict(before.state_dict())
    (group,) = after.param_groups
    assert isinstance(group["lr"], Tensor) == recorded
    assert float(group["lr"]) == pytest.approx(0.025)
    after.step()


def test_the_recipe_asks_for_a_gpu() -> None:
    with pytest.raises(UserError, match="steps can be captured on a CUDA device only"):
        resolve_device("cpu", "auto", capture=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("settings", [SGD(lr=0.1, momentum=0.9), Adam(name="adam", lr=0.1)])
def test_cuda_graphs_give_what_launches_give(settings: Any) -> None:
    device = torch.device("cuda")

    def trained(recorder: CudaGraphBackend | None) -> Tensor:
        weight = torch.nn.Parameter(torch.arange(4.0, device=device))
        optimiser = build_optimizer([weight], settings, recorded_on=device if recorder else None)

        def step(x_BC: Tensor) -> dict[str, Tensor]:
            optimiser.zero_grad(set_to_none=True)
            loss = (weight * x_BC).square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            return {"loss": loss.detach()}

        replay = CapturedStep(step, recorder, what="it")
        losses = []
        for i in range(9):
            set_learning_rate(optimiser, 0.1 / (i + 1))
            images = 2 if i == 5 else 3  # an odd batch between two replays
            losses.append(replay(torch.full((images, 4), 0.5 + 0.1 * i, device=device))["loss"])
        return torch.cat([weight.detach(), torch.stack(losses)])

    torch.testing.assert_close(trained(CudaGraphBackend()), trained(None))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_refused_cuda_graph_leaves_the_stream_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    def asks(x_B: Tensor) -> dict[str, Tensor]:
        return {"sum": x_B.sum() * (2 if x_B[0].item() > 1 else 1)}

    before = torch.cuda.current_stream()
    replay = CapturedStep(asks, CudaGraphBackend(), what="what asks")
    found = [replay(torch.full((2,), float(i), device="cuda"))["sum"].item() for i in range(4)]
    assert found == [0.0, 2.0, 8.0, 12.0]
    assert torch.cuda.current_stream() == before
    assert "what asks is not recorded" in capsys.readouterr().err
