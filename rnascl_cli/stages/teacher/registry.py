"""What is known of teachers: where they came from, what is published of them, and what was measured here.

A teacher's file is never changed after it is made, for tutor maps know it by its sha256. So what is measured later
lies beside it, as the ``attack.json`` of ``NAME.measured/``, and counts only while it is of the file's sha256.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from rnascl_cli.artifacts.documents import AttackDocument
from rnascl_cli.artifacts.store import read_document, read_header, sha256_file
from rnascl_cli.core.console import warning
from rnascl_cli.core.errors import UserError
from rnascl_cli.models.attention_maps import attention_layers
from rnascl_cli.models.normalise import Normalise
from rnascl_cli.recipes import Recipe
from rnascl_cli.stages.attack.attack import attack
from rnascl_cli.stages.attack.plan import plan_attack
from rnascl_cli.stages.attack.target import ATTACK_JSON, claim_directory, find_target
from rnascl_cli.stages.teacher.import_checkpoint import published_of
from rnascl_cli.teachers.architectures import TeacherArchitecture, architecture_named, without_memory
from rnascl_cli.teachers.architectures.timm_models import timm_model
from rnascl_cli.teachers.files import PREFIX, SUFFIX, cached_teachers, find_teacher, teachers_dir
from rnascl_cli.teachers.load import Teacher, read_checkpoint, read_teacher
from rnascl_cli.teachers.public_checkpoints import PUBLIC

AUTOATTACK = "aa"
PGD = "pgd20"


def measured_folder(source: str) -> Path:
    """Return where measurements of a teacher lie: ``NAME.measured`` beside its file; timm's in the teacher cache.

    Raises:
        UserError: There is no such teacher.
    """
    if source.startswith(PREFIX):
        name = timm_model(source.removeprefix(PREFIX), option="teacher").name
        return teachers_dir() / f"timm-{name}.measured"
    path = find_teacher(source)
    return path.with_name(f"{path.name.removesuffix(SUFFIX)}.measured")


def measure_teacher(source: str, recipe: Recipe, *, force: bool, resume: bool) -> tuple[AttackDocument, Path]:
    """Attack a teacher on test images, and keep the result where :func:`show_teacher` finds it.

    Args:
        source: The teacher's name or file.
        recipe: Data, seed, device, and the attack table.
        force: Whether an earlier measurement is replaced.
        resume: Go on behind the batches that an interrupted measurement has finished.

    Returns:
        What ``rnascl attack`` would have written, and where it is.

    Raises:
        UserError: There is no such teacher, it does not fit the data, or it has been measured.
    """
    folder = measured_folder(source)
    target = find_target(source)
    claim_directory(target, folder, force=force, resume=resume)
    return attack(plan_attack(target, recipe, folder), resume=resume), folder / ATTACK_JSON


def usual_eps(source: str) -> str:
    """Return the eps that a teacher was published or trained with, else that of its kind of images."""
    if source.startswith(PREFIX):
        return "4/255"
    path = find_teacher(source)
    header = _header(path)
    for key in ("published", "measured"):
        if isinstance(found := header.get(key), dict) and isinstance(found.get("eps"), str):
            return str(found["eps"])
    architecture = header.get("architecture") or read_checkpoint(path).translation.architecture
    return "8/255" if architecture_named(str(architecture)).input_size == 32 else "4/255"


def list_teachers() -> list[dict[str, Any]]:
    """Describe every file of the teacher cache, and every public teacher that is not in it."""
    rows: list[dict[str, Any]] = []
    for path in cached_teachers():
        try:
            rows.append(_row(path))
        except UserError as error:
            rows.append({"name": path.stem, "path": str(path), "problem": str(error)})
    names = {row["name"] for row in rows}
    for name, known in PUBLIC.items():
        if name not in names:
            rows.append(
                {
                    "name": name,
                    "path": None,
                    "architecture": known.architecture,
                    "source": f"RobustBench {known.robustbench}",
                    "published": published_of(known),
                    "measured": None,
                    "attacked": None,
                }
            )
    return rows


def show_teacher(source: str) -> dict[str, Any]:
    """Describe a teacher: where it came from, what it can do, its convolutions and the sides of their maps.

    Raises:
        UserError: There is no such teacher.
    """
    teacher = read_teacher(source)
    info = architecture_named(teacher.architecture)
    normalise = teacher.module.normalise
    assert isinstance(normalise, Normalise)
    header = teacher.header
    return {
        "source": teacher.reference.source,
        "path": teacher.reference.path,
        "sha256": teacher.reference.sha256,
        "architecture": teacher.architecture,
        "description": info.description,
        "num_classes": teacher.num_classes,
        "params": sum(parameter.numel() for parameter in teacher.module.parameters()),
        "input_size": info.input_size,
        **normalise.constants(),
        "made_from": header.get("source"),
        "made_from_file": header.get("source_file"),
        "made_from_url": header.get("source_url"),
        "made_from_sha256": header.get("source_sha256"),
        "training": header.get("training"),
        "published": header.get("published"),
        "measured": header.get("measured"),
        "attacked": _attacked(measured_folder(source), teacher.reference.sha256),
        "layers": layer_table(_runnable(teacher, info), input_size=info.input_size),
    }


def layer_table(module: nn.Module, *, input_size: int) -> list[dict[str, Any]]:
    """List the convolutions that a network runs, in order, with channels and the side of their output.

    Args:
        module: In eval mode. One on the meta device runs on shapes alone, without any arithmetic.
        input_size: Height and width of an image, pixels.
    """
    rows: list[dict[str, Any]] = []

    def hook_for(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            rows.append({"layer": name, "channels": output.shape[1], "side": output.shape[2]})

        return hook

    handles = [layer.register_forward_hook(hook_for(name)) for name, layer in attention_layers(module, "conv").items()]
    try:
        with torch.no_grad():
            module(torch.zeros(1, 3, input_size, input_size, device=next(module.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return rows


def _runnable(teacher: Teacher, info: TeacherArchitecture) -> nn.Module:
    """Return a network of shapes alone where that gives the same layers, else the teacher."""
    if not info.state_is_all:
        return teacher.module
    return without_memory(info, num_classes=teacher.num_classes).eval()


def _header(path: Path) -> dict[str, Any]:
    header = read_header(path) if path.suffix == SUFFIX else None
    return header or {}


def _row(path: Path) -> dict[str, Any]:
    """Describe a file of the cache, by its header where it has one: its tensors may be hundreds of megabytes."""
    header = _header(path)
    architecture, num_classes = header.get("architecture"), header.get("num_classes")
    if header.get("kind") != "teacher" or not isinstance(architecture, str) or not isinstance(num_classes, int):
        found = read_checkpoint(path).translation
        architecture, num_classes = found.architecture, found.num_classes
    folder = measured_folder(str(path))
    return {
        "name": path.stem,
        "path": str(path),
        "architecture": architecture,
        "num_classes": num_classes,
        "source": header.get("source"),
        "published": header.get("published"),
        "measured": header.get("measured"),
        "attacked": _attacked(folder, sha256_file(path)) if folder.is_dir() else None,
    }


def _attacked(folder: Path, sha256: str) -> dict[str, Any] | None:
    """Return the accuracies that ``teacher measure`` found at the largest eps; None where it has not been run."""
    path = folder / ATTACK_JSON
    if not path.is_file():
        return None
    try:
        document = read_document(path, AttackDocument)
    except UserError as error:
        warning(str(error))
        return None
    if document.model_sha256 != sha256:
        warning(f"{path}: was measured on another file than this teacher (other sha256); measure it again with --force")
        return None
    largest = max(result.eps_value for result in document.results)
    by_attack = {result.attack: result.accuracy for result in document.results if result.eps_value == largest}
    data = document.provenance.data
    return {
        "clean": document.clean_accuracy,
        PGD: by_attack.get(PGD),
        "autoattack": by_attack.get(AUTOATTACK),
        "accuracies": by_attack,
        "eps": next(result.eps for result in document.results if result.eps_value == largest),
        "protocol": document.protocol,
        "n": document.n,
        "data": data.spec if data else None,
        "fingerprint": data.fingerprint if data else None,
        "path": str(path),
    }
