"""PKT: the probability that images are neighbours (Passalis and Tefas 2018).

Shape suffixes: B images, E numbers of an embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-7


def neighbour_loss(student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
    """Return the mean of q log(q / p) over all B^2 pairs; q of the teacher, p of the student.

    p_ij is (cos(f_i, f_j) + 1) / 2 over its sum over j (the cosine kernel, i = j included). The
    paper sums the divergence; its code, and with it the weight 30000, takes the mean.
    """
    p_BB, q_BB = _probabilities(student_BE), _probabilities(teacher_BE)
    return (q_BB * ((q_BB + TINY) / (p_BB + TINY)).log()).mean()


def _probabilities(embedding_BE: Tensor) -> Tensor:
    # vector_norm has slope 0 at an all-zero embedding, where the root of a sum of squares has none.
    norm_B1 = torch.linalg.vector_norm(embedding_BE, dim=1, keepdim=True)
    unit_BE = embedding_BE / (norm_B1 + TINY)
    similarity_BB: Tensor = (unit_BE @ unit_BE.T + 1) / 2
    return similarity_BB / similarity_BB.sum(dim=1, keepdim=True)
