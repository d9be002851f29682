"""How an artifact was made, for its ``provenance`` field."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path

from rnascl_cli import __version__, ranks
from rnascl_cli.artifacts.documents import DataReference, Provenance, TeacherReference
from rnascl_cli.engine.run_directory import RunDirectory
from rnascl_cli.recipes import Recipe

_arguments: ContextVar[tuple[str, ...] | None] = ContextVar("arguments", default=None)


def make_provenance(
    recipe: Recipe,
    *,
    device: str,
    precision: str,
    data: DataReference | None,
    teacher: TeacherReference | None,
    inputs: Mapping[str, str] | None = None,
) -> Provenance:
    """Gather version, command, recipe, seed, data, input hashes, teacher and device.

    Args:
        recipe: The resolved recipe.
        device: Its name, from ``Compute.device_name``.
        precision: In words, from ``Compute.precision``.
        data: Which images were used.
        teacher: Which teacher was used.
        inputs: sha256 of each artifact the stage read, by file name.
    """
    return Provenance(
        tool_version=__version__,
        created=_now(),
        command=running_command(),
        recipe=recipe.model_dump(mode="json"),
        seed=recipe.seed,
        data=data,
        teacher=teacher,
        inputs=dict(inputs or {}),
        device=device,
        precision=precision,
        torch_version=importlib.metadata.version("torch"),
        commit=_commit(),
    )


def remade(provenance: Provenance, *, inputs: Mapping[str, str]) -> Provenance:
    """Return the provenance of what this command makes, without computing, from an artifact with ``provenance``."""
    now = {"tool_version": __version__, "created": _now(), "command": running_command(), "commit": _commit()}
    return provenance.model_copy(update={**now, "inputs": dict(inputs)})


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def commanded_as(arguments: Sequence[str]) -> Iterator[None]:
    """Record ``rnascl ARGUMENTS`` as the command for the while, where one command runs others."""
    token = _arguments.set(tuple(arguments))
    try:
        yield
    finally:
        _arguments.reset(token)


def command_to_resume(run: RunDirectory) -> str:
    """Return the running command as one would type it to go on: with ``--resume``, and ``--out`` where it had none."""
    return with_resume(running_command(), out=run.out or run.path, derived=run.path / "derived.json")


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
    """Return the words that start rnascl as it was started."""
    if ranks.size() == 1:
        return ["rnascl"]
    machines = ranks.size() // ranks.local_size()
    nodes = [f"--nnodes={machines}"] if machines > 1 else []
    return ["torchrun", *nodes, f"--nproc-per-node={ranks.local_size()}", "-m", "rnascl_cli"]


def running_command() -> list[str]:
    """Return the words of the command that is running."""
    given = _arguments.get()
    return ["rnascl", *(sys.argv[1:] if given is None else given)]


def _commit() -> str | None:
    """Return the commit of the checkout the tool runs from; None for an installed copy."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", os.fspath(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
