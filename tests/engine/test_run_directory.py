"""Run directories: what may be written to, and that asking touches nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rnascl_cli.core.errors import UserError
from rnascl_cli.core.file_lock import LOCK
from rnascl_cli.engine.run_directory import ARTIFACTS, RunDirectory

pytestmark = pytest.mark.unit


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A run directory with every artifact and a file of the user's."""
    path = tmp_path / "run"
    path.mkdir()
    for name in (*ARTIFACTS, "notes.txt"):
        (path / name).write_text(f"old {name}")
    return path


def contents(path: Path) -> dict[str, tuple[str, int]]:
    """What is in a folder, but for the lock of the run that holds it."""
    here = [item for item in path.iterdir() if item.name != LOCK]
    return {item.name: (item.read_text(), item.stat().st_mtime_ns) for item in here}


def test_claiming_makes_nothing(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    run.create()
    assert (tmp_path / "a" / "b").is_dir()


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path).create()


def test_an_existing_run_is_refused_untouched(full: Path) -> None:
    before = contents(full)
    with pytest.raises(UserError, match="already exists; use another name, --force or --resume") as error:
        RunDirectory.open(full)
    assert str(full) in str(error.value)
    assert contents(full) == before


def test_a_folder_with_anything_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(UserError, match="already exists"):
        RunDirectory.open(tmp_path)


def test_a_file_is_refused_whatever_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text("mine")
    for force, resume in ((False, False), (True, False), (False, True)):
        with pytest.raises(UserError, match="is a file; name a folder"):
            RunDirectory.open(path, force=force, resume=resume)
    assert path.read_text() == "mine"


def test_force_drops_the_old_artifacts_only_when_made(full: Path) -> None:
    before = contents(full)
    run = RunDirectory.open(full, force=True)
    assert contents(full) == before
    run.create()
    assert list(contents(full)) == ["notes.txt"]


def test_force_on_a_new_name_is_no_error(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path / "new", force=True).create()


def test_resume_keeps_everything(full: Path) -> None:
    before = contents(full)
    run = RunDirectory.open(full, resume=True)
    run.create()
    assert run.resume
    assert contents(full) == before


def test_resume_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint in .*; start without --resume"):
        RunDirectory.open(tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("left", [[], ["derived.json"], [LOCK], [LOCK, "metrics.jsonl"], [".metrics.jsonl.x.tmp"]])
def test_a_run_stopped_before_its_first_checkpoint_starts_anew(left: list[str], tmp_path: Path) -> None:
    for name in left:
        (tmp_path / name).write_text("")
    run = RunDirectory.open(tmp_path, own="train.json", resume=True)
    assert not run.resume
    run.create()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


@pytest.mark.parametrize("there", ["metrics.jsonl", "photo.png", "derived.json"])
def test_what_is_no_such_run_is_not_resumed(there: str, tmp_path: Path) -> None:
    (tmp_path / there).write_text("")
    with pytest.raises(UserError, match=r"no checkpoint in .*; start without --resume"):
        RunDirectory.open(tmp_path, own="search.json", resume=True)
    assert (tmp_path / there).is_file()


def test_a_run_that_starts_anew_leaves_a_checkpoint_that_came_meanwhile(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path, own="search.json", resume=True)
    (tmp_path / "checkpoint.pt").write_text("another's")
    with pytest.raises(UserError, match=r"already exists; use another name, --force or --resume"):
        run.create()
    assert (tmp_path / "checkpoint.pt").read_text() == "another's"


def test_force_and_resume_exclude_each_other(full: Path) -> None:
    before = contents(full)
    with pytest.raises(UserError, match="--force and --resume exclude each other"):
        RunDirectory.open(full, force=True, resume=True)
    assert contents(full) == before


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = RunDirectory.open(tmp_path / "file" / "run")
    with pytest.raises(UserError, match=r"--out .*Not a directory"):
        run.create()


def test_metrics_are_a_line_an_epoch(tmp_path: Path) -> None:
    history = [{"epoch": 0, "loss": 1.5}, {"epoch": 1, "loss": 0.5, "holdout_accuracy": 0.25}]
    RunDirectory.open(tmp_path / "run").write_metrics(history)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history


def test_every_artifact_of_the_contract_is_known() -> None:
    documents = {"search.json", "derived.json", "train.json", "adv-finetune.json", "attack.json"}
    assert documents | {"student.safetensors", "metrics.jsonl", "checkpoint.pt"} <= set(ARTIFACTS)
