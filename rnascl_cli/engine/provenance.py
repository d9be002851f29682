"""How an artifact was made, for its ``provenance`` field."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from rnascl_cli.artifacts.documents import DataReference, Provenance, TeacherReference
from rnascl_cli.core.version import __version__
from rnascl_cli.engine.resume_command import running_command
from rnascl_cli.recipes.settings import Recipe


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
