"""Model files: a student or teacher in, a ready module out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from torch import nn

from rnascl_cli.artifacts.documents import Architecture
from rnascl_cli.artifacts.runs import refuse_changed_student, student_document
from rnascl_cli.artifacts.store import STUDENT, first_problem, read_header, read_weights, sha256_file, write_weights
from rnascl_cli.errors import RunError, UserError
from rnascl_cli.models.student import Student
from rnascl_cli.spaces import network_cost, space_named


@dataclass(frozen=True)
class LoadedModel:
    """A model as read from disk.

    Attributes:
        module: In eval mode; images in [0, 1] to logits.
        path: The file it came from; ``timm:NAME`` where the weights are timm's.
        sha256: Of that file, or over timm's tensors.
        kind: Student or teacher.
        num_classes: Number of logits.
        run: The run directory it came from, if one was named.
    """

    module: nn.Module
    path: Path
    sha256: str
    kind: Literal["student", "teacher"]
    num_classes: int
    run: Path | None = None


def checked_architecture(architecture: Architecture, *, where: str) -> Architecture:
    """Return ``architecture`` if it is one that rnascl can build.

    Raises:
        UserError: Its space is unknown, its widths do not fit the space, or its params and MACs are not those
            of its widths.
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
    """Build the physically slim network of a derived architecture, with fresh weights."""
    space = space_named(architecture.space)
    return Student(space, architecture.widths, num_classes=architecture.num_classes, mean=mean, std=std)


def save_student(path: Path, student: Student, architecture: Architecture) -> str:
    """Write a student as safetensors with its architecture and normalisation in the header; return its sha256.

    Raises:
        RunError: A weight is NaN or infinite; nothing is written.
    """
    bad = [name for name, tensor in student.state_dict().items() if not bool(tensor.isfinite().all())]
    if bad:
        raise RunError(f"{path}: not written, because {bad[0]} holds NaN or infinity")
    header: dict[str, Any] = {
        "kind": "student",
        "architecture": architecture.model_dump(),
        **student.normalise.constants(),
    }
    return write_weights(path, dict(student.state_dict()), header)


def load_student(path: Path) -> tuple[Student, Architecture]:
    """Read a student file.

    Returns:
        The network in eval mode, and its architecture.

    Raises:
        UserError: The file is damaged, holds something else, or its tensors do not fit its architecture.
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
    bad = [name for name, tensor in student.state_dict().items() if not bool(tensor.isfinite().all())]
    if bad:
        raise UserError(f"{path}: {bad[0]} holds NaN or infinity; the file is broken: copy or make it again")
    return student.eval(), architecture


def load_model(path: str | Path) -> nn.Module:
    """Read a student or teacher as a module in eval mode; see :func:`resolve_model`."""
    return resolve_model(path).module


def resolve_model(name_or_path: str | Path) -> LoadedModel:
    """Find and read a model.

    Args:
        name_or_path: A run directory with a student, a student or teacher file, a public checkpoint, a
            teacher's name in the teacher cache, or ``timm:NAME``.

    Raises:
        UserError: There is no such thing, it cannot be read, or it is not the student that the run's document
            recorded.
    """
    from rnascl_cli.models.checkpoints import read_teacher

    path = Path(name_or_path)
    run = None
    if path.is_dir():
        run, path = path, path / STUDENT
        if not path.is_file():
            raise UserError(f"{run}: holds no {STUDENT}; name a run of train or adv-finetune, or a model file")
    if path.is_file() and path.suffix == ".safetensors":
        header = read_header(path)
        if header is not None and header.get("kind") == "student":
            student, architecture = load_student(path)
            sha256 = sha256_file(path)
            if run is not None and (document := student_document(run)) is not None:
                refuse_changed_student(run, document, found=sha256)
            return LoadedModel(student, path, sha256, "student", architecture.num_classes, run)
    try:
        teacher = read_teacher(str(name_or_path if run is None else path))
    except UserError as error:  # the model was not given as --teacher
        raise UserError(str(error).removeprefix("--teacher: ").removeprefix("--teacher ")) from None
    reference = teacher.reference
    return LoadedModel(teacher.module, Path(reference.path), reference.sha256, "teacher", teacher.num_classes)


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
