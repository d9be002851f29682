"""Inputs made once for all drills, and folders of limited size."""

from __future__ import annotations

import copy
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.processes import run_command
from tests.reliability.runs import Inputs, command_for, essence, make_inputs

TMPFS_KILOBYTES = 6144


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, cache_folder: Path) -> Inputs:
    """What the stages start from."""
    return make_inputs(tmp_path_factory.mktemp("drills") / "inputs")


class Whole:
    """What uninterrupted runs of two epochs end with; each stage runs once a session."""

    def __init__(self, inputs: Inputs, folder: Path) -> None:
        self._inputs, self._folder = inputs, folder
        self._found: dict[str, dict[str, Any]] = {}

    def essence(self, stage: str) -> dict[str, Any]:
        """Return weights, logits, metrics and documents of a stage's run."""
        if stage not in self._found:
            out = self._folder / stage.replace(" ", "-")
            run_command(command_for(stage, self._inputs, out, epochs=2), log=self._folder / "log")
            self._found[stage] = essence(stage, out)
        return copy.deepcopy(self._found[stage])


@pytest.fixture(scope="session")
def whole(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What uninterrupted runs end with."""
    return Whole(inputs, tmp_path_factory.mktemp("whole"))


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
