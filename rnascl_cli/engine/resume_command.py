"""The command that is running, as one would type it: for provenance, and for going on with it.

Nothing heavy is read here, as every command begins with it.
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

MEETING_PORT = 29500  # torchrun's own

_arguments: ContextVar[tuple[str, ...] | None] = ContextVar("arguments", default=None)


@contextlib.contextmanager
def recorded_command(arguments: Sequence[str]) -> Iterator[None]:
    """Record ``rnascl ARGUMENTS`` as the command for the while, where one command runs others."""
    token = _arguments.set(tuple(arguments))
    try:
        yield
    finally:
        _arguments.reset(token)


def resume_hint(*, out: Path | None, derived: Path | None = None) -> str:
    """Return what to say of what was stopped: ``go on with:`` the running command, as :func:`with_resume` makes it.

    Of several machines it is said that each of them is to be given the command.
    """
    where = f", on each of the {_machines()} machines," if _machines() > 1 else ""
    return f"go on{where} with: {with_resume(running_command(), out=out, derived=derived)}"


def with_resume(command: Sequence[str], *, out: Path | None, derived: Path | None = None) -> str:
    """Return ``command`` with ``--resume``, quoted for a shell.

    Args:
        command: The words of the command.
        out: What ``--out`` is to name, should the command not say it; None where it need not.
        derived: What to read where the command read stdin, which cannot be read twice.
    """
    words = [word for word in command if word not in ("--force", "--resume")]
    if derived is not None:
        words = [str(derived) if word == "-" else word for word in words]
    if out is not None and not any(word == "--out" or word.startswith("--out=") for word in words):
        words += ["--out", str(out)]
    return shlex.join([*_launcher(), *words[1:], "--resume"])


def _launcher() -> list[str]:
    """Return the words that start rnascl as it was started; several machines meet on that of the first rank."""
    if distributed.size() == 1:
        return ["rnascl"]
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={os.environ.get('MASTER_ADDR')}:{MEETING_PORT}"]
    nodes = [f"--nnodes={_machines()}", *meeting] if _machines() > 1 else []
    return ["torchrun", *nodes, f"--nproc-per-node={distributed.local_size()}", "-m", "rnascl_cli"]


def _machines() -> int:
    return distributed.size() // distributed.local_size()


def running_command() -> list[str]:
    """Return the words of the command that is running."""
    given = _arguments.get()
    return ["rnascl", *(sys.argv[1:] if given is None else given)]
