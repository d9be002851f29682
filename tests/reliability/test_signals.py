"""Ctrl-C and SIGTERM: exit 130 and 143, and the command that is said goes on to the same end."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

import pytest

from rnascl_cli.engine.resume_command import recorded_command, resume_hint, with_resume
from tests.command import rnascl
from tests.conftest import FAST as SMALL
from tests.ranks import become
from tests.reliability.conftest import Whole
from tests.reliability.drills import differences, leftovers
from tests.reliability.processes import Command, run_command
from tests.reliability.runs import STAGES, Inputs, command_for, essence, folder_of


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_the_command_that_is_said_goes_on(
    inputs: Inputs, whole: Whole, tmp_path: Path, stage: str, signum: signal.Signals
) -> None:
    if signum == signal.SIGINT and stage not in ("train", "attack"):
        pytest.skip("the same loop as train's")
    out = tmp_path / "run"
    command = Command(command_for(stage, inputs, out, epochs=2), log=tmp_path / "log")
    kept = folder_of(stage, out) / ("attack.partial.jsonl" if stage == "attack" else "checkpoint.pt")
    command.wait_for(kept.exists)
    command.send(signum)
    assert command.end() == 128 + signum
    *before, last = command.said.splitlines()
    assert "Traceback" not in command.said
    assert last.startswith("rnascl: ")
    if stage != "attack":
        assert any("stopping after this step" in line for line in before)
    said, _, again = last.partition("resume with: ")
    assert "stopped at epoch" in said or "finished batches are kept" in said
    words = shlex.split(again)
    assert words[0] == "rnascl"
    assert words[-1] == "--resume"
    run_command(words[1:], log=tmp_path / "log")
    assert differences(whole.essence(stage), essence(stage, out)) == []
    assert leftovers(out) == []


@pytest.mark.pipeline
def test_two_signals_end_at_once(inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = Command([*command_for("adv-finetune", inputs, out, epochs=50)], log=tmp_path / "log")
    command.wait_for((out / "checkpoint.pt").exists)
    command.send(signal.SIGINT)
    command.send(signal.SIGTERM)
    assert command.end() in (130, 143)
    assert leftovers(out) in ([], ["checkpoint.previous.pt"])


@pytest.mark.pipeline
def test_sigterm_outside_of_a_training(tmp_path: Path) -> None:
    command = Command(
        ["search", "--paradigm", "standard", *SMALL, "--data", "digits", "--out", "r"], log=tmp_path / "l"
    )
    command.send(signal.SIGTERM)
    # Either before Python has set its handler, or by it: a shell sees 143 both times.
    assert command.end() in (-signal.SIGTERM, 143)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("command", "again"),
    [
        ("rnascl search --space S5", "rnascl search --space S5 --out runs/x --resume"),
        ("rnascl search --out runs/x --force", "rnascl search --out runs/x --resume"),
        ("rnascl search --resume --out=runs/x", "rnascl search --out=runs/x --resume"),
        ("rnascl train - --out runs/x", "rnascl train runs/x/derived.json --out runs/x --resume"),
        ("rnascl train 'a b.json' --out runs/x", "rnascl train 'a b.json' --out runs/x --resume"),
    ],
)
def test_the_command_to_go_on_with(command: str, again: str) -> None:
    assert with_resume(shlex.split(command), out=Path("runs/x"), derived=Path("runs/x/derived.json")) == again


@pytest.mark.unit
def test_several_machines_are_told_where_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, 0, 16, on_each_machine=8)
    monkeypatch.setenv("MASTER_ADDR", "node7")
    with recorded_command(["search"]):
        again = resume_hint(out=Path("runs/x"))
    assert again == (
        "resume on each of the 2 machines with: torchrun --nnodes=2 --rdzv-backend=c10d --rdzv-endpoint=node7:29500 "
        "--nproc-per-node=8 -m rnascl_cli search --out runs/x --resume"
    )


@pytest.mark.pipeline
def test_quickstart_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("rnascl_cli.stages.teacher.train.train_teacher", stopped)
    outcome = rnascl("quickstart", "--recipe", "smoke/tiny", "--out", tmp_path / "q")
    assert (outcome.code, outcome.out) == (143, "")
    assert outcome.err.splitlines()[-1] == "rnascl: quickstart: stopped; rerun the command with --force"
