"""Teacher networks, which map images in [0, 1] to logits and contain the normalisation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from rnascl_cli.core.errors import UserError, did_you_mean
from rnascl_cli.models.normalise import Normalise
from rnascl_cli.teachers.architectures.imagenet import Normalised, TorchvisionName, torchvision_resnet
from rnascl_cli.teachers.architectures.resnet import BasicBlock, Bottleneck, CifarResNet
from rnascl_cli.teachers.architectures.timm_models import timm_model
from rnascl_cli.teachers.architectures.wide_resnet import WideResNet
from rnascl_cli.teachers.files import PREFIX
from rnascl_cli.teachers.public_checkpoints import IDENTITY, IMAGENET, NormalisationConstants

__all__ = [
    "ALIASES",
    "ARCHITECTURES",
    "TeacherArchitecture",
    "architecture_named",
    "build_on_meta",
    "build_teacher",
    "network_of",
]


class Builder(Protocol):
    """Builds a network with fresh weights, whose ``normalise`` is the identity."""

    def __call__(self, *, num_classes: int) -> nn.Module:
        """Build the network."""
        ...


@dataclass(frozen=True)
class TeacherArchitecture:
    """A teacher network.

    Attributes:
        name: As in ``--arch``.
        description: One line.
        input_size: Height and width of its training images, pixels.
        build: Builds it.
        normalised_as: Normalisation of its public checkpoints, where all of them agree.
        classifiers: Names that the layer of the logits may have in its state dict.
        state_is_all: Whether its state dict holds every tensor it computes with, so that it can be built on torch's
            meta device and filled from a file.
    """

    name: str
    description: str
    input_size: int
    build: Builder
    normalised_as: NormalisationConstants | None = None
    classifiers: tuple[str, ...] = ("linear", "fc")
    state_is_all: bool = True


def _cifar(name: str, description: str, build: Callable[[int], nn.Module]) -> TeacherArchitecture:
    return TeacherArchitecture(name, description, 32, lambda *, num_classes: build(num_classes))


def _imagenet(name: str, description: str, torchvision_name: TorchvisionName) -> TeacherArchitecture:
    build = functools.partial(torchvision_resnet, torchvision_name)
    return TeacherArchitecture(name, description, 224, build, IMAGENET)


ARCHITECTURES: Mapping[str, TeacherArchitecture] = {
    item.name: item
    for item in (
        _cifar(
            "r8",
            "CIFAR ResNet with one basic block per stage and 16 to 128 channels: small enough for a CPU",
            lambda classes: CifarResNet(BasicBlock, (1, 1, 1, 1), width=16, num_classes=classes),
        ),
        _cifar("r18", "CIFAR ResNet-18", lambda classes: CifarResNet(BasicBlock, (2, 2, 2, 2), num_classes=classes)),
        _cifar("r50", "CIFAR ResNet-50", lambda classes: CifarResNet(Bottleneck, (3, 4, 6, 3), num_classes=classes)),
        _cifar("wrn-34-10", "CIFAR WideResNet-34-10", lambda classes: WideResNet(34, 10, num_classes=classes)),
        _cifar("wrn-34-20", "CIFAR WideResNet-34-20", lambda classes: WideResNet(34, 20, num_classes=classes)),
        _imagenet("imagenet-r18", "torchvision's ResNet-18", "resnet18"),
        _imagenet("imagenet-r50", "torchvision's ResNet-50", "resnet50"),
        _imagenet("imagenet-wrn-50-2", "torchvision's WideResNet-50-2", "wide_resnet50_2"),
    )
}

ALIASES: Mapping[str, str] = {"wrt34": "wrn-34-20", "wrt50": "imagenet-wrn-50-2"}
"""The paper's names of its teachers, and the architecture of the public checkpoint."""


def architecture_named(name: str, *, option: str = "--arch") -> TeacherArchitecture:
    """Return an architecture.

    Args:
        name: A name of :data:`ARCHITECTURES` or :data:`ALIASES`, or ``timm:NAME``.
        option: What to call it in an error.

    Raises:
        UserError: There is none; the message names the nearest one.
    """
    if name.startswith(PREFIX):
        model = timm_model(name.removeprefix(PREFIX), option=option)
        return TeacherArchitecture(
            f"{PREFIX}{model.name}",
            "a network of PyTorch Image Models",
            model.input_size,
            model.build,
            model.constants,
            classifiers=(model.classifier,),
            state_is_all=False,  # some keep position tables and masks outside of it
        )
    name = ALIASES.get(name, name)
    if name not in ARCHITECTURES:
        raise UserError(
            f"{option}: unknown teacher architecture '{name}'{did_you_mean(name, [*ARCHITECTURES, 'timm:NAME'])}"
        )
    return ARCHITECTURES[name]


def build_teacher(
    architecture: str,
    *,
    num_classes: int,
    mean: Sequence[float] = IDENTITY.mean,
    std: Sequence[float] = IDENTITY.std,
) -> nn.Module:
    """Build a teacher with fresh weights.

    Args:
        architecture: A name of :data:`ARCHITECTURES` or :data:`ALIASES`, or ``timm:NAME``.
        num_classes: Number of logits.
        mean: Subtracted from each channel of images in [0, 1].
        std: Divides each channel.

    Returns:
        A module in train mode with a submodule ``normalise``; each residual block has ``is_block = True``.

    Raises:
        UserError: Unknown architecture.
    """
    module = architecture_named(architecture).build(num_classes=num_classes)
    module.normalise = Normalise(mean, std)
    return module


def build_on_meta(architecture: TeacherArchitecture, *, num_classes: int) -> nn.Module:
    """Build a network of shapes alone, on torch's meta device; with fresh weights where it cannot be built there."""
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
