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
