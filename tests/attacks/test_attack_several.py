"""``rnascl attack`` on several models, and resuming after an interruption."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rnascl_cli.artifacts.documents import TrainDocument
from rnascl_cli.artifacts.store import read_document, write_document
from rnascl_cli.attacks import audit, registry
from rnascl_cli.attacks.autoattack import AutoAttack
from rnascl_cli.attacks.evaluate import Evaluator
from rnascl_cli.cli.app import run
from tests.attacks.commands import QUICK, attacked, refused

pytestmark = pytest.mark.unit


@pytest.fixture
def two_runs(trained_run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The run directory, and a second one of the same student."""
    other = tmp_path / "other"
    shutil.copytree(trained_run, other)
    return trained_run, other


def test_several_models_in_one_command(two_runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--attack", "fgsm,pgd2", "--eps", "0,2/255,8/255"]
    assert run(["attack", *map(str, two_runs), *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.out.split() == [str(folder) for folder in two_runs]
    assert captured.err.count("protocol pixel") == 3  # a table a model, and one with both
    assert "different" not in captured.err
    first, second = (attacked(folder) for folder in two_runs)
    assert first.verdicts == second.verdicts
    for name in ("fgsm", "pgd2"):
        falling = [row.accuracy for row in first.results if row.attack == name]
        assert falling == sorted(falling, reverse=True)
        assert len(falling) == 3


def test_several_models_give_a_list_and_separate_folders(
    two_runs: tuple[Path, Path], student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    models = [str(two_runs[0]), str(student)]
    assert run(["attack", *models, "--data", "digits", *QUICK, "--out", str(out), "--json"]) == 0
    documents = json.loads(capsys.readouterr().out)
    assert [document["model"] for document in documents] == models
    assert sorted(path.name for path in out.iterdir()) == ["run", "student"]
    assert documents[1] == json.loads((out / "student" / "attack.json").read_text())
    assert not (two_runs[0] / "attack.json").exists()


def test_models_on_different_images_give_a_warning(
    two_runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    document = read_document(two_runs[1] / "train.json", TrainDocument)
    provenance = document.provenance.model_copy(update={"seed": 4})
    write_document(two_runs[1] / "train.json", document.model_copy(update={"provenance": provenance}))
    assert run(["attack", *map(str, two_runs), "--attack", "clean,fgsm"]) == 0
    assert "were attacked on different images; pass --data" in capsys.readouterr().err


def test_nothing_is_attacked_if_one_of_several_models_is_refused(
    two_runs: tuple[Path, Path], student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--data" in refused([str(two_runs[0]), str(student), "--attack", "fgsm"], capsys)
    assert "given twice" in refused([str(two_runs[0]), f"{two_runs[0]}/", "--attack", "fgsm"], capsys)
    assert "nowhere" in refused([str(two_runs[0]), "nowhere", "--attack", "fgsm"], capsys)
    assert not (two_runs[0] / "attack.json").exists()


def test_several_models_are_resumed(
    two_runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["attack", *map(str, two_runs), "--attack", "fgsm,pgd2"]
    attack_batch = Evaluator.attack_batch
    calls: list[int] = []

    def interrupted(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # the second model's second attack
            raise KeyboardInterrupt
        return attack_batch(*given)

    monkeypatch.setattr(Evaluator, "attack_batch", interrupted)
    assert run(arguments) == 130
    finished = (two_runs[0] / "attack.json").read_bytes()
    capsys.readouterr()
    assert "already exists" in refused(arguments[1:], capsys)
    assert run([*arguments, "--resume"]) == 0
    assert "already finished" in capsys.readouterr().err
    assert (two_runs[0] / "attack.json").read_bytes() == finished
    assert len(calls) == 5
    assert attacked(two_runs[1]).verdicts == attacked(two_runs[0]).verdicts
    capsys.readouterr()
    assert "another settings" in refused([str(two_runs[0]), "--attack", "pgd5", "--resume"], capsys)


def test_ctrl_c_in_autoattack_and_audit_loses_at_most_one_batch(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process gets SIGINT twice, and gives the same result as one without interruption."""
    settings = ["--attack", "pgd2,apgd-ce,square", "--eps", "6/255", "--batch-size", "10", "--audit"]
    subset = ["--data", "digits", "--limit-test", "30", "--set", "audit_images=6", "--device", "cpu"]
    command = ["attack", str(student), *subset, *settings, "--out"]
    for module in (audit, registry):
        monkeypatch.setattr(module, "AutoAttack", shortened)
    whole, out = tmp_path / "whole", tmp_path / "out"
    journal = out / "attack.partial.jsonl"
    for wanted, more in (("apgd-ce", []), ("audit: ", ["--resume"])):
        program = [sys.executable, "-c", INTERRUPTED, wanted, *command, str(out), *more]
        assert subprocess.run(program, stderr=subprocess.DEVNULL, timeout=120).returncode == 130
        assert not (out / "attack.json").exists()
    assert len(journal.read_bytes().splitlines()) > 5
    assert run([*command, str(out), "--resume"]) == 0
    assert run([*command, str(whole)]) == 0
    assert attacked(out).verdicts == attacked(whole).verdicts
    assert attacked(out).audit == attacked(whole).audit
    assert not journal.exists()


def shortened(name: str, **_: int) -> AutoAttack:
    """AutoAttack with few iterations."""
    return AutoAttack(name, iterations=3, queries=5)


# Sends itself SIGINT once the journal has a batch of the attack that the first argument names.
INTERRUPTED = """
import os, signal, sys
from rnascl_cli.attacks import audit, registry
from rnascl_cli.attacks.autoattack import AutoAttack
from rnascl_cli.attacks.resume import Journal
from rnascl_cli.cli.app import run
audit.AutoAttack = registry.AutoAttack = lambda name, **_: AutoAttack(name, iterations=3, queries=5)
record = Journal.record
def recording(journal, key, *rest):
    record(journal, key, *rest)
    if sys.argv[1] in str(key):
        os.kill(os.getpid(), signal.SIGINT)
Journal.record = recording
sys.exit(run(sys.argv[2:]))
"""
