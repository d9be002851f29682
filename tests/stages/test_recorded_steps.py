"""Recorded steps of search, train and adv-finetune give what launched ones give, from command to weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rnascl_cli.artifacts.documents import SearchDocument, TrainDocument
from rnascl_cli.artifacts.store import read_document
from rnascl_cli.stages.training import setup
from tests.command import done, refused
from tests.engine.recording import Recording
from tests.engine.toy import CPU
from tests.stages.searches import assert_same_search

pytestmark = pytest.mark.pipeline

SMALL = ("--data", "digits", "--limit-train", 53, "--limit-test", 10, "--batch-size", 10, "--device", "cpu")
EPOCHS = 2
REPLAYED = EPOCHS * 4 - 1  # of 4 full batches an epoch all but the very first


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recording:
    """A stand-in for CUDA graphs under every stage that asks for them."""
    found = Recording()

    def compute(*_: Any, capture: bool, **__: Any) -> Any:
        return replace(CPU, graph_backend=found if capture else None)

    monkeypatch.setattr(setup, "resolve_device", compute)
    return found


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "own",
    [
        ("--set", "teacher_cache.mode=off"),
        ("--paradigm", "standard", "--robust", "trades", "--set", "robust.steps=2"),
        (
            "--set",
            'search.gumbel_optimiser={name="adam",lr=0.01}',
            "--set",
            "search.schedule.kind=cosine",
            "--pareto",
            2,
        ),
    ],
    ids=["the teacher, too", "no teacher, robust", "adam, cosine, levels"],
)
def test_a_recorded_search_is_the_search(
    own: tuple[object, ...], recorder: Recording, tiny_teacher: Path, tmp_path: Path
) -> None:
    common = ["search", "--space", "S3", "--teacher", tiny_teacher, *SMALL, *own, "--epochs", EPOCHS, "--seed", 3]
    found = []
    for capture in ("false", "true"):
        done(*common, "--set", f"capture_steps={capture}", "--out", tmp_path / capture)
        found.append(read_document(tmp_path / capture / "search.json", SearchDocument))
    plain, recorded = found
    assert len(recorder.recorded) == (2 if "teacher_cache.mode=off" in own else 1)
    assert recorder.replays >= REPLAYED
    assert_same_search(plain, recorded, same)


@pytest.mark.parametrize(
    "own", [(), ("--paradigm", "standard", "--average", "ema", "--set", "train.schedule.kind=cosine")]
)
def test_a_recorded_training_is_the_training(
    own: tuple[object, ...], recorder: Recording, searched: dict[str, Path], tmp_path: Path
) -> None:
    found = []
    for capture in ("false", "true"):
        out = tmp_path / capture
        common = ["train", searched["rnas-cl"], *SMALL, *own, "--epochs", EPOCHS]
        done(*common, "--set", f"capture_steps={capture}", "--out", out)
        found.append((load_file(out / "student.safetensors"), read_document(out / "train.json", TrainDocument)))
    (plain, before), (recorded, after) = found
    assert recorder.replays >= REPLAYED
    assert before.clean_accuracy == after.clean_accuracy
    for name, tensor in plain.items():
        torch.testing.assert_close(recorded[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_recorded_fine_tuning_is_the_fine_tuning(
    recorder: Recording, trained: dict[str, Path], tmp_path: Path
) -> None:
    found = []
    for capture in ("false", "true"):
        common = ["adv-finetune", trained["rnas-cl"], *SMALL, "--set", "robust.steps=3", "--epochs", EPOCHS]
        done(*common, "--set", f"capture_steps={capture}", "--out", tmp_path / capture)
        found.append(load_file(tmp_path / capture / "student.safetensors"))
    assert recorder.replays >= REPLAYED
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-4, atol=1e-5)


def test_a_rival_is_not_recorded(recorder: Recording, searched: dict[str, Path], tmp_path: Path) -> None:
    rival = ("--distill", "pkt", "--epochs", 1, "--set", "capture_steps=true")
    out = done("train", searched["rnas-cl"], *SMALL, *rival, "--out", tmp_path / "run")
    assert not recorder.recorded
    assert "not recorded" not in out.err  # it was not tried


def test_a_run_without_a_gpu_is_refused(searched: dict[str, Path], tmp_path: Path) -> None:
    line = refused(
        "train", searched["rnas-cl"], *SMALL, "--epochs", 1, "--set", "capture_steps=true", "--out", tmp_path / "run"
    )
    assert "capture_steps" in line
    assert "on a CUDA device only" in line
    assert not (tmp_path / "run").exists()
