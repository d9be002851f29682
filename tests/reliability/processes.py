"""``rnascl`` in a process of its own that can be killed, forked from a server that has torch in memory already."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import rnascl_cli

ROOT = Path(rnascl_cli.__file__).parents[1]
PATIENCE = 120.0  # seconds until a process that should have done something counts as hung

_context = multiprocessing.get_context("forkserver")


class Command:
    """A running ``rnascl``.

    Args:
        arguments: Its command line.
        log: Where its stdout and stderr go, one after the other.
        cwd: Its working directory.
        environment: Variables beside this process's own.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        *,
        log: Path,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        _context.set_forkserver_preload(["tests.reliability.warm"])
        words = [str(argument) for argument in arguments]
        self.log = log
        given = (words, str(log), str(cwd) if cwd else None, {**os.environ, **(environment or {})})
        self.process: BaseProcess = _context.Process(target=_run, args=given)
        self.process.start()
        self.began = time.monotonic()

    @property
    def code(self) -> int | None:
        """Its exit code; minus the signal's number where one killed it; None while it runs."""
        return self.process.exitcode

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self.send(signal.SIGKILL)
        self.process.join()

    def send(self, signum: signal.Signals) -> None:
        """Send a signal, unless the process has ended: its number may be another's by now."""
        assert self.process.pid is not None
        if self.code is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signum)

    def end(self, *, patience: float = PATIENCE) -> int:
        """Wait for the end, so many seconds at most, and return the exit code."""
        self.process.join(patience)
        if self.process.exitcode is None:
            self.kill()
            raise AssertionError(f"still running after {patience:.0f} s: {self.said}")
        return self.process.exitcode

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Wait until something has happened; fail if the process ends before."""
        while not happened():
            assert self.code is None, f"ended with {self.code}: {self.said}"
            assert time.monotonic() - self.began < PATIENCE, self.said
            time.sleep(0.002)

    @property
    def said(self) -> str:
        """What it has written on stdout and stderr."""
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""


def run_command(arguments: Sequence[object], *, log: Path, patience: float = PATIENCE) -> Command:
    """Run a command that must succeed within so many seconds, and return it."""
    command = Command(arguments, log=log)
    assert command.end(patience=patience) == 0, command.said
    return command


def _run(arguments: list[str], log: str, cwd: str | None, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(handle, standard)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (a descriptor, for good)
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    if cwd is not None:
        os.chdir(cwd)
    # A server that was started in the background of a shell ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    from rnascl_cli.cli.app import main
    from rnascl_cli.core import console

    torch.set_num_threads(1)
    console.stderr.file = sys.stderr
    sys.argv = ["rnascl", *arguments]
    try:
        main()
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
