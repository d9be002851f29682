"""SIGKILL in the middle of each stage, then ``--resume``; ``make drills`` does it twenty times each."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.reliability.conftest import Whole
from tests.reliability.drills import differences, leftovers
from tests.reliability.processes import Command, run_command
from tests.reliability.runs import STAGES, Inputs, begun, command_for, essence, folder_of, resumable

pytestmark = pytest.mark.slow

KILLS = 2


@pytest.mark.parametrize("stage", STAGES)
def test_killed_twice_and_resumed(inputs: Inputs, whole: Whole, tmp_path: Path, stage: str) -> None:
    out, log, stream = tmp_path / "run", tmp_path / "log", random.Random(stage)
    arguments = command_for(stage, inputs, out, epochs=2)
    for _ in range(KILLS):
        command = Command([*arguments, *(["--resume"] if begun(stage, out) else [])], log=log)
        kept = folder_of(stage, out) / ("attack.partial.jsonl" if stage == "attack" else "checkpoint.pt")
        before = kept.stat().st_mtime_ns if kept.exists() else 0
        command.wait_for(lambda: kept.exists() and kept.stat().st_mtime_ns != before)  # noqa: B023
        command.process.join(stream.uniform(0.0, 0.05))
        command.kill()
        assert command.code == -9, command.said
    assert resumable(stage, out)
    run_command([*arguments, "--resume"], log=log)
    assert differences(whole.essence(stage), essence(stage, out)) == []
    assert leftovers(out) == []


def test_essence_tells_runs_apart(whole: Whole, inputs: Inputs, tmp_path: Path) -> None:
    run_command([*command_for("train", inputs, tmp_path / "run", epochs=2), "--seed", 6], log=tmp_path / "log")
    found = differences(whole.essence("train"), essence("train", tmp_path / "run"))
    assert found == ["logits", "metrics", "train.json", "weights"]


def test_killed_before_the_first_checkpoint(inputs: Inputs, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    arguments = [*command_for("train", inputs, out, epochs=1), "--set", "checkpoint_minutes=null"]
    command = Command(arguments, log=log)
    command.wait_for((out / "derived.json").exists)
    command.kill()
    assert {path.name for path in out.iterdir()} - {".metrics.jsonl.tmp"} <= {"derived.json", ".rnascl.lock"}
    again = run_command([*arguments, "--resume"], log=log)
    assert "was stopped before its first checkpoint; starting from the beginning" in again.said
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint.pt",
        "derived.json",
        "metrics.jsonl",
        "student.safetensors",
        "train.json",
    ]
