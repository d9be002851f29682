"""What only a GPU can show: recorded and compiled steps as they are there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rnascl_cli.artifacts.documents import SearchDocument
from rnascl_cli.artifacts.store import read_document
from tests.command import done

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("compiles", ["false", "true"])
@pytest.mark.parametrize("paradigm", ["standard", "rnas-cl"])
def test_a_recorded_search_learns_what_a_launched_one_does(
    paradigm: str, compiles: str, tiny_teacher: Path, tmp_path: Path
) -> None:
    torch.compiler.reset()
    common = ["search", "--space", "S3", "--data", "digits", "--batch-size", 64, "--device", "cuda", "--seed", 3]
    common += ["--epochs", 2, "--paradigm", paradigm, "--precision", "fp32", "--teacher", tiny_teacher]
    common += ["--set", "teacher_cache.mode=off"]
    done(*common, "--set", "capture_steps=false", "--out", tmp_path / "plain")
    done(*common, "--set", f"compile_steps={compiles}", "--out", tmp_path / "other")
    plain, other = (read_document(tmp_path / name / "search.json", SearchDocument) for name in ("plain", "other"))
    for before, after in zip(plain.history, other.history, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=0.05)
        assert after["expected_macs"] == pytest.approx(before["expected_macs"], rel=0.01)
