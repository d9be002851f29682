"""Modes, seeds, devices and accuracy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rnascl_cli.core import distributed
from rnascl_cli.core.errors import UserError
from rnascl_cli.core.random_streams import generator
from rnascl_cli.engine import device
from rnascl_cli.engine.device import DeviceConfig, peak_memory_bytes, resolve_device
from rnascl_cli.engine.evaluate import accuracy
from rnascl_cli.engine.modes import evaluating, fixed_statistics, frozen
from tests.engine.recording import Recording
from tests.engine.toy import CPU, image_set

pytestmark = pytest.mark.unit


@pytest.fixture
def model() -> nn.Sequential:
    """A model in train mode with one part in eval mode and one frozen number."""
    built = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Dropout())
    built[2].eval()
    built[1].weight.requires_grad_(False)
    return built


def test_evaluating_puts_each_mode_back(model: nn.Sequential) -> None:
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert [module.training for module in model.modules()] == before


def test_frozen_puts_each_flag_back(model: nn.Sequential) -> None:
    before = [parameter.requires_grad for parameter in model.parameters()]
    with frozen(model.parameters()):
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert not all(before)
    with pytest.raises(RuntimeError), frozen(model.parameters()):
        raise RuntimeError
    assert [parameter.requires_grad for parameter in model.parameters()] == before


def test_fixed_statistics_leave_every_buffer(model: nn.Sequential) -> None:
    model.train()
    x_BCHW = torch.rand(4, 3, 6, 6)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.manual_seed(0)
    with fixed_statistics(model):
        fixed = model(x_BCHW)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
    # The outputs are those of batch statistics, as in a plain train-mode pass, which does move the buffers.
    torch.manual_seed(0)
    torch.testing.assert_close(model(x_BCHW), fixed)
    assert any(not torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert all(module.track_running_stats for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def draw(*stream: str | int, seed: int = 0) -> list[float]:
    drawn: list[float] = torch.rand(4, generator=generator(seed, *stream)).tolist()
    return drawn


def test_streams_repeat_and_differ() -> None:
    assert draw("search", "noise", 3) == draw("search", "noise", 3)
    others = [
        draw("search", "noise", 3, seed=1),
        draw("search", "noise", 4),
        draw("search", "batches", 3),
        draw("train", "noise", 3),
        draw("search", "noise", "3"),
        draw("searchn", "oise", 3),
        draw("search", "noise"),
    ]
    found = [draw("search", "noise", 3), *others]
    assert len({tuple(row) for row in found}) == len(found)


def test_a_stream_leaves_the_global_one_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    torch.rand(2, generator=generator(5, "x"))
    assert torch.equal(torch.rand(3), expected)


def test_every_seed_that_a_recipe_allows_works() -> None:
    assert draw("x", seed=2**32 - 1) != draw("x", seed=0)


def test_precision_as_asked() -> None:
    assert resolve_device("cpu", "fp32") == CPU
    assert resolve_device("cpu", "fp32").precision == "fp32"
    assert resolve_device("cpu", "bf16") == DeviceConfig(torch.device("cpu"), "bf16", "bf16")
    assert resolve_device("cpu", "auto").device_name.startswith("cpu (")


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("avx2 avx512_bf16 fsrm", "bf16"), ("amx_bf16", "bf16"), ("avx512f", "fp32"), (None, "fp32")],
)
def test_precision_by_the_processor(
    flags: str | None, precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"  # None: a system without one
    if flags is not None:
        cpuinfo.write_text(f"model name : Some CPU\nflags : fpu {flags}\n", encoding="utf-8")
    monkeypatch.setattr(device, "CPUINFO", cpuinfo)
    auto = resolve_device("cpu", "auto")
    assert (auto.student, auto.teacher, auto.precision) == (precision, precision, precision)


def test_autocast_follows_the_precision() -> None:
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    mixed = DeviceConfig(torch.device("cpu"), "fp32", "bf16")
    with mixed.student_autocast():
        assert layer(x).dtype == torch.float32
    with mixed.teacher_autocast():
        assert layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("there", "ranks_", "deterministic", "recorded"),
    [(True, 1, False, True), (False, 1, False, False), (True, 2, False, False), (True, 1, True, False)],
)
def test_steps_are_recorded_where_one_process_has_a_gpu(
    there: bool, ranks_: int, deterministic: bool, recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(device, "CudaGraphBackend", Recording)
    monkeypatch.setattr(device, "make_deterministic", lambda: None)
    monkeypatch.setattr(distributed, "size", lambda: ranks_)
    found = resolve_device("auto", "fp32", deterministic=deterministic, capture=None)
    assert (found.graph_backend is not None) == recorded


def test_what_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "make_deterministic", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"compile_steps.*on a GPU.*deterministic"):
        resolve_device("cuda", "fp32", deterministic=True, compile_enabled=True)
    assert resolve_device("cpu", "fp32", deterministic=True, compile_enabled=True).compile_enabled
    monkeypatch.setenv("CXX", "/nowhere/g++ -O3")
    with pytest.raises(UserError, match=r"compile_steps.*needs a C\+\+ compiler for a CPU; install g\+\+"):
        resolve_device("cpu", "fp32", compile_enabled=True)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(UserError, match=r"compile_steps.*several processes"):
        resolve_device("cpu", "fp32", compile_enabled=True)


def test_cuda_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda: no CUDA device is available; use --device cpu or auto"):
        resolve_device("cuda", "auto")
    assert resolve_device("auto", "fp32").device.type == "cpu"


def test_peak_memory_is_in_bytes() -> None:
    assert 10 * 2**20 < peak_memory_bytes(torch.device("cpu")) < 2**40


class Brightest(nn.Module):
    """Says class 0 in train mode; in eval mode, the label hidden in the first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.seen.append(x_BCHW)
        if self.training:
            return torch.tensor([[1.0, 0, 0]]).expand(len(x_BCHW), 3)
        return nn.functional.one_hot((x_BCHW[:, 0, 0, 0] * 255).round().long(), 3).float()


def test_accuracy_by_hand() -> None:
    images = image_set(10)
    images.images_NCHW[:, 0, 0, 0] = images.labels_N
    images.images_NCHW[:3, 0, 0, 0] = (images.labels_N[:3] + 1) % 3
    model = Brightest().train()
    assert accuracy(model, images, compute=CPU, batch_size=4) == 0.7
    assert model.training
    assert [len(x) for x in model.seen] == [4, 4, 2]
    assert all(x.min() >= 0 and x.max() <= 1 for x in model.seen)


def test_accuracy_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        accuracy(Brightest(), image_set(0), compute=CPU)
