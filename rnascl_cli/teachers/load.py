"""Load a teacher: from a file of ours, a public checkpoint, the teacher cache, or timm's pretrained networks."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from rnascl_cli.artifacts.archives import refuse_bomb
from rnascl_cli.artifacts.documents import TeacherReference
from rnascl_cli.artifacts.store import read_weights, sha256_file, write_weights
from rnascl_cli.core.console import warning
from rnascl_cli.core.errors import RunError, UserError
from rnascl_cli.models.normalise import Normalise
from rnascl_cli.teachers.architectures import ARCHITECTURES, architecture_named, build_on_meta, network_of
from rnascl_cli.teachers.architectures.imagenet import Normalised
from rnascl_cli.teachers.architectures.timm_models import tensors_sha256, timm_model
from rnascl_cli.teachers.files import PICKLED, PREFIX, SUFFIX, find_teacher
from rnascl_cli.teachers.public_checkpoints import IDENTITY, NormalisationConstants
from rnascl_cli.teachers.safe_unpickling import load_pickled
from rnascl_cli.teachers.state_dict_conversion import ConvertedStateDict, convert_state_dict, unwrap

WITHOUT_KL = "do without the KL term, which compares class by class (--paradigm icc, or kl.weight=0)"


@dataclass(frozen=True)
class Teacher:
    """A loaded teacher.

    Attributes:
        module: In eval mode, without gradients; maps images in [0, 1] to logits.
        reference: The file it came from, or timm's name of it.
        num_classes: Number of logits.
        architecture: As in ``--arch``.
        header: Header of the teacher file: source, training, measured accuracies. Empty for public files.
    """

    module: nn.Module
    reference: TeacherReference
    num_classes: int
    architecture: str
    header: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint file.

    Attributes:
        converted: The network, under our tensor names.
        constants: The normalisation that the file holds; None where it holds none.
        header: Header of a teacher file; empty for public files.
    """

    converted: ConvertedStateDict
    constants: NormalisationConstants | None
    header: dict[str, Any]


def read_teacher(source: str, *, num_classes: int | None = None, otherwise: str = WITHOUT_KL) -> Teacher:
    """Find and load a teacher.

    Args:
        source: A name in the teacher cache, a file (one made by ``rnascl teacher``, or a public checkpoint), or
            ``timm:NAME``.
        num_classes: Number of classes that the teacher must have; None for any.
        otherwise: Remedy to name where it has another number of classes.

    Raises:
        UserError: It does not exist (the message says how to get it), is damaged, is no teacher, or has another
            number of classes.
    """
    if source.startswith(PREFIX):
        return _load_timm(source, num_classes=num_classes, otherwise=otherwise)
    path = find_teacher(source)
    checkpoint = read_checkpoint(path)
    converted = checkpoint.converted
    _check_classes(source, converted.num_classes, num_classes, otherwise=otherwise)
    constants = checkpoint.constants
    if constants is None:
        constants = default_constants(converted.architecture)
        used = "none is applied" if constants == IDENTITY else f"the usual {constants} is applied"
        warning(
            f"teacher {path}: holds no normalisation, and {used}. If it was trained with another, import it with "
            "--mean and --std"
        )
    reference = TeacherReference(
        source=source, path=str(path.resolve()), architecture=converted.architecture, sha256=sha256_file(path)
    )
    module = build_teacher_from(converted, constants)
    return Teacher(module, reference, converted.num_classes, converted.architecture, checkpoint.header)


def _check_classes(source: str, classes: int, expected: int | None, *, otherwise: str) -> None:
    if expected is not None and classes != expected:
        raise UserError(
            f"teacher {source} has {classes} classes, the data has {expected}; choose another of them, or {otherwise}"
        )


def _load_timm(source: str, *, num_classes: int | None, otherwise: str) -> Teacher:
    """Load a network with timm's weights; a hash over its tensors identifies it."""
    model = timm_model(source.removeprefix(PREFIX), option="--teacher")
    _check_classes(source, model.num_classes, num_classes, otherwise=otherwise)  # before a download
    module = Normalised(model.pretrained())
    module.normalise = Normalise(*model.constants)
    name = f"{PREFIX}{model.name}"
    sha256 = tensors_sha256(module, model.constants)
    reference = TeacherReference(source=source, path=name, architecture=name, sha256=sha256)
    header = {"source": f"timm {model.name}, its pretrained weights"}
    return Teacher(module.eval().requires_grad_(False), reference, model.num_classes, name, header)


