"""SP: which images of a batch look alike to the network (Tung and Mori 2019).

Shape suffixes: B images.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def similarity_loss(student_B: Tensor, teacher_B: Tensor) -> Tensor:
    """Return ||G_t - G_s||_F^2 / B^2, G = A A^T with rows of unit L2 norm, A the flattened features.

    Args:
        student_B: The student's features of a layer, (B, ...).
        teacher_B: The teacher's, (B, ...) of any shape.
    """
    return (_gram(teacher_B) - _gram(student_B)).square().mean()


def _gram(features_B: Tensor) -> Tensor:
    rows = features_B.flatten(1)
    return F.normalize(rows @ rows.T, dim=1)
