"""Run ``rnascl`` in this process and look at what it leaves: exit code, stdout, stderr, files."""

from __future__ import annotations

import contextlib
import hashlib
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from rnascl_cli.cli.app import run


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def rnascl(*arguments: object, stdin: str | None = None) -> Outcome:
    """Run the command line on ``arguments``, with ``stdin`` piped in."""
    out, err = io.StringIO(), io.StringIO()
    piped = io.TextIOWrapper(io.BytesIO((stdin or "").encode()))
    with mock.patch.object(sys, "stdin", piped), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(argument) for argument in arguments])
    return Outcome(code, out.getvalue(), err.getvalue())


def done(*arguments: object, stdin: str | None = None) -> Outcome:
    """Run a command that must succeed."""
    outcome = rnascl(*arguments, stdin=stdin)
    assert outcome.code == 0, outcome.err
    return outcome


def refused(*arguments: object, stdin: str | None = None) -> str:
    """Run a command that must be refused: exit 2, nothing on stdout, one clear line on stderr, which is returned."""
    outcome = rnascl(*arguments, stdin=stdin)
    lines = outcome.err.splitlines()
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("rnascl: ")
    assert "Traceback" not in lines[0]
    assert len(lines[0]) < 1000
    return lines[0]


def files(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file under a folder: what is in it and when it was written."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def soon(there: Callable[[], bool], *, seconds: float = 60.0) -> bool:
    """Wait for something to become so."""
    deadline = time.monotonic() + seconds
    while not there() and time.monotonic() < deadline:
        time.sleep(0.02)
    return there()