def read_checkpoint(path: Path, *, architecture: str | None = None) -> Checkpoint:
    """Read a teacher file of ours or a public checkpoint, and convert it to our tensor names.

    Args:
        path: ``.safetensors``, or ``.pt``, ``.pth``, ``.ckpt``, ``.tar``, of which no code is run.
        architecture: Its architecture; None to infer it from the tensors.

    Raises:
        UserError: It cannot be read, or is no teacher.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    where = str(path)
    if path.suffix.lower() != SUFFIX:
        if path.suffix.lower() not in PICKLED:
            raise UserError(f"{path}: not a checkpoint; {SUFFIX}, .pt, .pth or .ckpt is needed")
        refuse_bomb(path)
        return _read_public(load_pickled(path), architecture, where=where)
    tensors, header, _ = read_weights(path)
    if header is None:
        return _read_public(tensors, architecture, where=where)
    if header.get("kind") != "teacher":
        raise UserError(f"{path}: a teacher file is needed; this is a {str(header.get('kind'))[:40]!r}")
    name = header.get("architecture")
    if not isinstance(name, str) or not (name in ARCHITECTURES or name.startswith(PREFIX)):
        raise UserError(f"{path}: made for an architecture this rnascl does not know ({str(name)[:40]!r})")
    architecture_named(name, option=f"{path}: made for")  # timm may have dropped it
    if architecture is not None and architecture_named(architecture).name != name:
        raise UserError(f"--arch {architecture}: {path} is a {name}")
    converted = convert_state_dict(tensors, architecture=name, where=where)
    mean = _header_constants(header, "mean", lowest=0.0, where=where)
    std = _header_constants(header, "std", lowest=1e-6, where=where)
    return Checkpoint(converted, NormalisationConstants(mean, std), header)


def _read_public(loaded: Any, architecture: str | None, *, where: str) -> Checkpoint:
    state, ignored = unwrap(loaded, where=where)
    converted = convert_state_dict(state, architecture=architecture, where=where)
    return Checkpoint(replace(converted, dropped={**converted.dropped, **ignored}), converted.constants, {})


def _header_constants(header: dict[str, Any], name: str, *, lowest: float, where: str) -> tuple[float, ...]:
    values = header.get(name)
    if (
        not isinstance(values, list)
        or len(values) != 3
        or not all(isinstance(value, int | float) and lowest <= value <= 1 for value in values)
    ):
        raise UserError(f"{where}: '{name}' in the header must be three numbers in [0, 1]")
    return tuple(float(value) for value in values)


def default_constants(architecture: str) -> NormalisationConstants:
    """Return the normalisation for a file without one: the usual one of the architecture; the identity on CIFAR."""
    return architecture_named(architecture).normalised_as or IDENTITY


def build_teacher_from(converted: ConvertedStateDict, constants: NormalisationConstants) -> nn.Module:
    """Build a teacher with converted weights, in eval mode and without gradients."""
    architecture = architecture_named(converted.architecture)
    build = functools.partial(build_on_meta, architecture) if architecture.state_is_all else architecture.build
    module = build(num_classes=converted.num_classes)
    module.normalise = Normalise(*constants)
    network = network_of(module)
    expected = network.state_dict()
    tensors = {name: converted.tensors[name].to(tensor.dtype) for name, tensor in expected.items()}
    network.load_state_dict(tensors, assign=True)
    return module.eval().requires_grad_(False)


def write_teacher(path: Path, module: nn.Module, *, architecture: str, num_classes: int, about: dict[str, Any]) -> str:
    """Write a teacher file: safetensors, with architecture and normalisation in the header.

    Args:
        path: The file.
        module: The teacher.
        architecture: Its name, as in ``--arch``.
        num_classes: Number of logits.
        about: Further header fields: ``source``, ``source_sha256``, ``measured``, ``training``.

    Returns:
        The sha256 of the file.

    Raises:
        RunError: A weight is NaN or infinite; nothing is written.
    """
    assert isinstance(module.normalise, Normalise)
    state = dict(network_of(module).state_dict())
    bad = next((name for name, tensor in state.items() if not bool(tensor.isfinite().all())), None)
    if bad is not None:
        raise RunError(f"{path}: not written, because {bad} holds NaN or infinity")
    header = {
        "kind": "teacher",
        "architecture": architecture,
        "num_classes": num_classes,
        **module.normalise.constants(),
        **about,
    }
    return write_weights(path, state, header)
