"""Load any model by name or path: a student, a teacher, or a public checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from rnascl_cli.artifacts.runs import refuse_changed_student, student_document
from rnascl_cli.artifacts.store import STUDENT, read_header, sha256_file
from rnascl_cli.core.errors import UserError
from rnascl_cli.models.files import load_student
from rnascl_cli.teachers.load import read_teacher


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model.

    Attributes:
        module: In eval mode; maps images in [0, 1] to logits.
        path: The file it came from; ``timm:NAME`` for timm's weights.
        sha256: sha256 of that file, or over timm's tensors.
        kind: Student or teacher.
        num_classes: Number of logits.
        run: The run directory it came from; None where a file was named.
    """

    module: nn.Module
    path: Path
    sha256: str
    kind: Literal["student", "teacher"]
    num_classes: int
    run: Path | None = None


def load_model(path: str | Path) -> nn.Module:
    """Load a student or teacher as a module in eval mode; see :func:`resolve_model`."""
    return resolve_model(path).module


def resolve_model(name_or_path: str | Path) -> LoadedModel:
    """Find and load a model.

    Args:
        name_or_path: A run directory with a student, a student or teacher file, a public checkpoint, a
            teacher's name in the teacher cache, or ``timm:NAME``.

    Raises:
        UserError: It does not exist, cannot be read, or is not the student that the run's document records.
    """
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
