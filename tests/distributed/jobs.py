"""One command on several ranks: as torchrun would start them, and by torchrun itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import distributed

from tests.reliability.processes import PATIENCE, ROOT, Command


class Job:
    """Running ranks of one command, for which this process is the agent: these need not import torch anew.

    Args:
        count: How many.
        arguments: The command line.
        log: Their outputs go to this name with the rank behind it.
        others: The command line of all but the first, where that is another.
    """

    def __init__(
        self, count: int, arguments: Sequence[object], *, log: Path, others: Sequence[object] | None = None
    ) -> None:
        # As torchrun does: the agent keeps the store, so that it outlives the ranks.
        self._store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port)}
        shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        self.ranks = [
            Command(
                arguments if number == 0 or others is None else others,
                log=log.with_name(f"{log.name}.{number}"),
                environment={**shared, "RANK": str(number), "LOCAL_RANK": str(number)},
            )
            for number in range(count)
        ]

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to every rank, as torchrun and schedulers do."""
        for command in self.ranks:
            command.send(signum)

    def end(self) -> list[int]:
        """Wait for the end and return the exit codes."""
        return [command.end() for command in self.ranks]

    @property
    def said(self) -> str:
        """What the ranks have written, one after the other."""
        return "".join(command.said for command in self.ranks)


def run_job(count: int, arguments: Sequence[object], *, log: Path) -> Job:
    """Run a command that must succeed on so many ranks."""
    job = Job(count, arguments, log=log)
    assert job.end() == [0] * count, job.said
    return job


class Torchrun:
    """A running ``torchrun`` of rnascl.

    Args:
        count: How many ranks, on this machine.
        arguments: The command line of rnascl.
        log: Where outputs go.
    """

    def __init__(self, count: int, arguments: Sequence[object], *, log: Path) -> None:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "rnascl_cli"]
        words = [sys.executable, *launcher, *(str(argument) for argument in arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(words, stdout=file, stderr=file, env=environment)

    @property
    def said(self) -> str:
        """What torchrun and its ranks have written."""
        return self.log.read_text(encoding="utf-8")

    def end(self, patience: float = PATIENCE) -> int:
        """Wait for the end and return the exit code."""
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"still running after {patience:.0f} s: {self.said}") from None

    def processes(self) -> dict[int, int]:
        """Return the process number of each rank."""
        found: dict[int, int] = {}
        for folder in Path("/proc").iterdir():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                environment = (folder / "environ").read_bytes().split(b"\0") if parent == self.process.pid else []
            except (OSError, ValueError, IndexError):  # no process, or gone meanwhile
                continue
            numbers = [int(line[5:]) for line in environment if line.startswith(b"RANK=")]
            found |= {number: int(folder.name) for number in numbers}
        return found
