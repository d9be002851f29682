"""Same command and seed, same bytes; ``--deterministic`` asks torch for the same on a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from rnascl_cli.engine.device import make_deterministic
from rnascl_cli.models.attention_maps import to_common_side
from tests.command import done
from tests.reliability.conftest import Whole
from tests.reliability.drills import differences
from tests.reliability.processes import run_command
from tests.reliability.runs import STAGES, Inputs, command_for, essence


@pytest.fixture
def _put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    torch.use_deterministic_algorithms(False)  # another test of this process may have run --deterministic
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.deterministic = before[1]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_same_command_gives_the_same_bytes(inputs: Inputs, whole: Whole, tmp_path: Path, stage: str) -> None:
    out = tmp_path / "run"
    run_command([*command_for(stage, inputs, out, epochs=2), "--deterministic"], log=tmp_path / "log")
    first, second = whole.essence(stage), essence(stage, out)
    document = f"{stage}.json"
    for found, asked in ((first, False), (second, True)):
        if stage != "teacher train":  # its header says nothing of the device either
            assert found[document]["provenance"]["recipe"].pop("deterministic") is asked
    assert differences(first, second) == []
    assert set(first) >= {"search": {"metrics"}, "attack": {document}}.get(stage, {"weights", "logits", "metrics"})


@pytest.mark.pipeline
@pytest.mark.usefixtures("_put_back")
def test_the_option_reaches_torch(tmp_path: Path) -> None:
    options = ("--epochs", 1, "--batch-size", 16, "--limit-train", 20, "--limit-test", 10, "--device", "cpu")
    common = ("search", "--space", "S3", "--paradigm", "standard", "--data", "digits", *options)
    done(*common, "--out", tmp_path / "plain")
    assert not torch.are_deterministic_algorithms_enabled()
    done(*common, "--deterministic", "--out", tmp_path / "run")
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.unit
@pytest.mark.usefixtures("_put_back")
def test_a_workspace_of_ones_own_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    make_deterministic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.mark.unit
@pytest.mark.parametrize(("height", "width", "side"), [(32, 32, 8), (14, 14, 8), (7, 9, 4), (8, 8, 8), (5, 5, 1)])
def test_averaging_by_matrices_is_adaptive_pooling(height: int, width: int, side: int) -> None:
    map_BLHW = torch.rand(3, 1, height, width)
    assert torch.allclose(to_common_side(map_BLHW, side), F.adaptive_avg_pool2d(map_BLHW, side), atol=1e-6)
