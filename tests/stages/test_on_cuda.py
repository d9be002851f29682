"""What only a GPU can show: the teacher's look ahead, and recorded and compiled steps as they are there."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.workload import our_search, workload
from rnascl_cli.artifacts.documents import SearchDocument
from rnascl_cli.artifacts.store import read_document
from rnascl_cli.data import batches
from rnascl_cli.data.augment import Crop
from rnascl_cli.engine.compute import resolve_compute
from tests.command import done

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("capture", [False, True])
def test_looking_ahead_gives_the_lesson_itself(capture: bool, tmp_path: Path) -> None:
    """Steps go on meanwhile, in which a lesson read too early, or overwritten, would differ."""
    work = workload(tmp_path, space="S3", teacher="r18", side=8, images=1280, batch_size=64)
    device = torch.device("cuda")
    with our_search(work, compute=resolve_compute("cuda", "auto", capture=capture)) as task:
        assert task._teacher is not None
        drawn = batches(
            work.data.train.to(device),
            batch_size=64,
            generator=torch.Generator().manual_seed(2),
            augment=Crop(),
            device=device,
        )
        kept: list[tuple[Any, Any]] = []
        look = task._teacher.look

        def noted(batch: Any) -> Any:
            lesson = look(batch)
            kept.append((batch, tuple(part.clone() for part in lesson if part is not None)))
            return lesson

        task._teacher.look = noted  # type: ignore[method-assign]
        for batch, coming in itertools.pairwise(drawn):
            task.look_ahead(coming)
            task.step(batch)
        alone = [tuple(part for part in task._teacher._lesson(batch) if part is not None) for batch, _ in kept]
    # A graph may take other kernels than launches do, with other last digits of bf16; another batch's is far off.
    for number, (_, ahead) in enumerate(kept):
        for own, found, others in zip(alone[number], ahead, alone[number - 1], strict=True):
            assert (found - own).abs().max() < 0.1 * (others - own).abs().max(), number


@pytest.mark.parametrize("keys", [("capture_steps=true",), ("capture_steps=true", "compile_steps=true")])
def test_a_search_learns_the_same(keys: tuple[str, ...], tmp_path: Path) -> None:
    common = ["search", "--space", "S3", "--data", "digits", "--batch-size", 64, "--device", "cuda", "--seed", 3]
    common += ["--epochs", 2, "--paradigm", "standard", "--precision", "fp32"]
    done(*common, "--out", tmp_path / "plain")
    done(*common, *(word for key in keys for word in ("--set", key)), "--out", tmp_path / "other")
    plain, other = (read_document(tmp_path / name / "search.json", SearchDocument) for name in ("plain", "other"))
    for before, after in zip(plain.history, other.history, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=0.05)
        assert after["expected_macs"] == pytest.approx(before["expected_macs"], rel=0.01)
