"""The running command line, for provenance and for the message that says how to resume.

Every command imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

from rnascl_cli.core import distributed

RENDEZVOUS_PORT = 29500  # torchrun's default

_arguments: ContextVar[tuple[str, ...] | None] = ContextVar("arguments", default=None)


@contextlib.contextmanager
def recorded_command(arguments: Sequence[str]) -> Iterator[None]:
    """Record ``rnascl ARGUMENTS`` as the running command while the context is open."""
    token = _arguments.set(tuple(arguments))
    try:
        yield
    finally:
        _arguments.reset(token)


def resume_hint(*, out: Path | None, derived: Path | None = None) -> str:
    """Return ``resume with: COMMAND``, by :func:`with_resume`; several machines must each run the command."""
    where = f" on each of the {_machines()} machines" if _machines() > 1 else ""
    return f"resume{where} with: {with_resume(running_command(), out=out, derived=derived)}"


def with_resume(command: Sequence[str], *, out: Path | None, derived: Path | None = None) -> str:
    """Return ``command`` with ``--resume``, quoted for a shell.

    Args:
        command: The words of the command.
        out: Value of ``--out`` if the command has none; None if it needs none.
        derived: File to read if the command read stdin, which cannot be read twice.
    """
    words = [word for word in command if word not in ("--force", "--resume")]
    if derived is not None:
        words = [str(derived) if word == "-" else word for word in words]
    if out is not None and not any(word == "--out" or word.startswith("--out=") for word in words):
        words += ["--out", str(out)]
    return shlex.join([*_launcher(), *words[1:], "--resume"])


def _launcher() -> list[str]:
    """Return the command that started rnascl: itself, or torchrun with the address of the first rank."""
    if distributed.size() == 1:
        return ["rnascl"]
    rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint={os.environ.get('MASTER_ADDR')}:{RENDEZVOUS_PORT}"]
    nodes = [f"--nnodes={_machines()}", *rendezvous] if _machines() > 1 else []
    return ["torchrun", *nodes, f"--nproc-per-node={distributed.local_size()}", "-m", "rnascl_cli"]


def _machines() -> int:
    return distributed.size() // distributed.local_size()


def running_command() -> list[str]:
    """Return the words of the running command."""
    given = _arguments.get()
    return ["rnascl", *(sys.argv[1:] if given is None else given)]
