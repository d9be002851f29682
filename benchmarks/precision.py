"""What bf16 saves a student in training on a CPU, and what strided depthwise convolutions would cost it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.results import Measurement
from benchmarks.search_step import BFLOAT16, FLOAT32
from benchmarks.timing import ratio, take_turns
from rnascl_cli.engine.device import DeviceConfig, resolve_device
from rnascl_cli.models.conv import Conv2d
from rnascl_cli.models.student import Student
from rnascl_cli.spaces import space_named

SPACE, BATCH, CLASSES = "S5", 128, 10
CHANNELS, SIDE = 96, 16
"""Of the first strided depthwise convolution of the space's widest network."""


def precision(rounds: int) -> list[Measurement]:
    """Time bf16 against float32; nothing where ``--precision auto`` is float32."""
    if resolve_device("cpu", "auto").student == "fp32":
        return []
    return [depthwise(rounds), training(rounds)]


def depthwise(rounds: int) -> Measurement:
    """Time a strided depthwise convolution in bf16, forward and backward, against ``nn.Conv2d``."""
    sides = {
        name: _passes(kind(CHANNELS, CHANNELS, 3, 2, padding=1, groups=CHANNELS, bias=False))
        for name, kind in (("ours", Conv2d), ("torch's", nn.Conv2d))
    }
    times = take_turns(sides, rounds=rounds, calls={"ours": 20})
    what = f"strided depthwise convolution in bf16 ({CHANNELS} channels, {SIDE}x{SIDE}), times as fast as nn.Conv2d"
    return ratio(times, "precision.depthwise", what, ("torch's", "ours"), kept=False)  # milliseconds: too noisy to hold


def training(rounds: int) -> Measurement:
    """Time a step of training the space's widest network, cross-entropy alone, in bf16 against float32."""
    sides = {"fp32": _training(FLOAT32), "bf16": _training(BFLOAT16)}
    times = take_turns(sides, rounds=2 * rounds, calls=dict.fromkeys(sides, 4))
    what = f"step of training in bf16, times as fast as in float32 ({SPACE}'s widest, batch {BATCH}, cross-entropy)"
    return ratio(times, "precision.training", what, ("fp32", "bf16"))


def _passes(layer: nn.Conv2d) -> Callable[[], object]:
    x_BCHW = torch.rand(BATCH, CHANNELS, SIDE, SIDE, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    x_BCHW.requires_grad_(True)

    def run() -> None:
        with BFLOAT16.student_autocast():
            y_BCHW = layer(x_BCHW)
        y_BCHW.backward(y_BCHW.detach())

    return run


def _training(compute: DeviceConfig) -> Callable[[], object]:
    torch.manual_seed(0)
    space = space_named(SPACE)
    student = Student(space, space.largest, num_classes=CLASSES)
    student.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, fused=True)
    x_BCHW = torch.rand(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    y_B = torch.randint(0, CLASSES, (BATCH,))

    def step() -> None:
        with compute.student_autocast():
            logits_BK = student(x_BCHW)
        optimiser.zero_grad()
        F.cross_entropy(logits_BK.float(), y_B).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step
