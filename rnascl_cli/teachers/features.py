"""Features of a network: the outputs of its stages, and the embedding that its classifier takes.

Shape suffixes: B images, C channels, H height, W width, E embedding size, K classes.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from rnascl_cli.models.student import Student
from rnascl_cli.spaces import SearchSpace
from rnascl_cli.teachers.architectures import network_of

STAGES = (("layer1", "layer2", "layer3", "layer4"), ("block1", "block2", "block3"))
"""Stage modules of ResNets and of WideResNets."""


class Point(NamedTuple):
    """The output or the input of a module of a network."""

    module: str
    side: Literal["output", "input"] = "output"


@dataclass(frozen=True)
class FeaturePoints:
    """Where to record a network's features.

    Attributes:
        stages: The outputs of the stages, from the first to the last.
        channels: Channels of each stage's feature map; None where the output is not (B, C, H, W).
        embedding: The input of the linear layer that gives the logits; None where there is no such layer.
        width: Size of the embedding.
    """

    stages: tuple[Point, ...]
    channels: tuple[int | None, ...]
    embedding: Point | None
    width: int


def student_points(student: Student, space: SearchSpace, widths: Sequence[int]) -> FeaturePoints:
    """Return the feature points of a student: the last block of each stage, and the classifier's input."""
    ends = [end - 1 for end in itertools.accumulate(stage.depth for stage in space.stages)]
    return FeaturePoints(
        stages=tuple(Point(f"blocks.{end}") for end in ends),
        channels=tuple(widths[end] for end in ends),
        embedding=Point("classifier", "input"),
        width=student.classifier.in_features,
    )


def teacher_points(teacher: nn.Module, *, input_size: int) -> FeaturePoints:
    """Return the feature points of a teacher, found by a forward pass of one grey image.

    The stages of ResNets and WideResNets are known by name; those of timm's networks come from ``feature_info``.

    Args:
        teacher: In eval mode; maps images in [0, 1] to logits.
        input_size: Height and width of the image, pixels.
    """
    stages = _stage_names(teacher)
    linear = {name: module for name, module in teacher.named_modules() if isinstance(module, nn.Linear)}
    device = next(teacher.parameters()).device
    points = [Point(name) for name in dict.fromkeys([*stages, *linear])]
    with torch.no_grad(), _recording(teacher, points) as recorded:
        logits_BK = teacher(torch.full((1, 3, input_size, input_size), 0.5, device=device))
    # A module may exist and not be called, or return a tuple.
    outputs = {point.module: output for point, output in recorded.items() if isinstance(output, Tensor)}
    classifiers = [name for name in linear if name in outputs and torch.equal(outputs[name], logits_BK)]
    ends = [name for name in stages if name in outputs]
    return FeaturePoints(
        stages=tuple(Point(name) for name in ends),
        channels=tuple(_channels(outputs[name], stages[name]) for name in ends),
        embedding=Point(classifiers[-1], "input") if classifiers else None,
        width=linear[classifiers[-1]].in_features if classifiers else 0,
    )


def _stage_names(teacher: nn.Module) -> dict[str, int | None]:
    """Return the names of the stages' modules, each with its number of channels where timm lists it."""
    network = network_of(teacher)
    prefix = "" if network is teacher else "network."
    modules = dict(network.named_modules())
    info = getattr(network, "feature_info", None)
    listed = [item for item in info if isinstance(item, Mapping)] if isinstance(info, list) else []
    channels = {str(item.get("module")): item.get("num_chs") for item in listed}
    for names in (*STAGES, tuple(channels)):
        if names and all(name in modules for name in names):
            return {f"{prefix}{name}": channels.get(name) for name in names}
    return {}


def _channels(output: Tensor, listed: int | None) -> int | None:
    """Return the channels of a feature map; None for tokens, and for channels-last maps."""
    return output.shape[1] if output.ndim == 4 and listed in (None, output.shape[1]) else None


class FeatureRecorder:
    """The features of the last forward pass; see :func:`recording_features`."""

    def __init__(self, points: Sequence[Point], recorded: dict[Point, Any]) -> None:
        self._points, self._recorded = list(points), recorded

    def take(self) -> list[Tensor]:
        """Return the features in the order of the points, as float32, and clear them.

        Raises:
            ValueError: A module did not run since the last call.
        """
        if missing := [point.module for point in self._points if point not in self._recorded]:
            raise ValueError(f"no forward pass reached {', '.join(missing[:3])}")
        features = [self._recorded[point].float() for point in self._points]
        self._recorded.clear()
        return features


@contextlib.contextmanager
def recording_features(network: nn.Module, points: Sequence[Point]) -> Iterator[FeatureRecorder]:
    """Record the features of each forward pass while the context is open.

    Args:
        network: The network; its outputs do not change.
        points: The feature points; they may repeat.
    """
    with _recording(network, points) as recorded:
        yield FeatureRecorder(points, recorded)


@contextlib.contextmanager
def _recording(network: nn.Module, points: Sequence[Point]) -> Iterator[dict[Point, Any]]:
    """Hook the points, and record their values in each forward pass while the context is open."""
    recorded: dict[Point, Any] = {}

    def hook_for(point: Point) -> Any:
        def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            recorded[point] = inputs[0]

        def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            recorded[point] = output

        return before if point.side == "input" else after

    with contextlib.ExitStack() as stack:
        for point in dict.fromkeys(points):
            module = network.get_submodule(point.module)
            hook = hook_for(point)
            register = module.register_forward_pre_hook if point.side == "input" else module.register_forward_hook
            stack.callback(register(hook).remove)
        yield recorded
