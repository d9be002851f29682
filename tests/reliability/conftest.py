"""Inputs made once for all drills, and folders of limited size."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.runs import Inputs, make_inputs

TMPFS_KILOBYTES = 6144


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, cache_folder: Path) -> Inputs:
    """What the stages start from."""
    return make_inputs(tmp_path_factory.mktemp("drills") / "inputs")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB of its own; skipped where one may not mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={TMPFS_KILOBYTES}k", "tmpfs", str(folder)]
    try:
        made = subprocess.run(["mount", *options], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if made.returncode:
        pytest.skip(f"may not mount here: {made.stderr.strip()}")
    yield folder
    while os.path.ismount(folder / "run"):
        subprocess.run(["umount", "--lazy", str(folder / "run")], check=True)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
