"""Batches made by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from rnascl_cli.data import Batch, BatchShard
from rnascl_cli.stages.search.adversarial import BatchPart
from rnascl_cli.stages.search.step import SearchStep
from rnascl_cli.teachers.forward import TeacherOutput


def as_batch(x_BCHW: Tensor, y_B: Tensor | None = None) -> Batch:
    """Return images and labels (all 0 by default) as a batch of the first images of a set, each seen as it is."""
    rows_B = torch.arange(len(x_BCHW))
    y_B = torch.zeros_like(rows_B) if y_B is None else y_B
    return Batch(x_BCHW, y_B, rows_B, torch.zeros_like(rows_B), BatchShard.alone(len(rows_B)))


def as_part(x_bCHW: Tensor, y_b: Tensor, teacher_output: TeacherOutput | None) -> BatchPart:
    """These images as the part of a batch that a search step is to take, all in this process."""
    return BatchPart(x_bCHW, y_b, teacher_output, BatchShard(len(y_b)))


def drawn_part(task: SearchStep, x_bCHW: Tensor, y_b: Tensor, teacher_output: TeacherOutput | None) -> BatchPart:
    """These images as such a part, with what is random in the step drawn for them."""
    part = as_part(x_bCHW, y_b, teacher_output)
    return part._replace(noise=task._draw_noise(part))
