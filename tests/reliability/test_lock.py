"""Two processes on one run directory: the second is refused; a crash leaves no lock behind."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rnascl_cli.core.errors import UserError
from rnascl_cli.core.file_lock import LOCK, lock_directory, refuse_if_in_use
from rnascl_cli.engine.run_directory import RunDirectory
from tests.command import refused
from tests.reliability.drills import leftovers
from tests.reliability.processes import Command, run_command
from tests.reliability.runs import Inputs, command_for


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "attack", "teacher train"])
def test_a_second_process_is_refused_until_the_first_has_ended(inputs: Inputs, tmp_path: Path, stage: str) -> None:
    out = tmp_path / "run"
    arguments = command_for(stage, inputs, out, epochs=100)
    if stage == "attack":
        arguments += ["--attack", "pgd5000"]
    first = Command(arguments, log=tmp_path / "first")
    folder = tmp_path / "run" / "t.training" if stage == "teacher train" else out
    kept = folder / ("attack.partial.jsonl" if stage == "attack" else "checkpoint.pt")
    first.wait_for(kept.exists)
    for more in ([], ["--force"], ["--resume"]):
        line = refused(*arguments, *more)
        assert f"--out {folder}: another rnascl (process {first.process.pid} on " in line
        assert "is writing there; wait for it, or name another folder" in line
    assert first.code is None
    first.kill()
    assert (folder / LOCK).is_file()
    refuse_if_in_use(folder)  # left behind, but not held
    last = [*command_for(stage, inputs, out, epochs=1), "--force"]
    run_command(last, log=tmp_path / "second")
    assert not (folder / LOCK).exists()


@pytest.mark.pipeline
def test_two_processes_that_start_together(inputs: Inputs, tmp_path: Path) -> None:
    arguments = command_for("train", inputs, tmp_path / "run", epochs=1)
    both = [Command(arguments, log=tmp_path / str(number)) for number in range(2)]
    codes = [command.end() for command in both]
    assert sorted(codes) == [0, 2], [command.said for command in both]
    said = both[codes.index(2)].said
    assert "is writing there" in said or "already exists" in said
    assert not (tmp_path / "run" / LOCK).exists()


@pytest.mark.unit
def test_released_with_the_last_reference(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path / "run")
    run.create()
    assert (tmp_path / "run" / LOCK).read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    del run
    gc.collect()
    assert not (tmp_path / "run" / LOCK).exists()
    RunDirectory.open(tmp_path / "run").create()  # the lock file never made the folder a used one


@pytest.mark.unit
def test_the_same_process_may_lock_again(tmp_path: Path) -> None:
    first = lock_directory(tmp_path)
    assert lock_directory(tmp_path) is first
    refuse_if_in_use(tmp_path)
    first.release()
    second = lock_directory(tmp_path)
    assert second is not first
    assert (tmp_path / LOCK).is_file()


@pytest.mark.unit
def test_a_forked_worker_neither_releases_nor_keeps_the_lock(tmp_path: Path) -> None:
    """A worker that ends leaves the lock to its parent; one that outlives a killed parent does not hold it."""
    program = """
import os, signal, sys, time
from pathlib import Path
from rnascl_cli.core.file_lock import lock_directory
lock = lock_directory(Path(sys.argv[1]))
if os.fork() == 0:
    os._exit(0)
os.wait()
worker = os.fork()
if worker == 0:
    time.sleep(60)
print(worker, flush=True)
time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(UserError, match=f"another rnascl \\(process {holder.pid} on"):
            lock_directory(tmp_path)
        holder.kill()
        holder.wait()
        lock_directory(tmp_path)
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.stdout.close()


@pytest.mark.unit
def test_a_lock_that_points_elsewhere_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(victim)
    with pytest.raises(UserError, match="--out"):
        lock_directory(tmp_path / "run")
    assert victim.read_text() == "mine"


@pytest.mark.unit
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    lock_directory(tmp_path)
    assert "its file system has no locks" in capsys.readouterr().err


@pytest.mark.unit
def test_temporary_files_of_a_killed_write_are_removed(tmp_path: Path) -> None:
    for name in (".checkpoint.pt.abc123.tmp", LOCK):
        (tmp_path / name).write_text("half")
    RunDirectory.open(tmp_path).create()
    assert not (tmp_path / ".checkpoint.pt.abc123.tmp").exists()
    (tmp_path / ".notes.tmp").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        RunDirectory.open(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["attack", "teacher train"])
def test_temporary_files_of_a_killed_last_write_are_removed(inputs: Inputs, tmp_path: Path, stage: str) -> None:
    out, name = tmp_path / "run", {"attack": "attack.json", "teacher train": "t.safetensors"}[stage]
    out.mkdir()
    (out / f".{name}.abc123.tmp").write_text("half")
    run_command(command_for(stage, inputs, out, epochs=1), log=tmp_path / "log")
    assert leftovers(out) == []


@pytest.mark.unit
def test_the_faster_process_is_not_overwritten(tmp_path: Path) -> None:
    late = RunDirectory.open(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.json").write_text("theirs")
    with pytest.raises(UserError, match="already exists"):
        late.create()
    assert (tmp_path / "run" / "train.json").read_text() == "theirs"
