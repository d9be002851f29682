"""A full disk, a folder that turns read-only: a clear error, the last good checkpoint, nothing half-written."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rnascl_cli.artifacts.store import write_bytes, write_weights
from rnascl_cli.attacks.resume import FinishedBatch, Journal
from rnascl_cli.core.errors import RunError, WriteError
from rnascl_cli.engine.checkpoint import read_checkpoint, write_checkpoint
from rnascl_cli.engine.training_loop import fit
from rnascl_cli.teachers.output_store import OutputStore, StoredKind
from tests.command import files
from tests.engine.toy import CPU, ToyTask, numbers, toy_plan
from tests.reliability.conftest import Whole
from tests.reliability.processes import Command, run_command
from tests.reliability.runs import Inputs, command_for, essence, folder_of

SAYS = r"cannot be written \({}\); what was there before is unchanged"


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Let every write beyond so many bytes fail, as on a full disk; needs no rights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill(folder: Path, *, leave: int = 0) -> Path:
    """Leave no byte free, or as many as are said."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(b"\0" * 4096):
                pass
        file.truncate(file.tell() - leave)
    return path


def turn_read_only(folder: Path) -> None:
    """Lay a read-only view of a folder over it; files that are open stay as they are."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)


@pytest.mark.unit
def test_a_write_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_bytes(path, b"old")
    before = files(tmp_path)
    for write in (
        lambda: write_bytes(path, b"x" * 100_000),
        lambda: write_weights(path, {"w": torch.zeros(100_000)}, {}),
    ):
        with files_no_larger_than(50_000), pytest.raises(WriteError, match=SAYS.format("File too large")) as error:
            write()
        assert str(error.value).startswith(f"{path}: ")
        assert isinstance(error.value, RunError)
        assert files(tmp_path) == before


@pytest.mark.unit
def test_a_checkpoint_that_does_not_fit(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"number": 1})
    before = files(tmp_path)
    for size in (100_000, 300_000):  # torch notices some of these by itself, and says so in its own words
        with files_no_larger_than(50_000), pytest.raises(WriteError, match=r"checkpoint\.pt: cannot be written"):
            write_checkpoint(tmp_path, {"w": torch.zeros(size), "v": torch.zeros(size)})
        assert files(tmp_path) == before
    assert read_checkpoint(tmp_path / "checkpoint.pt", CPU.device) == {"number": 1}


@pytest.mark.unit
@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_takes_no_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path = tmp_path / "a.json"
    write_bytes(path, b"old")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(WriteError, match=SAYS.format(os.strerror(code))):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    with pytest.raises(OSError, match="unchanged") as error:
        write_bytes(path, b"new")
    assert (error.value.errno, error.value.strerror) == (code, os.strerror(code))


@pytest.mark.unit
def test_dev_full(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", {})
    journal.start()
    (tmp_path / "journal").unlink()
    (tmp_path / "journal").symlink_to("/dev/full")
    with pytest.raises(WriteError, match=r"journal: cannot be written \(No space left on device\)"):
        journal.record(("fgsm", "8/255", 0), [1], FinishedBatch([1], 0, 0.1, []))


@pytest.mark.unit
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_training_whose_disk_gives_out(small_disk: Path, tmp_path: Path, fault: str) -> None:
    history = fit(ToyTask(), toy_plan(tmp_path / "whole"))
    run = small_disk / "run"

    def give_out(now: int) -> None:
        if now == 8:  # in the third epoch
            fill(small_disk) if fault == "full" else turn_read_only(run)

    words = {"full": "No space left on device", "read-only": "Read-only file system"}[fault]
    with pytest.raises(WriteError, match=SAYS.format(words)):
        fit(ToyTask(give_out), toy_plan(run))
    assert not [path.name for path in run.iterdir() if path.name.endswith(".tmp")]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    if fault == "full":
        (small_disk / "ballast").unlink()
    else:
        subprocess.run(["umount", str(run)], check=True)
    assert numbers(fit(ToyTask(), toy_plan(run, resume=True))) == numbers(history)


@pytest.mark.unit
def test_kept_teacher_outputs_on_a_full_disk(small_disk: Path) -> None:
    digests = [bytes([number]) * 16 for number in range(8)]
    kind = StoredKind({"kind": "logits"}, 162, (1000,), torch.float32)
    store = OutputStore(kind, digests, folder=small_disk / "store")
    store.put(torch.arange(4), torch.ones(4, 1000))
    store.flush()
    fill(small_disk)
    with pytest.raises(OSError, match="No space left on device"):  # and not SIGBUS, which ends the process
        store.put(torch.arange(200, 1200), torch.ones(1000, 1000))
    again = OutputStore(kind, digests, folder=small_disk / "store")
    assert again.is_cached(torch.tensor([0, 3, 4, 200])).tolist() == [True, True, False, False]
    assert torch.equal(again.read(torch.arange(4)), torch.ones(4, 1000))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "attack"])
def test_a_stage_whose_disk_gives_out(
    inputs: Inputs, whole: Whole, small_disk: Path, tmp_path: Path, stage: str
) -> None:
    out = small_disk / "run"
    arguments = command_for(stage, inputs, out, epochs=2)
    command = Command(arguments, log=tmp_path / "log")
    kept = out / ("attack.partial.jsonl" if stage == "attack" else "checkpoint.pt")
    command.wait_for(kept.exists)
    ballast = fill(small_disk)
    assert command.end() == 1, command.said
    last = command.said.splitlines()[-1]
    assert last.startswith(f"rnascl: {out}/")
    assert "cannot be written (No space left on device); what was there before is unchanged" in last
    assert "Traceback" not in command.said
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    ballast.unlink()
    run_command([*arguments, "--resume"], log=tmp_path / "log")
    assert essence(stage, out) == whole.essence(stage)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["search", "teacher train"])
def test_a_disk_too_small_for_the_first_checkpoint(
    inputs: Inputs, small_disk: Path, tmp_path: Path, stage: str
) -> None:
    fill(small_disk, leave=100_000)
    command = Command(command_for(stage, inputs, small_disk / "run", epochs=1), log=tmp_path / "log")
    assert command.end() == 1
    folder = folder_of(stage, small_disk / "run")
    line = f"rnascl: {folder}/checkpoint.pt: cannot be written (No space left on device)"
    assert command.said.splitlines()[-1].startswith(line)
    assert list(folder.iterdir()) == []
