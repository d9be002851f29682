"""Build, save and load students."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rnascl_cli.artifacts.documents import Architecture
from rnascl_cli.artifacts.store import first_problem, read_weights, write_weights
from rnascl_cli.core.errors import RunError, UserError
from rnascl_cli.models.student import Student
from rnascl_cli.spaces import network_cost, space_named


def checked_architecture(architecture: Architecture, *, where: str) -> Architecture:
    """Return ``architecture`` if rnascl can build it.

    Args:
        architecture: As read from a document or a file's header.
        where: What to call that document or file in an error.

    Raises:
        UserError: Its space is unknown, its widths are not in the space, or its params and MACs do not match its
            widths.
    """
    space = space_named(architecture.space, where=where)
    choices = space.block_choices
    if len(architecture.widths) != len(choices):
        raise UserError(
            f"{where}: architecture.widths has {len(architecture.widths)} numbers, space {space.name} has "
            f"{len(choices)} blocks"
        )
    for block, (width, allowed) in enumerate(zip(architecture.widths, choices, strict=True)):
        if width not in allowed:
            raise UserError(f"{where}: architecture.widths[{block}] is {width}; space {space.name} allows {allowed}")
    cost = network_cost(
        space, architecture.widths, num_classes=architecture.num_classes, input_size=architecture.input_size
    )
    if (cost.params, cost.macs) != (architecture.params, architecture.macs):
        raise UserError(
            f"{where}: architecture.params and macs are {architecture.params} and {architecture.macs}, but its widths "
            f"give {cost.params} and {cost.macs}; derive it again"
        )
    return architecture


def build_student(
    architecture: Architecture, *, mean: tuple[float, ...] = (0.0, 0.0, 0.0), std: tuple[float, ...] = (1.0, 1.0, 1.0)
) -> Student:
    """Build the physically pruned network of a derived architecture, with fresh weights."""
    space = space_named(architecture.space)
    return Student(space, architecture.widths, num_classes=architecture.num_classes, mean=mean, std=std)


def save_student(path: Path, student: Student, architecture: Architecture) -> str:
    """Write a student file: safetensors with architecture and normalisation in the header; return its sha256.

    Raises:
        RunError: A weight is NaN or infinite; nothing is written.
    """
    if (bad := _first_non_finite(student)) is not None:
        raise RunError(f"{path}: not written, because {bad} holds NaN or infinity")
    header: dict[str, Any] = {
        "kind": "student",
        "architecture": architecture.model_dump(),
        **student.normalise.constants(),
    }
    return write_weights(path, dict(student.state_dict()), header)


def load_student(path: Path) -> tuple[Student, Architecture]:
    """Read a student file.

    Returns:
        The student in eval mode, and its architecture.

    Raises:
        UserError: The file is damaged, is no student file, or its tensors do not fit its architecture.
    """
    tensors, header, _ = read_weights(path)
    if header is None or header.get("kind") != "student":
        raise UserError(f"{path}: not a student file of rnascl")
    try:
        architecture = Architecture.model_validate(header.get("architecture"))
    except ValidationError as error:
        raise UserError(f"{path}: architecture in the header: {first_problem(error)}") from None
    student = build_student(
        checked_architecture(architecture, where=str(path)),
        mean=_constants(header, "mean", path),
        std=_constants(header, "std", path),
    )
    try:
        student.load_state_dict(tensors)
    except RuntimeError as error:
        first_line = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: tensors do not fit the architecture in the header ({first_line})") from None
    if (bad := _first_non_finite(student)) is not None:
        raise UserError(f"{path}: {bad} holds NaN or infinity; copy the file again, or train the student again")
    return student.eval(), architecture


def _first_non_finite(student: Student) -> str | None:
    return next((name for name, tensor in student.state_dict().items() if not bool(tensor.isfinite().all())), None)


def _constants(header: dict[str, Any], name: str, path: Path) -> tuple[float, ...]:
    values = header.get(name)
    if (
        not isinstance(values, list)
        or len(values) != 3
        or not all(isinstance(value, int | float) and abs(value) < 1e6 for value in values)
        or (name == "std" and min(values) <= 0)
    ):
        raise UserError(f"{path}: '{name}' in the header must be three numbers")
    return tuple(float(value) for value in values)
