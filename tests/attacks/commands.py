"""Helpers of the tests of ``rnascl attack``."""

from __future__ import annotations

from pathlib import Path

import pytest

from rnascl_cli.artifacts.documents import AttackDocument
from rnascl_cli.artifacts.store import read_document
from rnascl_cli.cli.app import run

QUICK = ["--attack", "fgsm,pgd2", "--limit-test", "12"]


def attacked(folder: Path) -> AttackDocument:
    return read_document(folder / "attack.json", AttackDocument)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must exit with 2, and return its error line."""
    assert run(["attack", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("rnascl: ")]
    assert len(lines) == 1
    return lines[0]
