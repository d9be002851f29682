"""Where features are taken: stages and embedding of students and of every kind of teacher.

Shape suffixes: B images, C channels, H height, W width, E numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from rnascl_cli.models.student import Student
from rnascl_cli.spaces import SPACES
from rnascl_cli.teachers.architectures import build_teacher
from rnascl_cli.teachers.architectures.imagenet import Normalised
from rnascl_cli.teachers.architectures.resnet import Bottleneck, CifarResNet
from rnascl_cli.teachers.architectures.wide_resnet import WideResNet
from rnascl_cli.teachers.features import Point, recording_features, student_points, teacher_points

pytestmark = pytest.mark.unit

LAYERS = ("layer1", "layer2", "layer3", "layer4")


def images(side: int, generator: torch.Generator) -> Tensor:
    return torch.rand(2, 3, side, side, generator=generator)


@pytest.mark.parametrize(
    ("space", "ends"),
    [("S3", [2, 5, 8]), ("S5", [4, 9, 14]), ("M", [8, 15, 16]), ("IM", [2, 5, 8, 12]), ("I", [2, 5, 8, 12, 16])],
)
def test_a_student_s_stages_are_those_of_its_space(space: str, ends: list[int], generator: torch.Generator) -> None:
    widths = SPACES[space].smallest
    student = Student(SPACES[space], widths, num_classes=10).eval()
    points = student_points(student, SPACES[space], widths)
    assert [point.module for point in points.stages] == [f"blocks.{end}" for end in ends]
    assert points.embedding is not None
    with recording_features(student, [*points.stages, points.embedding]) as recorder, torch.no_grad():
        logits_BK = student(images(32, generator))
        *stages, embedding_BE = recorder.take()
    assert [stage.shape[1] for stage in stages] == list(points.channels)
    assert embedding_BE.shape == (2, points.width)
    torch.testing.assert_close(student.classifier(embedding_BE), logits_BK)
    # A stage ends before the next one's stride.
    last = [index - 1 for index, stride in enumerate(SPACES[space].block_strides) if stride > 1 and index > 0]
    assert set(last) <= set(ends)


TEACHERS: dict[str, tuple[Callable[[], nn.Module], int, tuple[str, ...], tuple[int | None, ...], str | None]] = {
    "r8": (lambda: build_teacher("r8", num_classes=10), 32, LAYERS, (16, 32, 64, 128), "linear"),
    "bottlenecks": (
        lambda: CifarResNet(Bottleneck, (1, 1, 1, 1), width=8, num_classes=10),
        32,
        LAYERS,
        (32, 64, 128, 256),
        "linear",
    ),
    "wide": (lambda: WideResNet(10, 1, num_classes=10), 32, ("block1", "block2", "block3"), (16, 32, 64), "fc"),
    "torchvision": (
        lambda: build_teacher("imagenet-r18", num_classes=10),
        64,
        tuple(f"network.{name}" for name in LAYERS),
        (64, 128, 256, 512),
        "network.fc",
    ),
    "timm's ResNet": (
        lambda: Normalised(timm.create_model("test_resnet", num_classes=10)),
        64,
        tuple(f"network.{name}" for name in LAYERS),
        (32, 48, 192, 96),
        "network.fc",
    ),
    "timm's ConvNeXt": (
        lambda: Normalised(timm.create_model("test_convnext", num_classes=10)),
        64,
        tuple(f"network.stages.{index}" for index in range(4)),
        (24, 32, 48, 64),
        "network.head.fc",
    ),
    "a transformer": (  # tokens leave its blocks
        lambda: Normalised(timm.create_model("test_vit", num_classes=10)),
        160,
        tuple(f"network.blocks.{index}" for index in range(6)),
        (None,) * 6,
        "network.head",
    ),
    "no stages": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10)), 8, (), (), "1"),
    "no linear layer last": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10), nn.Softplus()),
        8,
        (),
        (),
        None,
    ),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_s_points(name: str, generator: torch.Generator) -> None:
    build, side, stages, channels, classifier = TEACHERS[name]
    teacher = build().eval()
    points = teacher_points(teacher, input_size=side)
    assert tuple(point.module for point in points.stages) == stages
    assert points.channels == channels
    assert points.embedding == (None if classifier is None else Point(classifier, "input"))
    wanted = [*points.stages, *([points.embedding] if points.embedding else [])]
    with recording_features(teacher, wanted) as recorder, torch.no_grad():
        logits_BK = teacher(images(side, generator))
        taken = recorder.take()
    for stage, width in zip(taken, points.channels, strict=False):
        assert width is None or (stage.ndim == 4 and stage.shape[1] == width)
    if classifier is not None:
        assert taken[-1].shape == (2, points.width)
        torch.testing.assert_close(teacher.get_submodule(classifier)(taken[-1]), logits_BK)


def test_maps_with_channels_last_are_no_feature_maps() -> None:
    class Last(nn.Module):
        feature_info = [{"module": "stage", "num_chs": 5}]  # noqa: RUF012 - as timm writes it

        def __init__(self) -> None:
            super().__init__()
            self.stage, self.head = nn.Linear(3, 5), nn.Linear(5, 10)

        def forward(self, x_BCHW: Tensor) -> Tensor:
            logits: Tensor = self.head(self.stage(x_BCHW.permute(0, 2, 3, 1)).mean(dim=(1, 2)))
            return logits

    points = teacher_points(Last().eval(), input_size=8)
    assert (points.stages, points.channels) == ((Point("stage"),), (None,))
    assert points.embedding == Point("head", "input")


def test_features_are_float32_taken_once_and_the_network_is_left_as_it_was(generator: torch.Generator) -> None:
    teacher = build_teacher("r8", num_classes=10).eval()
    x_BCHW, points = images(32, generator), [Point("layer4"), Point("linear", "input"), Point("layer4")]
    with torch.no_grad():
        before_BK = teacher(x_BCHW)
        with recording_features(teacher, points) as recorder:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                teacher(x_BCHW)
            one, embedding_BE, again = recorder.take()
            assert {feature.dtype for feature in (one, embedding_BE)} == {torch.float32}
            assert torch.equal(one, again)
            torch.testing.assert_close(one.mean(dim=(2, 3)), embedding_BE, rtol=0.02, atol=0.02)
            with pytest.raises(ValueError, match="no forward pass reached layer4, linear"):
                recorder.take()
        assert torch.equal(teacher(x_BCHW), before_BK)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())
