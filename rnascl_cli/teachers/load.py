"""Teachers to be had: our own files, public checkpoints, the teacher cache, and timm's pretrained networks."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rnascl_cli.artifacts.archives import refuse_bomb
from rnascl_cli.artifacts.documents import TeacherReference
from rnascl_cli.artifacts.store import read_weights, sha256_file, write_weights
from rnascl_cli.core.console import warning
from rnascl_cli.core.errors import RunError, UserError
from rnascl_cli.models.normalise import Normalise
from rnascl_cli.teachers.architectures import ARCHITECTURES, architecture_named, network_of, without_memory
from rnascl_cli.teachers.architectures.imagenet import Normalised
from rnascl_cli.teachers.architectures.timm_models import tensors_sha256, timm_model
from rnascl_cli.teachers.files import PREFIX, SUFFIX, find_teacher
from rnascl_cli.teachers.public_checkpoints import IDENTITY
from rnascl_cli.teachers.safe_unpickling import load_pickled
from rnascl_cli.teachers.state_dict_conversion import Constants, ConvertedStateDict, convert_state_dict, unwrap

PICKLED = (".pt", ".pth", ".ckpt", ".tar")


@dataclass(frozen=True)
class Teacher:
    """A teacher ready to teach.

    Attributes:
        module: In eval mode, without gradients; images in [0, 1] to logits.
        reference: Which file it came from, or that it is timm's.
        num_classes: Number of logits.
        architecture: As in ``--arch``.
        header: What the file says of itself: source, training, accuracies measured. Empty for public files.
    """

    module: nn.Module
    reference: TeacherReference
    num_classes: int
    architecture: str
    header: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A file's network in our names, and the normalisation to put before it."""

    translation: ConvertedStateDict
    constants: Constants | None
    header: dict[str, Any]


WITHOUT_KL = "do without the KL term, which compares class by class (--paradigm icc, or kl.weight=0)"


def read_teacher(source: str, *, num_classes: int | None = None, otherwise: str = WITHOUT_KL) -> Teacher:
    """Find and read a teacher.

    Args:
        source: A name in the teacher cache, a file (one made by ``rnascl teacher``, or a public checkpoint), or
            ``timm:NAME``.
        num_classes: How many classes the teacher must have; None for any.
        otherwise: What to do instead where it has another number, as an error says.

    Raises:
        UserError: It is not there (the message says how to get it), damaged, no teacher, or has another
            number of classes.
    """
    if source.startswith(PREFIX):
        return _read_timm(source, num_classes=num_classes, otherwise=otherwise)
    path = find_teacher(source)
    checkpoint = read_checkpoint(path)
    classes = checkpoint.translation.num_classes
    _check_classes(source, classes, num_classes, otherwise=otherwise)
    constants = checkpoint.constants
    if constants is None:
        constants = default_constants(checkpoint.translation.architecture)
        how = "as they are" if constants == IDENTITY else f"with the usual mean {constants[0]} and std {constants[1]}"
        warning(
            f"teacher {path}: the file holds no normalisation; images go in {how}. "
            "If it was trained with another, import it with --mean and --std"
        )
    reference = TeacherReference(
        source=source,
        path=str(path.resolve()),
        architecture=checkpoint.translation.architecture,
        sha256=sha256_file(path),
    )
    module = build_teacher_from(checkpoint.translation, constants)
    return Teacher(module, reference, classes, checkpoint.translation.architecture, checkpoint.header)


def _check_classes(source: str, classes: int, wanted: int | None, *, otherwise: str) -> None:
    if wanted is not None and classes != wanted:
        raise UserError(
            f"teacher {source} has {classes} classes, the data has {wanted}; choose another of them, or {otherwise}"
        )


def _read_timm(source: str, *, num_classes: int | None, otherwise: str) -> Teacher:
    """Take a network and its weights from timm; their identity is a hash over the tensors."""
    facts = timm_model(source.removeprefix(PREFIX), option="--teacher")
    _check_classes(source, facts.num_classes, num_classes, otherwise=otherwise)  # before anything is downloaded
    module = Normalised(facts.pretrained())
    module.normalise = Normalise(*facts.constants)
    name = f"{PREFIX}{facts.name}"
    sha256 = tensors_sha256(module, facts.constants)
    reference = TeacherReference(source=source, path=name, architecture=name, sha256=sha256)
    header = {"source": f"timm {facts.name}, its pretrained weights"}
    return Teacher(module.eval().requires_grad_(False), reference, facts.num_classes, name, header)


