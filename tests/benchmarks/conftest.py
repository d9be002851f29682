"""The benchmarks' workload at a size for tests: what is counted per layer and pair does not depend on the batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.workload import Workload, workload

BATCH = 10


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """S5 under an R-18 of random weights, maps of 32x32, ten images a step."""
    folder = tmp_path_factory.mktemp("workload")
    return workload(folder, space="S5", teacher="r18", side=32, images=BATCH, batch_size=BATCH)


@pytest.fixture(scope="session")
def wider(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """The same under a WRN-34-10."""
    folder: Path = tmp_path_factory.mktemp("wider")
    return workload(folder, space="S5", teacher="wrn-34-10", side=32, images=BATCH, batch_size=BATCH)
