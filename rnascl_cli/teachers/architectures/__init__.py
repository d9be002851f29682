"""Teacher networks: images in [0, 1] to logits, normalisation inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from rnascl_cli.core.errors import UserError, did_you_mean
from rnascl_cli.models.normalise import Normalise
from rnascl_cli.teachers.architectures.imagenet import Normalised, torchvision_resnet
from rnascl_cli.teachers.architectures.resnet import BasicBlock, Bottleneck, CifarResNet
from rnascl_cli.teachers.architectures.timm_models import timm_model
from rnascl_cli.teachers.architectures.wide_resnet import WideResNet
from rnascl_cli.teachers.files import PREFIX
from rnascl_cli.teachers.public_checkpoints import IMAGENET_MEAN, IMAGENET_STD

__all__ = [
    "ALIASES",
    "ARCHITECTURES",
    "TeacherArchitecture",
    "architecture_named",
    "build_teacher",
    "network_of",
    "without_memory",
]


class Builder(Protocol):
    """Builds a network with fresh weights; its ``normalise`` does nothing yet."""

    def __call__(self, *, num_classes: int) -> nn.Module:
        """Build it."""
        ...


@dataclass(frozen=True)
class TeacherArchitecture:
    """A network that can teach.

    Attributes:
        name: As in ``--arch``.
        description: A line for people.
        input_size: Height and width it was made for, pixels.
        build: The builder.
        normalised_as: Mean and std that public checkpoints of it expect, where all of them agree.
        classifiers: Names that the layer of the logits may have in its state dict.
        state_is_all: Whether everything it computes with is in its state dict, so that it can be built on
            torch's meta device and filled from a file.
    """

    name: str
    description: str
    input_size: int
    build: Builder
    normalised_as: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    classifiers: tuple[str, ...] = ("linear", "fc")
    state_is_all: bool = True


def _cifar(name: str, description: str, build: Callable[[int], nn.Module]) -> TeacherArchitecture:
    return TeacherArchitecture(name, description, 32, lambda *, num_classes: build(num_classes))


def _imagenet(name: str, description: str, build: Callable[[int], nn.Module]) -> TeacherArchitecture:
    constants = (IMAGENET_MEAN, IMAGENET_STD)
    return TeacherArchitecture(name, description, 224, lambda *, num_classes: build(num_classes), constants)


ARCHITECTURES: Mapping[str, TeacherArchitecture] = {
    item.name: item
    for item in (
        _cifar(
            "r8",
            "CIFAR ResNet, one basic block a stage, 16 to 128 channels: small enough for a CPU",
            lambda classes: CifarResNet(BasicBlock, (1, 1, 1, 1), width=16, num_classes=classes),
        ),
        _cifar(
            "r18",
            "CIFAR ResNet-18",
            lambda classes: CifarResNet(BasicBlock, (2, 2, 2, 2), num_classes=classes),
        ),
        _cifar(
            "r50",
            "CIFAR ResNet-50",
            lambda classes: CifarResNet(Bottleneck, (3, 4, 6, 3), num_classes=classes),
        ),
        _cifar("wrn-34-10", "CIFAR WideResNet-34-10", lambda classes: WideResNet(34, 10, num_classes=classes)),
        _cifar("wrn-34-20", "CIFAR WideResNet-34-20", lambda classes: WideResNet(34, 20, num_classes=classes)),
        _imagenet(
            "imagenet-r18",
            "torchvision's ResNet-18",
            lambda classes: torchvision_resnet("resnet18", num_classes=classes),
        ),
        _imagenet(
            "imagenet-r50",
            "torchvision's ResNet-50",
            lambda classes: torchvision_resnet("resnet50", num_classes=classes),
        ),
        _imagenet(
            "imagenet-wrn-50-2",
            "torchvision's WideResNet-50-2",
            lambda classes: torchvision_resnet("wide_resnet50_2", num_classes=classes),
        ),
    )
}

ALIASES: Mapping[str, str] = {"wrt34": "wrn-34-20", "wrt50": "imagenet-wrn-50-2"}
"""The paper's names of teachers, for the architecture of the public checkpoint."""


def architecture_named(name: str, *, option: str = "--arch") -> TeacherArchitecture:
    """Return the architecture of that name or alias, or timm's of a name ``timm:NAME``.

    Raises:
        UserError: There is none; the nearest known name is given.
    """
    if name.startswith(PREFIX):
        return _timm(name.removeprefix(PREFIX), option=option)
    name = ALIASES.get(name, name)
    if name not in ARCHITECTURES:
        raise UserError(
            f"{option}: unknown teacher architecture '{name}'{did_you_mean(name, [*ARCHITECTURES, 'timm:NAME'])}"
        )
    return ARCHITECTURES[name]


def _timm(name: str, *, option: str) -> TeacherArchitecture:
    found = timm_model(name, option=option)
    return TeacherArchitecture(
        f"{PREFIX}{found.name}",
        "one of PyTorch Image Models",
        found.input_size,
        found.build,
        found.constants,
        classifiers=(found.classifier,),
        state_is_all=False,  # some keep tables of positions and masks outside it
    )


def build_teacher(
    architecture: str,
    *,
    num_classes: int,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> nn.Module:
    """Build a teacher with fresh weights.

    Args:
        architecture: A name of :data:`ARCHITECTURES` or :data:`ALIASES`.
        num_classes: Number of logits.
        mean: Subtracted from each channel of images in [0, 1]; 0 for a network without normalisation.
        std: Divides each channel; 1 for a network without normalisation.

    Returns:
        A module in train mode, with a submodule ``normalise``; each residual block has ``is_block = True``.

    Raises:
        UserError: Unknown architecture.
    """
    module = architecture_named(architecture).build(num_classes=num_classes)
    module.normalise = Normalise(mean, std)
    return module


def without_memory(architecture: TeacherArchitecture, *, num_classes: int) -> nn.Module:
    """Build a network of shapes alone where the architecture allows it, else with fresh weights."""
    try:
        with torch.device("meta"):
            return architecture.build(num_classes=num_classes)
    except (RuntimeError, NotImplementedError):
        if architecture.state_is_all:
            raise
        return architecture.build(num_classes=num_classes)  # older timm reads numbers from tensors while it builds


def network_of(teacher: nn.Module) -> nn.Module:
    """Return the part of a teacher whose state dict has the public tensor names."""
    return teacher.network if isinstance(teacher, Normalised) else teacher
