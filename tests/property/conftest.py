"""Runs for the tests of options."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.hostile.good_runs import write_runs


@pytest.fixture(scope="session")
def good_runs(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Path:
    """``r8.safetensors``, ``search/``, ``train/``, ``fine/`` and ``attack/``; never to be changed."""
    root = tmp_path_factory.mktemp("property") / "runs"
    root.mkdir()
    shutil.copy(tiny_teacher, root / "r8.safetensors")
    write_runs(root, root / "r8.safetensors")
    return root
