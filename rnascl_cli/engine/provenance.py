"""How an artifact was made, for its ``provenance`` field."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from rnascl_cli import __version__
from rnascl_cli.artifacts.documents import DataReference, Provenance, TeacherReference
from rnascl_cli.artifacts.store import sha256_file
from rnascl_cli.engine.compute import Compute, device_name
from rnascl_cli.recipes import Recipe


def make_provenance(
    recipe: Recipe,
    compute: Compute,
    *,
    data: DataReference | None,
    teacher: TeacherReference | None,
    inputs: Sequence[Path] = (),
    input_hashes: dict[str, str] | None = None,
) -> Provenance:
    """Gather version, command, recipe, seed, data, input hashes, teacher and device.

    Args:
        recipe: The resolved recipe.
        compute: Device and precision of the run.
        data: Which images were used.
        teacher: Which teacher was used.
        inputs: Files the stage read; their sha256 is recorded under their names.
        input_hashes: Further name-to-sha256 pairs, for inputs that are no files (stdin).
    """
    return Provenance(
        tool_version=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=["rnascl", *sys.argv[1:]],
        recipe=recipe.model_dump(mode="json"),
        seed=recipe.seed,
        data=data,
        teacher=teacher,
        inputs={path.name: sha256_file(path) for path in inputs} | (input_hashes or {}),
        device=device_name(compute.device),
        precision=compute.precision,
        torch_version=str(torch.__version__),
        commit=_commit(),
    )


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
