"""Features of a network: what leaves each of its stages, and the embedding that its classifier reads.

Shape suffixes: B images, C channels, H height, W width, E numbers of an embedding, K classes.
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
"""Names of the stages of ResNets and of WideResNets."""


class Point(NamedTuple):
    """What a module of a network gives, or what it is given."""

    module: str
    side: Literal["output", "input"] = "output"


@dataclass(frozen=True)
class FeaturePoints:
    """Where a network's features are.

    Attributes:
        stages: Where the stages end, from the first to the last.
        channels: Of each stage's feature map; None where what leaves it is no (B, C, H, W).
        embedding: The input of the linear layer that gives the logits; None where no such layer does.
        width: Numbers of the embedding.
    """

    stages: tuple[Point, ...]
    channels: tuple[int | None, ...]
    embedding: Point | None
    width: int


def student_points(student: Student, space: SearchSpace, widths: Sequence[int]) -> FeaturePoints:
    """Return the points of a network of a space: the last block of each stage, and what is averaged of the last map."""
    ends = [end - 1 for end in itertools.accumulate(stage.depth for stage in space.stages)]
    return FeaturePoints(
        stages=tuple(Point(f"blocks.{end}") for end in ends),
        channels=tuple(widths[end] for end in ends),
        embedding=Point("classifier", "input"),
        width=student.classifier.in_features,
    )


def teacher_points(teacher: nn.Module, *, input_size: int) -> FeaturePoints:
    """Show a teacher one grey image and see what leaves its stages, and which linear layer gives its logits.

    ResNets and WideResNets have stages by name, networks of timm where its ``feature_info`` says.

    Args:
        teacher: In eval mode; images in [0, 1] to logits.
        input_size: Height and width of an image it takes, pixels.
    """
    stages = _stage_names(teacher)
    linear = {name: module for name, module in teacher.named_modules() if isinstance(module, nn.Linear)}
    device = next(teacher.parameters()).device
    points = [Point(name) for name in dict.fromkeys([*stages, *linear])]
    with torch.no_grad(), _seeing(teacher, points) as seen:
        logits_BK = teacher(torch.full((1, 3, input_size, input_size), 0.5, device=device))
    # A module may stand there and not be called, or give a tuple.
    outputs = {point.module: output for point, output in seen.items() if isinstance(output, Tensor)}
    givers = [name for name in linear if name in outputs and torch.equal(outputs[name], logits_BK)]
    ends = [name for name in stages if name in outputs]
    return FeaturePoints(
        stages=tuple(Point(name) for name in ends),
        channels=tuple(_channels(outputs[name], stages[name]) for name in ends),
        embedding=Point(givers[-1], "input") if givers else None,
        width=linear[givers[-1]].in_features if givers else 0,
    )


def _stage_names(teacher: nn.Module) -> dict[str, int | None]:
    """Return the names of the stages' modules, each with its number of channels where that is said."""
    network = network_of(teacher)
    prefix = "" if network is teacher else "network."
    modules = dict(network.named_modules())
    info = getattr(network, "feature_info", None)
    listed = [item for item in info if isinstance(item, Mapping)] if isinstance(info, list) else []
    said = {str(item.get("module")): item.get("num_chs") for item in listed}
    for names in (*STAGES, tuple(said)):
        if names and all(name in modules for name in names):
            return {f"{prefix}{name}": said.get(name) for name in names}
    return {}


def _channels(output: Tensor, said: int | None) -> int | None:
    """Return the channels of a feature map; None for tokens, and for maps whose channels stand last."""
    return output.shape[1] if output.ndim == 4 and said in (None, output.shape[1]) else None


class FeatureRecorder:
    """Holds the features of the last forward pass; see :func:`recording_features`."""

    def __init__(self, points: Sequence[Point], seen: dict[Point, Any]) -> None:
        self._points, self._seen = list(points), seen

    def take(self) -> list[Tensor]:
        """Return the features in the order of the points, as float32, and forget them.

        Raises:
            ValueError: A module did not run since the last call.
        """
        if missing := [point.module for point in self._points if point not in self._seen]:
            raise ValueError(f"no forward pass reached {', '.join(missing[:3])}")
        taken = [self._seen[point].float() for point in self._points]
        self._seen.clear()
        return taken


@contextlib.contextmanager
def recording_features(network: nn.Module, points: Sequence[Point]) -> Iterator[FeatureRecorder]:
    """Record the features of each forward pass while the context is open.

    Args:
        network: Its outputs are not changed.
        points: Where; one may stand there more than once.
    """
    with _seeing(network, points) as seen:
        yield FeatureRecorder(points, seen)


@contextlib.contextmanager
def _seeing(network: nn.Module, points: Sequence[Point]) -> Iterator[dict[Point, Any]]:
    """Keep what passes the points in each forward pass while the context is open."""
    seen: dict[Point, Any] = {}

    def hook_for(point: Point) -> Any:
        def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen[point] = inputs[0]

        def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            seen[point] = output

        return before if point.side == "input" else after

    with contextlib.ExitStack() as stack:
        for point in dict.fromkeys(points):
            module = network.get_submodule(point.module)
            hook = hook_for(point)
            register = module.register_forward_pre_hook if point.side == "input" else module.register_forward_hook
            stack.callback(register(hook).remove)
        yield seen
