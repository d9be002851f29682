"""Freed memory stays with the process, so that a step touches no new page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rnascl_cli.engine.malloc import USER_SETTINGS

pytestmark = pytest.mark.unit

CODE = """
import resource
from rnascl_cli.engine.malloc import keep_freed_memory
kept = keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytes([number]) * (20 * 2**20) for number in range(1, 5)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, min(faults() for _ in range(3)))
"""


def kept_and_faults(**environment: str) -> tuple[bool, int]:
    inherited = {name: value for name, value in os.environ.items() if name not in USER_SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env={**inherited, **environment}
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.pipeline
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the setting is glibc's, on Linux")
def test_blocks_that_were_freed_are_used_again_without_a_fault() -> None:
    kept, faults = kept_and_faults()
    left_alone, faults_alone = kept_and_faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert not left_alone
    if not kept:
        pytest.skip("not glibc")
    assert faults < 100 < faults_alone
