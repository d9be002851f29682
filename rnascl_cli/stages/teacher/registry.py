"""``teacher list``, ``show`` and ``measure``: where teachers came from, and their published and measured accuracies.

A teacher file never changes after it is written, because tutor maps identify it by its sha256. Later measurements are
therefore kept beside it, in ``NAME.measured/attack.json``, and count only for a file of the recorded sha256.
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
from rnascl_cli.recipes.settings import Recipe
from rnascl_cli.stages.attack.attack import attack
from rnascl_cli.stages.attack.plan import plan_attack
from rnascl_cli.stages.attack.target import ATTACK_JSON, claim_directory, find_target
from rnascl_cli.teachers.architectures import architecture_named, build_on_meta
from rnascl_cli.teachers.architectures.timm_models import timm_model
from rnascl_cli.teachers.files import PREFIX, SUFFIX, cached_teachers, find_teacher, teachers_dir
from rnascl_cli.teachers.load import read_checkpoint, read_teacher
from rnascl_cli.teachers.public_checkpoints import PUBLIC

AUTOATTACK = "aa"
PGD = "pgd20"


def measured_folder(source: str) -> Path:
    """Return the folder of a teacher's measurements: ``NAME.measured`` beside its file; timm's in the teacher cache.

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
        force: Whether to replace an earlier measurement.
        resume: Whether to resume an interrupted measurement.

    Returns:
        The document that ``rnascl attack`` would write, and its path.

    Raises:
        UserError: There is no such teacher, it does not fit the data, or it has been measured.
    """
    folder = measured_folder(source)
    target = find_target(source)
    claim_directory(target, folder, force=force, resume=resume)
    return attack(plan_attack(target, recipe, folder), resume=resume), folder / ATTACK_JSON


def usual_eps(source: str) -> str:
    """Return the eps that a teacher was published or trained with, else the usual one for its image size."""
    if source.startswith(PREFIX):
        return "4/255"
    path = find_teacher(source)
    header = _header(path)
    for key in ("published", "measured"):
        accuracies = header.get(key)
        if isinstance(accuracies, dict) and isinstance(accuracies.get("eps"), str):
            return str(accuracies["eps"])
    architecture = header.get("architecture") or read_checkpoint(path).converted.architecture
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
                    "published": known.published,
                    "measured": None,
                    "attacked": None,
                }
            )
    return rows


def show_teacher(source: str) -> dict[str, Any]:
    """Describe a teacher: its origin, its accuracies, and its convolutions with the sizes of their feature maps.

    Raises:
        UserError: There is no such teacher.
    """
    teacher = read_teacher(source)
    architecture = architecture_named(teacher.architecture)
    module, header = teacher.module, teacher.header
    normalise: Any = module.normalise
    # The layers depend on shapes alone, and so a network without weights has the same ones.
    runnable = module
    if architecture.state_is_all:
        runnable = build_on_meta(architecture, num_classes=teacher.num_classes).eval()
    return {
        "source": teacher.reference.source,
        "path": teacher.reference.path,
        "sha256": teacher.reference.sha256,
        "architecture": teacher.architecture,
        "description": architecture.description,
        "num_classes": teacher.num_classes,
        "params": sum(parameter.numel() for parameter in module.parameters()),
        "input_size": architecture.input_size,
        **normalise.constants(),
        "made_from": header.get("source"),
        "made_from_file": header.get("source_file"),
        "made_from_url": header.get("source_url"),
        "made_from_sha256": header.get("source_sha256"),
        "training": header.get("training"),
        "published": header.get("published"),
        "measured": header.get("measured"),
        "attacked": _attacked(measured_folder(source), teacher.reference.sha256),
        "layers": layer_table(runnable, input_size=architecture.input_size),
    }


def layer_table(module: nn.Module, *, input_size: int) -> list[dict[str, Any]]:
    """List the convolutions of a network in the order of their execution, with channels and side of their output.

    Args:
        module: In eval mode. On the meta device nothing is computed.
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


def _header(path: Path) -> dict[str, Any]:
    header = read_header(path) if path.suffix == SUFFIX else None
    return header or {}


def _row(path: Path) -> dict[str, Any]:
    """Describe a file of the cache by its header where it has one, because its tensors may be large."""
    header = _header(path)
    architecture, num_classes = header.get("architecture"), header.get("num_classes")
    if header.get("kind") != "teacher" or not isinstance(architecture, str) or not isinstance(num_classes, int):
        converted = read_checkpoint(path).converted
        architecture, num_classes = converted.architecture, converted.num_classes
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
    results = [result for result in document.results if result.eps_value == largest]
    accuracies = {result.attack: result.accuracy for result in results}
    data = document.provenance.data
    return {
        "clean": document.clean_accuracy,
        PGD: accuracies.get(PGD),
        "autoattack": accuracies.get(AUTOATTACK),
        "accuracies": accuracies,
        "eps": results[0].eps,
        "protocol": document.protocol,
        "n": document.n,
        "data": data.spec if data else None,
        "fingerprint": data.fingerprint if data else None,
        "path": str(path),
    }
