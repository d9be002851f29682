"""Batches made by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from rnascl_cli.data import Batch, BatchShard
from rnascl_cli.stages.search.step import BatchPart, SearchStep
from rnascl_cli.teachers.forward import TeacherOutput


def as_batch(x_BCHW: Tensor, y_B: Tensor | None = None) -> Batch:
    """Return images and labels (all 0 by default) as a batch of the first images of a set, each seen as it is."""
    rows_B = torch.arange(len(x_BCHW))
    y_B = torch.zeros_like(rows_B) if y_B is None else y_B
    return Batch(x_BCHW, y_B, rows_B, torch.zeros_like(rows_B), BatchShard.alone(len(rows_B)))


def drawn_part(step: SearchStep, x_bCHW: Tensor, y_b: Tensor, teacher: TeacherOutput | None) -> BatchPart:
    """Return these images as one part of a batch, all in this process, with the step's noise drawn for them."""
    return step.draw_noise(x_bCHW, y_b, teacher, BatchShard(len(y_b)))
