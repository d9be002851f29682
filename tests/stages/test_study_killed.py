"""A killed study: its steps end by themselves, and the same command resumes it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rnascl_cli.core.file_lock import LOCK
from rnascl_cli.engine.parent_death import VARIABLE
from rnascl_cli.engine.run_directory import JOURNAL
from rnascl_cli.recipes.study import Study
from rnascl_cli.stages.study.plan import plan_study
from rnascl_cli.stages.study.runner import resume_options, run_study
from tests.command import done, soon

on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="the kernel tells children of their parent's end on Linux"
)

FOLLOWER = """
import time
from rnascl_cli.engine.parent_death import end_with_parent
end_with_parent()
print("on", flush=True)
time.sleep(60)
"""
LEADER = """
import os, subprocess, sys
from rnascl_cli.engine.parent_death import ending_with_this_process
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env={**os.environ, **ending_with_this_process()},
                         stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""
HOLDER = """
import sys
from pathlib import Path
from rnascl_cli.core.file_lock import lock_directory
lock = lock_directory(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""
STEP = """#!/bin/sh
for word; do
  [ "$previous" = --out ] && out=$word
  previous=$word
done
mkdir -p "$out"; echo {} > "$out/$3.json"
"""
TINY = """
title = "Tiny"
spaces = ["S3"]
reference = "plain"
[settings]
precision = "fp32"
device = "cpu"
data = { spec = "digits", limit_train = 40, limit_test = 20 }
search = { epochs = 30, batch_size = 16, paradigm = "standard" }
train = { epochs = 1, batch_size = 16 }
[[arm]]
name = "plain"
"""


def lives(pid: int) -> bool:
    """Return whether a process is running and not a zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@on_linux
@pytest.mark.pipeline
def test_a_child_ends_with_its_parent() -> None:
    leader = subprocess.Popen([sys.executable, "-c", LEADER, FOLLOWER], stdout=subprocess.PIPE, text=True)
    assert leader.stdout is not None
    with leader.stdout:
        child = int(leader.stdout.readline())
    assert lives(child)
    leader.kill()
    leader.wait()
    assert soon(lambda: not lives(child), seconds=10)


@on_linux
@pytest.mark.pipeline
def test_a_child_whose_parent_is_gone_ends_at_once() -> None:
    environment = {**os.environ, VARIABLE: "1"}  # this test is not the first process
    follower = subprocess.run([sys.executable, "-c", FOLLOWER], env=environment, capture_output=True, timeout=30)
    assert (follower.returncode, follower.stdout) == (-signal.SIGTERM, b"")


@pytest.mark.unit
def test_the_study_waits_for_a_process_of_an_earlier_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_study(Study.model_validate({"title": "t", "spaces": ["S3"], "reference": "a", "arm": [{"name": "a"}]}))
    (search := tmp_path / "out/s3/seed0/a/search").mkdir(parents=True)
    (tmp_path / "out/steps.json").write_text("{}", encoding="utf-8")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(search)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder.stdin, holder.stdout:
        assert holder.stdout.readline() == b"held\n"
        (script := tmp_path / "python").write_text(STEP, encoding="utf-8")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        begun_while_held: list[bool] = []

        def let_go() -> None:
            begun_while_held.append((search / "search.json").exists())
            assert holder.stdin is not None
            holder.stdin.close()

        timer = threading.Timer(0.5, let_go)
        timer.start()
        progress = run_study(plan, tmp_path / "out", only=["*/search"])
        timer.join()
        holder.wait(timeout=10)
    assert begun_while_held == [False]
    assert progress.done == {"s3/seed0/a/search"}
    said = capsys.readouterr().err
    assert said.count("waiting for another process to end: ") == 1
    assert str(holder.pid) in said


@pytest.mark.unit
@pytest.mark.parametrize(
    ("left", "option"),
    [("attack.json", "--resume"), ("attack.journal", "--resume"), ("checkpoint.pt", "--resume"), ("else", "--force")],
)
def test_resume_options(tmp_path: Path, left: str, option: str) -> None:
    assert resume_options(tmp_path) == []
    (tmp_path / (JOURNAL if left == "attack.journal" else left)).write_bytes(b"x")
    assert resume_options(tmp_path) == [option]


@on_linux
@pytest.mark.pipeline
@pytest.mark.slow
def test_a_killed_study_ends_its_steps_and_is_resumed(tmp_path: Path) -> None:
    file, out = tmp_path / "tiny.toml", tmp_path / "out"
    file.write_text(TINY, encoding="utf-8")
    search = out / "s3/seed0/plain/search"
    command = ["study", str(file), "--out", str(out), "--only", "*/derived.json"]
    killed = subprocess.Popen([sys.executable, "-m", "rnascl_cli", *command], stderr=subprocess.DEVNULL)
    assert soon((search / "checkpoint.pt").is_file), "it is to be killed in the middle of the search"
    step = int((search / LOCK).read_text(encoding="utf-8").split()[1])
    killed.kill()
    killed.wait()
    done(*command)  # at once: the step may still be at its checkpoint
    assert not lives(step)
    assert json.loads((out / "study.json").read_text(encoding="utf-8"))["steps_done"] == 2
    log = (out / "logs/s3-seed0-plain-search.log").read_text(encoding="utf-8")
    assert "SIGTERM: stopping after this step" in log, "and so it wrote its checkpoint"
