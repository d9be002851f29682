"""Eqs. (2) and (3): the terms of the RNAS-CL losses and how they add up.

Shape suffixes: B images, K classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Direction = Literal["student-teacher", "teacher-student"]


def cross_entropy(logits_BK: Tensor, y_B: Tensor) -> Tensor:
    """Return -y log p, the mean over the batch."""
    return F.cross_entropy(logits_BK.float(), y_B)


def kl_divergence(
    student_BK: Tensor,
    teacher_BK: Tensor,
    *,
    direction: Direction = "student-teacher",
    temperature: float = 1.0,
) -> Tensor:
    """Return the KL divergence between student p and teacher q, the mean over the batch.

    Args:
        student_BK: The student's logits.
        teacher_BK: The teacher's logits.
        direction: ``"student-teacher"``: KL(p, q) = sum_i p_i log(p_i / q_i), as the paper writes it;
            ``"teacher-student"``: KL(q, p), Hinton's.
        temperature: Both logits are divided by T, and the result is multiplied by T^2 (Hinton et al. 2015).
    """
    log_p = F.log_softmax(student_BK.float() / temperature, dim=1)
    log_q = F.log_softmax(teacher_BK.float() / temperature, dim=1)
    first, second = (log_p, log_q) if direction == "student-teacher" else (log_q, log_p)
    return (first.exp() * (first - second)).sum(dim=1).mean() * temperature**2


def trades_kl(natural_BK: Tensor, adversarial_BK: Tensor) -> Tensor:
    """Return TRADES's KL(p(x) || p(x')), the mean over the batch (Zhang et al. 2019, eq. 5)."""
    return F.kl_div(
        F.log_softmax(adversarial_BK.float(), dim=1),
        F.log_softmax(natural_BK.float(), dim=1),
        reduction="batchmean",
        log_target=True,
    )


def weighted_sum(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Return sum_k weight_k * term_k; a term without a weight counts once.

    Eq. (3) is ``weighted_sum({"ce", "kl", "attention"}, {"attention": gamma_t})``; eq. (2) is the same with gamma_s,
    times n_f.
    """
    total = torch.zeros((), device=next(iter(terms.values())).device)
    for name, term in terms.items():
        total = total + weights.get(name, 1.0) * term
    return total
