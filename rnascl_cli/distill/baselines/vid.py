"""VID: how well the student's features predict the teacher's (Ahn et al. 2019).

Shape suffixes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnascl_cli.distill.baselines.at import same_side

LEAST_VARIANCE = 1e-5


class VariationalLoss(nn.Module):
    """-log q(t | s) of every pair of stages, q Gaussian with a regressed mean and a learned variance a channel.

    Its parameters are trained with the student's.

    Args:
        channels: Channels of student and teacher for each pair of stages.
        variance: Of every channel at the start.
    """

    def __init__(self, channels: Sequence[tuple[int, int]], *, variance: float = 5.0) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_Gaussian(student, teacher, variance) for student, teacher in channels)

    def forward(self, stages: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the sum over the stages of the mean over images, channels and pixels; constants are left out.

        Args:
            stages: Features of student and teacher (B, C, H, W); the larger ones are averaged to the smaller size.
        """
        terms = [gaussian(*pair) for gaussian, pair in zip(self.stages, stages, strict=True)]
        return torch.stack(terms).sum()


class _Gaussian(nn.Module):
    def __init__(self, student: int, teacher: int, variance: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(student, teacher, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher, teacher, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher, teacher, 1, bias=False),
        )
        # The variance is softplus(alpha) + the least one.
        self.alpha = nn.Parameter(torch.full((teacher,), _before_softplus(variance - LEAST_VARIANCE)))

    def forward(self, student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
        student, teacher = same_side(student_BCHW, teacher_BCHW)
        variance_C11 = (F.softplus(self.alpha) + LEAST_VARIANCE).view(-1, 1, 1)
        squared_BCHW: Tensor = (self.mean(student) - teacher).square()
        return 0.5 * (squared_BCHW / variance_C11 + variance_C11.log()).mean()


def _before_softplus(value: float) -> float:
    return value + math.log(-math.expm1(-value))  # log(e^v - 1), without overflow