def read_checkpoint(path: Path, *, architecture: str | None = None) -> Checkpoint:
    """Read a teacher file of ours or a public checkpoint, and bring it to our names.

    Args:
        path: ``.safetensors``, or ``.pt``, ``.pth``, ``.ckpt`` (read without running any code they may hold).
        architecture: What it is; None to tell it from the tensors.

    Raises:
        UserError: It cannot be read, or is no teacher.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    if path.suffix.lower() != SUFFIX:
        if path.suffix.lower() not in PICKLED:
            raise UserError(f"{path}: not a checkpoint; {SUFFIX}, .pt, .pth or .ckpt is needed")
        refuse_bomb(path)
        return _public(load_pickled(path), architecture, where=str(path))
    tensors, header, _ = read_weights(path)
    if header is None:
        return _public(tensors, architecture, where=str(path))
    if header.get("kind") != "teacher":
        raise UserError(f"{path}: a teacher file is needed; this is a {str(header.get('kind'))[:40]!r}")
    named = header.get("architecture")
    if not isinstance(named, str) or not (named in ARCHITECTURES or named.startswith(PREFIX)):
        raise UserError(f"{path}: made for an architecture this rnascl does not know ({str(named)[:40]!r})")
    architecture_named(named, option=f"{path}: made for")  # timm may have dropped it
    if architecture is not None and architecture_named(architecture).name != named:
        raise UserError(f"--arch {architecture}: {path} is a {named}")
    translation = convert_state_dict(tensors, architecture=named, where=str(path))
    return Checkpoint(translation, _header_constants(header, where=str(path)), header)


def _public(loaded: Any, architecture: str | None, *, where: str) -> Checkpoint:
    """Bring somebody else's checkpoint to our names."""
    state, beside = unwrap(loaded, where=where)
    found = convert_state_dict(state, architecture=architecture, where=where)
    return Checkpoint(replace(found, dropped={**found.dropped, **beside}), found.constants, {})


def build_teacher_from(translation: ConvertedStateDict, constants: Constants) -> nn.Module:
    """Build the network and give it its weights; in eval mode, without gradients."""
    architecture = architecture_named(translation.architecture)
    build = architecture.build if not architecture.state_is_all else functools.partial(without_memory, architecture)
    module = build(num_classes=translation.num_classes)  # without time for initial weights, where that can be
    module.normalise = Normalise(*constants)
    network = network_of(module)
    tensors: dict[str, Tensor] = {
        name: tensor.to(expected.dtype)
        for (name, expected) in network.state_dict().items()
        for tensor in (translation.tensors[name],)
    }
    network.load_state_dict(tensors, assign=True)
    return module.eval().requires_grad_(False)


def write_teacher(path: Path, module: nn.Module, *, architecture: str, num_classes: int, about: dict[str, Any]) -> str:
    """Write a teacher file: safetensors, with architecture and normalisation in the header.

    Args:
        path: Where to.
        module: The teacher.
        architecture: Its name, as in ``--arch``.
        num_classes: Number of logits.
        about: What else the header should say: ``source``, ``source_sha256``, ``measured``, ``training``.

    Returns:
        The sha256 of the file.

    Raises:
        RunError: A weight is NaN or infinite; nothing is written.
    """
    assert isinstance(module.normalise, Normalise)
    state = dict(network_of(module).state_dict())
    bad = [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise RunError(f"{path}: not written, because {bad[0]} holds NaN or infinity")
    header = {
        "kind": "teacher",
        "architecture": architecture,
        "num_classes": num_classes,
        **module.normalise.constants(),
        **about,
    }
    return write_weights(path, state, header)


def default_constants(architecture: str) -> Constants:
    """Return the normalisation to take where a file names none: what its weights usually expect; none for CIFAR's."""
    return architecture_named(architecture).normalised_as or IDENTITY


def _header_constants(header: dict[str, Any], *, where: str) -> Constants:
    found = []
    for name, low in (("mean", 0.0), ("std", 1e-6)):
        values = header.get(name)
        if (
            not isinstance(values, list)
            or len(values) != 3
            or not all(isinstance(value, int | float) and low <= value <= 1 for value in values)
        ):
            raise UserError(f"{where}: '{name}' in the header must be three numbers in [0, 1]")
        found.append(tuple(float(value) for value in values))
    return found[0], found[1]
