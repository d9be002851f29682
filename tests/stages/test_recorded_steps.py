"""Recorded steps of search and train give what steps launched one by one give, from command to weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rnascl_cli.artifacts.documents import SearchDocument, TrainDocument
from rnascl_cli.artifacts.store import read_document
from rnascl_cli.stages import search as search_stage
from rnascl_cli.stages import train as train_stage
from tests.command import done, refused
from tests.engine.recording import Recording
from tests.engine.toy import CPU

pytestmark = pytest.mark.pipeline

SMALL = ("--data", "digits", "--limit-train", 53, "--limit-test", 10, "--batch-size", 10, "--device", "cpu")
CAPTURE = ("--set", "capture_steps=true", "--set", "teacher_cache.mode=on")
EPOCHS = 2
REPLAYED = EPOCHS * (4 - 1) - 1  # of 4 full batches all but the first, which is looked at; and not the first met


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recording:
    """A stand-in for CUDA graphs under every search and train that asks for them."""
    found = Recording()

    def compute(*_: Any, capture: bool, **__: Any) -> Any:
        return replace(CPU, step_recorder=found if capture else None)

    for stage in (search_stage, train_stage):
        monkeypatch.setattr(stage, "resolve_compute", compute)
    return found


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "own",
    [
        ("--set", "teacher_cache.mode=off"),
        ("--paradigm", "standard"),
        (
            "--set",
            'search.gumbel_optimiser={name="adam",lr=0.01}',
            "--set",
            "search.schedule.kind=cosine",
            "--pareto",
            2,
        ),
    ],
    ids=["the teacher, too", "no teacher", "adam, cosine, levels"],
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
    for one, other in zip(plain.width_logits, recorded.width_logits, strict=True):
        same(one, other)
    same(plain.tutor_logits, recorded.tutor_logits)
    for before, after in zip(plain.history, recorded.history, strict=True):
        names = sorted(set(before) - {"seconds", "images_per_second", "peak_memory_bytes"})
        same([before[name] for name in names], [after[name] for name in names])


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


@pytest.mark.parametrize("own", [("--method", "fast-at"), ("--distill", "pkt")])
def test_a_training_that_does_more_within_its_step_is_not_recorded(
    own: tuple[object, ...], recorder: Recording, searched: dict[str, Path], tmp_path: Path
) -> None:
    out = done("train", searched["rnas-cl"], *SMALL, *own, "--epochs", 1, *CAPTURE, "--out", tmp_path / "run")
    assert not recorder.recorded
    assert "not recorded" not in out.err  # it was not tried


def test_a_robust_search_is_not_recorded(recorder: Recording, tiny_teacher: Path, tmp_path: Path) -> None:
    robust = ("--robust", "fast-at", "--teacher", tiny_teacher, "--epochs", 1)
    out = done("search", "--space", "S3", *SMALL, *robust, *CAPTURE, "--out", tmp_path / "run")
    assert not recorder.recorded
    assert "not recorded" not in out.err


def test_a_run_without_a_gpu_is_refused(searched: dict[str, Path], tmp_path: Path) -> None:
    line = refused(
        "train", searched["rnas-cl"], *SMALL, "--epochs", 1, "--set", "capture_steps=true", "--out", tmp_path / "run"
    )
    assert "capture_steps" in line
    assert "this is no CUDA device" in line
    assert not (tmp_path / "run").exists()
