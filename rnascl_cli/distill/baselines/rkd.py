"""RKD: distances and angles between the embeddings of a batch (Park et al. 2019).

Shape suffixes: B images, E numbers of an embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST_SQUARE = 1e-12  # of a distance: the slope of a root at zero is infinite


def relational_loss(student_BE: Tensor, teacher_BE: Tensor, *, distance: float, angle: float) -> Tensor:
    """Return ``distance`` times the loss on distances plus ``angle`` times that on angles."""
    return distance * distance_loss(student_BE, teacher_BE) + angle * angle_loss(student_BE, teacher_BE)


def distance_loss(student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
    """Return the Huber loss between all pairs' distances, each over the mean distance in its batch."""
    return F.smooth_l1_loss(_distances(student_BE), _distances(teacher_BE))


def angle_loss(student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
    """Return the Huber loss between the cosines of the angles at every image between all pairs."""
    return F.smooth_l1_loss(_cosines(student_BE), _cosines(teacher_BE))


def _distances(embedding_BE: Tensor) -> Tensor:
    squares_B = embedding_BE.square().sum(dim=1)
    squared_BB = squares_B[:, None] + squares_B[None, :] - 2 * embedding_BE @ embedding_BE.T
    count = len(embedding_BE)
    others_BB = 1 - torch.eye(count, device=embedding_BE.device)
    distance_BB = squared_BB.clamp(min=LEAST_SQUARE).sqrt() * others_BB
    return distance_BB / (distance_BB.sum() / max(count * (count - 1), 1)).clamp(min=LEAST_SQUARE)


def _cosines(embedding_BE: Tensor) -> Tensor:
    unit_BBE = F.normalize(embedding_BE[None, :, :] - embedding_BE[:, None, :], dim=2)
    return unit_BBE @ unit_BBE.transpose(1, 2)
