"""The benchmark of a GPU runs the training loop, here on a CPU; with a GPU, on it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.gpu import HOW, How, epoch_seconds
from benchmarks.search_step import scratch
from benchmarks.workload import workload
from rnascl_cli.engine.device import resolve_device
from tests.engine.toy import CPU

pytestmark = pytest.mark.unit


def test_epochs_are_timed_but_for_the_first(tmp_path: Path) -> None:
    work = workload(tmp_path, space="S3", teacher="r8", side=8, images=24, batch_size=12)
    seconds = epoch_seconds(work, CPU, epochs=2)
    assert len(seconds) == 2
    assert min(seconds) > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("how", HOW.values())
def test_an_epoch_on_a_gpu(how: How) -> None:
    torch.compiler.reset()
    with scratch() as folder:
        work = workload(folder, space="S3", teacher="r8", side=8, images=80, batch_size=16)
        compute = resolve_device("cuda", "auto", capture=how.capture, compile_enabled=how.compile_enabled)
        assert len(epoch_seconds(work, compute, epochs=1)) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_one_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu"])
    with pytest.raises(SystemExit):
        command.main()
    assert "gpu: no CUDA device is here" in capsys.readouterr().err
