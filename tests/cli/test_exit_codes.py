"""Exit codes 0, 1, 2 and 130, and errors as one line on stderr."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rnascl_cli.cli import app
from rnascl_cli.cli.run import EXIT_INTERRUPTED
from rnascl_cli.core.errors import RunError, UserError
from tests.command import done, files, rnascl, soon
from tests.conftest import FAST


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let ``derive`` fail with ``error``."""

    def fail(source: Path, **options: object) -> None:
        raise error

    monkeypatch.setattr("rnascl_cli.stages.search.derive.derive", fail)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a.json: wrong\n  in two lines"), 2, "a.json: wrong in two lines\n"),
        (RunError("train: 'ce' is nan"), 1, "train: 'ce' is nan\n"),
        (ZeroDivisionError("by zero\nand so"), 1, "ZeroDivisionError: by zero and so\n"),
        (AssertionError(), 1, "AssertionError\n"),
        (MemoryError(), 1, "MemoryError\n"),
        (OSError(28, "No space left on device"), 1, "No space left on device\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_exit_codes_and_error_lines(monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, line: str) -> None:
    raising(monkeypatch, error)
    outcome = rnascl("derive", "x")
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith("rnascl: ")
    assert outcome.err.endswith(line)
    assert outcome.err.count("\n") == 1


@pytest.mark.unit
def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    outcome = rnascl("derive", "x")
    assert (outcome.code, outcome.out) == (EXIT_INTERRUPTED, "") == (130, "")
    assert "Traceback" not in outcome.err


@pytest.mark.unit
def test_debug_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, ZeroDivisionError("by zero"))
    monkeypatch.setenv("RNASCL_DEBUG", "1")
    outcome = rnascl("derive", "x")
    assert outcome.code == 1
    assert "Traceback (most recent call last)" in outcome.err
    assert outcome.err.endswith("rnascl: ZeroDivisionError: by zero\n")


@pytest.mark.pipeline
def test_diverging_loss_is_exit_1(tmp_path: Path, searched: dict[str, Path]) -> None:
    arguments = ["train", searched["standard"], "--epochs", 2, *FAST, "--out", tmp_path / "run"]
    outcome = rnascl(*arguments, "--set", "optimiser.lr=1e30")
    assert (outcome.code, outcome.out) == (1, "")
    last = outcome.err.splitlines()[-1]
    assert last.startswith("rnascl: ")
    assert "train: 'ce' is " in last
    assert "at epoch 1, step " in last
    assert "lower the learning rate" in last
    assert not (tmp_path / "run" / "train.json").exists()


def started(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """Start ``rnascl`` as a process of its own, which hears SIGINT even where the tests run in the background."""
    root = Path(app.__file__).parents[2]
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    return subprocess.Popen(
        [sys.executable, "-c", f"{listen}; from rnascl_cli.cli.app import main; main()", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


@pytest.mark.pipeline
def test_closed_stdout(searched: dict[str, Path], tmp_path: Path) -> None:
    with started("derive", searched["rnas-cl"], cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 1
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


@pytest.mark.slow
def test_a_real_sigint(searched: dict[str, Path], tmp_path: Path) -> None:
    with started("train", searched["standard"], "--epochs", 10_000, *FAST, "--out", "run", cwd=tmp_path) as process:
        try:
            soon((tmp_path / "run" / "checkpoint.pt").exists)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    # What is there is whole: no half-written file stays, and the run can go on.
    left = set(files(tmp_path / "run")) - {"checkpoint.previous.pt"}
    assert left == {"derived.json", "metrics.jsonl", "checkpoint.pt"}


@pytest.mark.pipeline
def test_derive_into_train_through_a_pipe_of_processes(searched: dict[str, Path], tmp_path: Path) -> None:
    first = started("derive", searched["standard"], cwd=tmp_path)
    text, _ = first.communicate(timeout=60)
    assert first.returncode == 0
    outcome = done("train", "-", "--epochs", 1, *FAST, "--out", tmp_path / "run", stdin=text)
    assert outcome.out == f"{tmp_path / 'run'}\n"
