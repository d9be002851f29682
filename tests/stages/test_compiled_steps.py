"""Compiled steps of search, train and adv-finetune give what others give, from command to weights.

torch.compile follows the step here and runs what it has followed operator by operator, without making kernels of it.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rnascl_cli.artifacts.documents import SearchDocument
from rnascl_cli.artifacts.store import read_document
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.stages.training import setup
from tests.command import done, rnascl
from tests.engine.toy import CPU
from tests.stages.searches import assert_same_search

pytestmark = pytest.mark.pipeline

SMALL = ("--data", "digits", "--limit-test", 10, "--batch-size", 50, "--device", "cpu")
# Images without those held out: a full batch and a smaller one. After more steps rounding has grown: digits are images
# on whose even areas BatchNorm loses digits of its own.
FEW, MORE = ("--limit-train", 105), ("--limit-train", 125)


@pytest.fixture
def compiled_graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The operators of each graph that is compiled, in every stage with ``compile_steps``."""
    graphs: list[Any] = []

    def backend(module: torch.fx.GraphModule, _: Any, **__: Any) -> Any:
        graphs.append([node.name for node in module.graph.nodes])
        return module.forward

    def compute(*_: Any, compile_enabled: bool, **__: Any) -> DeviceConfig:
        return replace(CPU, compile_enabled=compile_enabled)

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(setup, "resolve_device", compute)
    return graphs


def close(one: Any, other: Any) -> None:
    torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=2e-3, atol=2e-6)


def test_a_compiled_search_is_the_search(compiled_graphs: list[Any], tiny_teacher: Path, tmp_path: Path) -> None:
    common = ["search", "--space", "S3", "--teacher", tiny_teacher, *SMALL, *FEW, "--epochs", 1, "--seed", 3]
    common += ["--set", "teacher_cache.mode=off"]
    found = []
    for keys in ("compile_steps=false", "compile_steps=true"):
        done(*common, "--set", keys, "--out", tmp_path / keys)
        found.append(read_document(tmp_path / keys / "search.json", SearchDocument))
    assert len(compiled_graphs) == 3  # the teacher's pass, and both steps' objective
    assert not any("_Energy" in name for names in compiled_graphs for name in names)
    plain, compiled = found
    assert_same_search(plain, compiled, close)


@pytest.mark.parametrize("method", [None, "trades", "pgd-at"])
def test_a_compiled_training_is_the_training(
    method: str | None, compiled_graphs: list[Any], searched: dict[str, Path], tmp_path: Path
) -> None:
    own: tuple[str, ...] = () if method is None else ("--method", method, "--set", "train.robust.steps=2")
    if method == "pgd-at":
        own += ("--paradigm", "standard")
    found = []
    for keys in ("compile_steps=false", "compile_steps=true"):
        out = tmp_path / keys
        done("train", searched["rnas-cl"], *SMALL, *FEW, *own, "--epochs", 1, "--set", keys, "--out", out)
        found.append(load_file(out / "student.safetensors"))
    # Not the teacher's pass, as its outputs are kept: the objective, and the passes that perturb images.
    assert len(compiled_graphs) == {None: 1, "pgd-at": 2, "trades": 3}[method]
    plain, compiled = found
    for name, weight in plain.items():
        # PGD looks at signs: where a slope is all but 0, a pixel goes the other way.
        difference = (weight - compiled[name]).float().norm()
        assert difference <= (1e-2 if method else 1e-4) * weight.float().norm() + 1e-5, name


@pytest.mark.parametrize("behind", [2, 3], ids=["only the small batch to come", "a full batch to come"])
def test_a_resumed_run_compiles_the_same_steps(
    behind: int, searched: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    def backend(module: torch.fx.GraphModule, _: Any, **__: Any) -> Any:
        def told_apart(*args: Any) -> Any:  # by a loss that is larger than that of a step which is not compiled
            nonlocal steps
            steps += 1
            if steps == behind:
                os.kill(os.getpid(), signal.SIGTERM)
            return [out * 1.5 if out.requires_grad else out for out in module.forward(*args)]

        return told_apart

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    compiled = replace(CPU, compile_enabled=True)
    monkeypatch.setattr(setup, "resolve_device", lambda *_, **__: compiled)
    command = ["train", searched["rnas-cl"], *SMALL, *MORE, "--epochs", 2, "--set", "compile_steps=true"]
    torch.compiler.reset()
    assert rnascl(*command, "--out", tmp_path / "stopped").code == 128 + signal.SIGTERM
    torch.compiler.reset()
    done(*command, "--out", tmp_path / "stopped", "--resume")
    assert steps == 2 * 2
    torch.compiler.reset()
    done(*command, "--out", tmp_path / "whole")
    assert steps == 2 * 2 * 2
    whole, resumed = (load_file(tmp_path / name / "student.safetensors") for name in ("whole", "stopped"))
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name
