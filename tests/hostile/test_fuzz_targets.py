"""A few hundred executions of every fuzz target; `make fuzz` goes on for as long as one likes."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile.mutation import spoilt
from tests.hostile.targets import TARGETS, FindingError, Target

EXAMPLES = {"report": 12, "studies": 40, "weights": 60, "photographs": 40}

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.filterwarnings("ignore"),  # what Pillow says of broken images
]


@pytest.fixture(scope="module")
def workshop(good_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to write inputs to, beside the good world."""
    root = tmp_path_factory.mktemp("workshop")
    shutil.copytree(good_world, root / "world")
    (root / "work").mkdir()
    return root


@pytest.mark.parametrize("name", TARGETS)
def test_good_inputs_are_accepted(workshop: Path, name: str) -> None:
    target = TARGETS[name]
    refused = [seed for seed in target.seeds(workshop / "world") if not target.attempt(seed, workshop / "work")]
    # Refused: unknown architectures, old torch files as a checkpoint to resume from, an unknown setting.
    expected = {"checkpoints": 4, "resume": 2, "settings": 1}
    assert len(refused) == expected.get(name, 0)


@pytest.mark.parametrize("name", TARGETS)
def test_spoilt_inputs_are_accepted_or_refused(workshop: Path, name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds(workshop / "world")

    @settings(
        max_examples=EXAMPLES.get(name, 100),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def read(draw: Random) -> None:
        target.attempt(spoilt(seeds, draw, structured=target.structured), workshop / "work")

    read()


def test_a_reader_that_fails_is_a_finding(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        raise KeyError("x")

    with pytest.raises(FindingError, match="KeyError"):
        Target("fails", "a.bin", lambda world: [b""], fails).attempt(b"", tmp_path)
